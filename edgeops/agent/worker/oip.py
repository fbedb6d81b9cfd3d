"""Open Inference Protocol v2: requests and responses as bytes, JSON and binary tensors. No sockets here.

Source: Open Inference Protocol v2 (REST), with Triton's binary tensor data extension.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.bundle import BundleManifest, OutputInfo
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.tensors import DTYPES, TensorSpec

_BY_OIP_NAME = {oip: name for name, (oip, _) in DTYPES.items()}
_MAX_JSON_TENSORS = 64


class _Parameters(msgspec.Struct, frozen=True):
    binary_data_size: int | None = None
    binary_data: bool | None = None
    binary_data_output: bool = False


class _RequestInput(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, ...]
    datatype: str
    data: msgspec.Raw = msgspec.Raw(b"")
    parameters: _Parameters = _Parameters()


class _RequestOutput(msgspec.Struct, frozen=True):
    name: str
    parameters: _Parameters = _Parameters()


class _Request(msgspec.Struct, frozen=True):
    inputs: tuple[_RequestInput, ...]
    outputs: tuple[_RequestOutput, ...] = ()
    id: str = ""
    parameters: _Parameters = _Parameters()


class InferRequest(NamedTuple):
    """A checked request.

    Args:
        id: The client's mark, given back.
        feeds: Input name → tensor of exactly the declared dtype and shape.
        outputs: Wanted output → whether as binary.
    """

    id: str
    feeds: dict[str, NDArray[Any]]
    outputs: dict[str, bool]


class InferResponse(NamedTuple):
    """A response's body, and the length of its JSON part if binary tensors follow it."""

    body: bytes
    json_length: int | None


_DECODER = msgspec.json.Decoder(_Request)


class InferCodec:
    """Reads requests for one bundle and writes its responses.

    Args:
        manifest: The bundle's manifest.
        release: Its version, told to clients.
    """

    def __init__(self, manifest: BundleManifest, release: str) -> None:
        self._model, self._release = manifest.model, release
        self._inputs = {spec.name: spec for spec in manifest.inputs}
        self._outputs = {info.tensor.name: info.tensor for info in manifest.outputs}
        # Binary answers have the same JSON part every time: shapes are static.
        self._heads: dict[tuple[str, ...], bytes] = {}

    def read(self, body: bytes, json_length: int | None) -> InferRequest:
        """Read and check a request completely.

        Args:
            body: The HTTP body.
            json_length: Length of its JSON part; None: the whole body.

        Raises:
            EdgeopsError: E-INFER-REQUEST; malformed. E-RUNTIME-INPUT; a tensor is not as the model wants it.
        """
        if json_length is not None and not 0 < json_length <= len(body):
            raise _malformed(f"Inference-Header-Content-Length is {json_length}, the body has {len(body)} bytes")
        head = body if json_length is None else memoryview(body)[:json_length]
        try:
            request = _DECODER.decode(head)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _malformed(str(error)) from error
        if len(request.inputs) > _MAX_JSON_TENSORS or len(request.outputs) > _MAX_JSON_TENSORS:
            raise _malformed("too many tensors")
        return InferRequest(request.id, self._feeds(request, body, json_length), self._wanted(request))

    def write(self, request: InferRequest, answer: dict[str, NDArray[Any]], *, flagged: bool = False) -> InferResponse:
        """Write the response to a request.

        Args:
            request: What was asked.
            answer: Output name → tensor of the declared dtype and shape.
            flagged: An output is not finite; said as response parameter `non_finite`.
        """
        all_binary = all(request.outputs.values())
        if all_binary and not request.id and not flagged:
            key = tuple(request.outputs)
            head = self._heads.get(key)
            if head is None:
                head = self._heads[key] = self._head(request, answer, flagged)
        else:
            head = self._head(request, answer, flagged)
        binary = [answer[name].tobytes() for name, as_binary in request.outputs.items() if as_binary]
        if not binary:
            return InferResponse(head, None)
        return InferResponse(b"".join((head, *binary)), len(head))

    def _head(self, request: InferRequest, answer: dict[str, NDArray[Any]], flagged: bool) -> bytes:
        outputs = []
        for name, as_binary in request.outputs.items():
            spec = self._outputs[name]
            item: dict[str, Any] = {"name": name, "datatype": DTYPES[spec.dtype][0], "shape": spec.shape}
            if as_binary:
                item["parameters"] = {"binary_data_size": spec.nbytes}
            else:
                item["data"] = answer[name].reshape(-1).tolist()
            outputs.append(item)
        document: dict[str, Any] = {"model_name": self._model, "model_version": self._release, "outputs": outputs}
        if request.id:
            document["id"] = request.id
        if flagged:
            document["parameters"] = {"non_finite": True}
        return msgspec.json.encode(document)

    def _wanted(self, request: _Request) -> dict[str, bool]:
        default = request.parameters.binary_data_output
        if not request.outputs:
            return dict.fromkeys(self._outputs, default)
        wanted = {
            item.name: default if item.parameters.binary_data is None else item.parameters.binary_data
            for item in request.outputs
        }
        if len(wanted) != len(request.outputs) or not wanted.keys() <= self._outputs.keys():
            raise _malformed(
                f"outputs are {sorted(self._outputs)}, asked for {[item.name for item in request.outputs]}"
            )
        return wanted

    def _feeds(self, request: _Request, body: bytes, json_length: int | None) -> dict[str, NDArray[Any]]:
        given = sorted(item.name for item in request.inputs)
        if given != sorted(self._inputs):
            raise EdgeopsError("E-RUNTIME-INPUT", f"expected inputs {sorted(self._inputs)}, got {given}")
        feeds = {}
        offset = len(body) if json_length is None else json_length
        for item in request.inputs:
            spec = self._inputs[item.name]
            own = spec.sized(item.shape)
            if _BY_OIP_NAME.get(item.datatype) != spec.dtype or own is None:
                raise EdgeopsError(
                    "E-RUNTIME-INPUT",
                    f"input {spec.name!r}: expected {DTYPES[spec.dtype][0]}{list(spec.shape)}, "
                    f"got {item.datatype[:16]}{list(item.shape)[:16]}",
                )
            size = item.parameters.binary_data_size
            if size is None:
                feeds[spec.name] = _from_json(item.data, own)
                continue
            if bytes(item.data):
                raise _malformed(f"input {spec.name!r} has both data and binary_data_size")
            if size != own.nbytes or offset + size > len(body):
                raise EdgeopsError(
                    "E-RUNTIME-INPUT",
                    f"input {spec.name!r}: {own.nbytes} binary bytes are needed, announced {size}, "
                    f"present {len(body) - offset}",
                )
            feeds[spec.name] = _from_binary(body, offset, own)
            offset += size
        if offset != len(body):
            raise _malformed(f"{len(body) - offset} bytes are left over after the last binary tensor")
        return feeds


def metadata(manifest: BundleManifest, release: str) -> dict[str, Any]:
    """Return a model's metadata document."""
    return {
        "name": manifest.model,
        "versions": [release],
        "platform": f"edgeops_{manifest.runtime}",
        "inputs": [_described(spec) for spec in manifest.inputs],
        "outputs": [_described_output(info) for info in manifest.outputs],
    }


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DTYPES[spec.dtype][0], "shape": spec.shape}


def _described_output(info: OutputInfo) -> dict[str, Any]:
    described, more = _described(info.tensor), {"labels": info.labels, "state_to": info.state_to}
    if parameters := {name: value for name, value in more.items() if value}:
        described["parameters"] = parameters
    return described


def _from_binary(body: bytes, offset: int, spec: TensorSpec) -> NDArray[Any]:
    array: NDArray[Any] = np.frombuffer(body, np.dtype(spec.dtype), spec.elements, offset).reshape(spec.shape)
    if spec.dtype == "bool" and array.view(np.uint8).max(initial=0) > 1:
        raise EdgeopsError("E-RUNTIME-INPUT", f"input {spec.name!r}: a BOOL is 0 or 1")
    return array if array.flags.aligned else array.copy()


def _from_json(raw: msgspec.Raw, spec: TensorSpec) -> NDArray[Any]:
    """Read a flat or nested list of JSON numbers as a tensor; every number must fit its type."""
    if not bytes(raw):
        raise _malformed(f"input {spec.name!r} has neither data nor binary_data_size")
    try:
        values = np.array(msgspec.json.decode(raw))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise EdgeopsError("E-RUNTIME-INPUT", f"input {spec.name!r}: {error}") from error
    target = np.dtype(spec.dtype)
    allowed = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[target.kind]
    if values.size != spec.elements or values.dtype.kind not in allowed:
        raise EdgeopsError(
            "E-RUNTIME-INPUT",
            f"input {spec.name!r}: data must be {spec.elements} numbers that are {DTYPES[spec.dtype][0]}, "
            f"got {values.size} of kind {values.dtype}",
        )
    if target.kind in "ui":
        limits = np.iinfo(target)
        if values.size and not (limits.min <= values.min() and values.max() <= limits.max):
            raise EdgeopsError("E-RUNTIME-INPUT", f"input {spec.name!r}: a number is beyond {DTYPES[spec.dtype][0]}")
    with np.errstate(over="ignore"):
        converted = values.astype(target)
    if target.kind == "f" and not np.isfinite(converted).all():
        raise EdgeopsError("E-RUNTIME-INPUT", f"input {spec.name!r}: a number is beyond {DTYPES[spec.dtype][0]}")
    return converted.reshape(spec.shape)


def _malformed(what: str) -> EdgeopsError:
    return EdgeopsError("E-INFER-REQUEST", what[:500], "See docs/reference/agent.md.")
