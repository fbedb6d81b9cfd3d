"""Clients of a device's models: over HTTP (Open Inference Protocol v2 with binary tensors); others by their address."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from edgeops.client.inference_local import LocalModel
from edgeops.client.inference_socket import SocketClient
from edgeops.client.inference_state import State, Stream, states_of
from edgeops.contracts.errors import ERROR_CODES, EdgeopsError
from edgeops.contracts.tensors import DTYPES, TensorSpec

__all__ = ["InferenceClient", "InferenceModel", "LocalModel", "SocketClient", "State", "Stream", "open_model"]

TIMEOUT_S = 30.0
MAX_RESPONSE_BYTES = 1 << 30
_HEADER = "Inference-Header-Content-Length"
_BY_OIP_NAME = {oip: name for name, (oip, _) in DTYPES.items()}
_BROKEN = (ConnectionError, http.client.HTTPException)


class InferenceModel(Protocol):
    """What every client can do, whatever it reaches the model by."""

    def infer(
        self, model: str, feeds: Mapping[str, NDArray[Any]], *, outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """Run the model."""

    def ready(self) -> bool:
        """Say whether it can answer."""

    def metadata(self, model: str) -> dict[str, Any]:
        """Return what it is."""

    def states(self, model: str) -> tuple[State, ...]:
        """Return its state tensors, for `Stream`."""

    def close(self) -> None:
        """Give everything back."""


def open_model(
    address: str, *, timeout_s: float = TIMEOUT_S, token: str | None = None, tls: ssl.SSLContext | None = None
) -> InferenceModel:
    """Return a client by what it is to reach.

    Args:
        address: `http://host:port`, or https; `unix:/path/of/the.sock`, the fastest across processes; or a bundle's
            directory, which is then loaded in this process. `edgeops agent status` tells the first two.
        timeout_s: How long to wait for an answer.
        token: The token that an endpoint wants which others than this device reach; HTTP only.
        tls: Whom to trust, and which certificate to show; HTTPS only.

    Raises:
        EdgeopsError: As `InferenceClient`, `SocketClient` or `LocalModel`.
    """
    if address.startswith("unix:"):
        return SocketClient(Path(address.removeprefix("unix:")), timeout_s=timeout_s)
    if "://" in address:
        return InferenceClient(address, timeout_s=timeout_s, token=token, tls=tls)
    return LocalModel(Path(address))


class InferenceClient:
    """Asks one server, over one connection that is kept. Use one client per thread.

    A server that changes bundles may close a connection between two requests; then the request is sent once more on a
    new one.

    Args:
        url: `http://host:port`, or `https://host:port`.
        timeout_s: How long to wait for an answer.
        token: Sent with each request.
        tls: Whom to trust, and which certificate to show; None: the system's CAs, and none.

    Raises:
        EdgeopsError: E-CONFIG; not such an address.
    """

    def __init__(
        self, url: str, *, timeout_s: float = TIMEOUT_S, token: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise EdgeopsError("E-CONFIG", f"{url[:200]!r}: {error}", "Give http://host:port.") from error
        if parts.scheme not in ("http", "https") or parts.hostname is None or parts.path not in ("", "/"):
            raise EdgeopsError("E-CONFIG", f"{url[:200]!r} is not http://host:port")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise EdgeopsError("E-CONFIG", "the token has characters that no token has", "Is there a line break in it?")
        self._url = url
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        if parts.scheme == "http":
            self._connection = http.client.HTTPConnection(parts.hostname, port or 80, timeout=timeout_s)
        else:
            trusted = tls or ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(
                parts.hostname, port or 443, timeout=timeout_s, context=trusted
            )

    def infer(
        self, model: str, feeds: Mapping[str, NDArray[Any]], *, outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """Run the model.

        Args:
            model: Its name.
            feeds: Input name → tensor of the declared dtype and shape.
            outputs: Outputs that are wanted; none: all.

        Returns:
            Output name → tensor.

        Raises:
            EdgeopsError: The server's code; E-NET-UNREACHABLE; no answer. E-NET-RESPONSE; an answer that is none.
        """
        arrays = {name: np.asarray(array, order="C") for name, array in feeds.items()}
        request: dict[str, Any] = {
            "inputs": [_described(name, array) for name, array in arrays.items()],
            "parameters": {"binary_data_output": True},
        }
        if outputs:
            request["outputs"] = [{"name": name} for name in outputs]
        head = json.dumps(request, separators=(",", ":")).encode()
        body = b"".join((head, *(array.tobytes() for array in arrays.values())))
        headers, answer = self._ask("POST", f"{_path(model)}/infer", body, {_HEADER: str(len(head))})
        try:
            return _read(answer, headers.get(_HEADER))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise EdgeopsError("E-NET-RESPONSE", f"{self._url}: not an inference response: {error}") from error

    def ready(self) -> bool:
        """Say whether the server is there and can answer."""
        try:
            self._ask("GET", "/v2/health/ready")
        except EdgeopsError:
            return False
        return True

    def metadata(self, model: str) -> dict[str, Any]:
        """Return the model's name, versions, inputs and outputs.

        Raises:
            EdgeopsError: As `infer`.
        """
        answer = self._ask("GET", _path(model))[1]
        try:
            document = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise EdgeopsError("E-NET-RESPONSE", f"{self._url}: not a model's metadata: {error}") from error
        if not isinstance(document, dict):
            raise EdgeopsError("E-NET-RESPONSE", f"{self._url}: not a model's metadata")
        return document

    def states(self, model: str) -> tuple[State, ...]:
        """Return the model's state tensors, for `Stream`.

        Raises:
            EdgeopsError: As `infer`.
        """
        said = self.metadata(model)
        try:
            inputs = [
                TensorSpec(name=item["name"], dtype=_BY_OIP_NAME[item["datatype"]], shape=tuple(item["shape"]))
                for item in said["inputs"]
            ]
            fed = {item["name"]: item.get("parameters", {}).get("state_to", "") for item in said["outputs"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise EdgeopsError("E-NET-RESPONSE", f"{self._url}: not a model's metadata: {error!r}") from error
        return states_of(fed, inputs)

    def busy(self, for_s: float) -> None:
        """Ask the agent that no update disturbs this application for so long from now on; 0: it may again.

        To be renewed in time by an application that stays busy: one that died holds nothing up for ever, and an
        update that has waited for the site's `busy_deadline_s` waits no longer. The agent forgets it when it is
        started anew.

        Args:
            for_s: Seconds, at most 3600.

        Raises:
            EdgeopsError: E-INFER-REQUEST; no such time. E-NET-UNREACHABLE or E-NET-RESPONSE as `infer`.
        """
        self._ask("POST", "/v2/edgeops/busy", json.dumps({"for_s": for_s}).encode())

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[http.client.HTTPMessage, bytes]:
        kept = self._connection.sock is not None
        try:
            return self._ask_once(method, path, body, headers or {})
        except _BROKEN as error:
            self._connection.close()
            if not kept:
                raise self._unreachable(error) from error
        except OSError as error:
            self._connection.close()
            raise self._unreachable(error) from error
        try:
            return self._ask_once(method, path, body, headers or {})
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._unreachable(error) from error

    def _ask_once(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPMessage, bytes]:
        self._connection.request(method, path, body, {**self._headers, **headers})
        response = self._connection.getresponse()
        answer = response.read(MAX_RESPONSE_BYTES)
        if not response.isclosed():
            self._connection.close()
            if len(answer) < MAX_RESPONSE_BYTES:
                raise http.client.IncompleteRead(answer)
            raise EdgeopsError("E-WIRE-SIZE", f"{self._url}: the answer is larger than {MAX_RESPONSE_BYTES} bytes")
        if response.status != 200:
            raise _refused(self._url, response.status, answer)
        return response.headers, answer

    def _unreachable(self, error: Exception) -> EdgeopsError:
        return EdgeopsError("E-NET-UNREACHABLE", f"{self._url}: {error or type(error).__name__}", "Is the agent up?")


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _described(name: str, array: NDArray[Any]) -> dict[str, Any]:
    dtype = DTYPES.get(array.dtype.name)
    if dtype is None:
        raise EdgeopsError("E-RUNTIME-INPUT", f"input {name!r}: {array.dtype} cannot be sent")
    return {
        "name": name,
        "shape": array.shape,
        "datatype": dtype[0],
        "parameters": {"binary_data_size": array.nbytes},
    }


def _read(answer: bytes, json_length: str | None) -> dict[str, NDArray[Any]]:
    """Take a response apart.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: It is not one.
    """
    end = int(json_length) if json_length is not None else len(answer)
    tensors = {}
    for item in json.loads(answer[:end])["outputs"]:
        dtype = np.dtype(_BY_OIP_NAME[item["datatype"]])
        size = item.get("parameters", {}).get("binary_data_size")
        if size is None:
            flat = np.array(item["data"], dtype)
        else:
            flat = np.frombuffer(answer, dtype, size // dtype.itemsize, end)
            end += size
        tensors[item["name"]] = flat.reshape(item["shape"])
    return tensors


def _refused(url: str, status: int, answer: bytes) -> EdgeopsError:
    try:
        said = json.loads(answer)
        code, what = str(said["code"]), str(said["error"]).removeprefix(f"{said['code']}: ")
    except (ValueError, KeyError, TypeError, RecursionError):
        code, what = "E-NET-RESPONSE", f"status {status}"
    if code not in ERROR_CODES:
        code, what = "E-NET-RESPONSE", f"{code}: {what}"
    return EdgeopsError(code, f"{url}: {what}")
