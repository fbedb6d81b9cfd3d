"""What a TFLite file says of itself. Read in a process of its own: see `onnx_probe.probe`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.onnx_probe import ModelFacts, ModelTensor
from edgeops.runtimes.litert_backend import LiteRtBackend, ends
from edgeops.runtimes.protocol import LoadOptions

_INTEGER_KINDS = "iu"


def read_tflite_facts(path: Path) -> ModelFacts:
    """Read and check a TFLite file in this process.

    Raises:
        EdgeopsError: E-MODEL-FORMAT; not TFLite, or damaged. E-RUNTIME-MISSING; LiteRT is not installed.
            E-MODEL-UNSUPPORTED; operators that LiteRT does not have, or sizes that are left open.
    """
    try:
        LiteRtBackend().load(path, LoadOptions()).close()
    except EdgeopsError as error:
        unknown = "custom op" in error.what.lower() or "unresolved" in error.what.lower()
        code = "E-MODEL-UNSUPPORTED" if unknown else error.code.replace("E-RUNTIME-LOAD", "E-MODEL-FORMAT")
        raise EdgeopsError(code, error.what) from error
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_path=str(path),
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    inputs, outputs = ends(interpreter)
    tensors = interpreter.get_tensor_details()
    # It has no public name.
    operators = Counter(item["op_name"] for item in interpreter._get_ops_details() if item["op_name"] != "DELEGATE")
    if custom := sorted(name for name in operators if name.startswith(("CUSTOM", "Flex"))):
        raise EdgeopsError("E-MODEL-UNSUPPORTED", f"{path}: operators of its own: {', '.join(custom)}")
    return ModelFacts(
        ir_version=0,
        opsets={},
        inputs=tuple(_tensor(name, item) for name, item in inputs),
        outputs=tuple(_tensor(name, item) for name, item in outputs),
        ops={f"tflite::{name}": count for name, count in sorted(operators.items())},
        weights_bytes=path.stat().st_size,
        format="tflite",
        quantized=any(np.dtype(item["dtype"]).kind in _INTEGER_KINDS and item["quantization"][0] for item in tensors),
    )


class TfliteRun:
    """A TFLite model that takes and gives real numbers, or the integers that it stores.

    Args:
        path: The file.
        kernels: `xnnpack`, or `reference` for the plain ones.
    """

    def __init__(self, path: Path, kernels: str = "xnnpack") -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        resolver = OpResolverType.AUTO if kernels == "xnnpack" else plain
        self._interpreter = Interpreter(model_path=str(path), num_threads=1, experimental_op_resolver_type=resolver)
        self._inputs, self._outputs = map(dict, ends(self._interpreter))
        self._interpreter.allocate_tensors()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one inference; quantized outputs come as real numbers.

        Raises:
            EdgeopsError: E-RUNTIME-RUN.
        """
        try:
            for name, item in self._inputs.items():
                value, (scale, zero_point) = np.asarray(feeds[name]), item["quantization"]
                if scale and value.dtype != item["dtype"]:
                    limits = np.iinfo(item["dtype"])
                    value = np.clip(np.rint(value / scale) + zero_point, limits.min, limits.max).astype(item["dtype"])
                self._interpreter.set_tensor(item["index"], value)
            self._interpreter.invoke()
            return {
                name: _real(self._interpreter.get_tensor(item["index"]), item) for name, item in self._outputs.items()
            }
        except (RuntimeError, ValueError, KeyError) as error:
            raise EdgeopsError("E-RUNTIME-RUN", f"LiteRT: {' '.join(str(error).split())[:300]}") from error

    def close(self) -> None:
        """Free the model's memory."""
        self._interpreter = None


def _real(value: NDArray[Any], item: Any) -> NDArray[Any]:
    scale, zero_point = item["quantization"]
    return (value.astype(np.float32) - np.float32(zero_point)) * np.float32(scale) if scale else value


def _tensor(name: str, item: Any) -> ModelTensor:
    dtype = np.dtype(item["dtype"])
    signature = item["shape_signature"] if len(item["shape_signature"]) == len(item["shape"]) else item["shape"]
    return ModelTensor(
        name=name,
        dtype=dtype.name,
        shape=tuple(int(size) for size in signature),
        quantized=dtype.kind in _INTEGER_KINDS and bool(item["quantization"][0]),
    )
