"""What may be tried for a runtime: schemes by precision, in the order of escalation. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from edgeops.compiler.engine import Step
from edgeops.compiler.sensitivity import Aim
from edgeops.contracts.profile import Precision, Runtime

ARTIFACTS = {
    "onnxruntime": "model.onnx",
    "openvino": "model.xml",
    "litert": "model.tflite",
    "mcu": "model.tflite",
}
READY_RUNTIMES = ("litert", "mcu")
# The only one that has operators for decision trees.
TREE_RUNTIME = "onnxruntime"
_TREES = "ai.onnx.ml::Tree"
_CONTROL = frozenset({"If", "Loop", "Scan", "LSTM", "GRU", "RNN"})


class Traits(NamedTuple):
    """What decides which schemes make sense: whether it carries state, its operators, whether there are labels.

    `ready`: it was handed over as an artifact of this precision, and is taken as it is.
    """

    stateful: bool
    ops: frozenset[str]
    labelled: bool = False
    ready: Precision | None = None

    @property
    def trees(self) -> bool:
        """Whether it has decision trees: see `TREE_RUNTIME`."""
        return any(op.startswith(_TREES) for op in self.ops)

    @property
    def only_float(self) -> bool:
        """Whether int8 is known to fail or to gain nothing: state, control flow, decision trees."""
        return self.stateful or bool(self.ops & _CONTROL) or self.trees


class Candidate(NamedTuple):
    """One way to build an artifact.

    Args:
        scheme: Its name, unique within a profile.
        runtime: Backend that runs it.
        precision: Number format.
        steps: From the prepared float graph on.
        rescues: The largest shortfall of the precision's best so far at which it is worth trying: 1 passes.
    """

    scheme: str
    runtime: str
    precision: Precision
    steps: tuple[Step, ...]
    rescues: float = math.inf


class Room(NamedTuple):
    """What a microcontroller's blob is called, and what there is room for: see `passes.mcu_blob`."""

    model: str = "model"
    limits: Mapping[str, Any] = {}


def float_candidate(runtime: Runtime, traits: Traits, room: Room | None = None) -> Candidate:
    """Return the plain float artifact of a runtime: the baseline of all others; or what was handed over ready."""
    if traits.ready is not None:
        steps = (_blob(runtime, room or Room()),) if runtime.name == "mcu" else ()
        return Candidate(f"{runtime.name}-as-handed-over", runtime.name, traits.ready, steps)
    plain = {
        "onnxruntime": (),
        "openvino": (_openvino(False),),
        "litert": (_TFLITE,),
        "mcu": (_TFLITE,),
    }
    return Candidate(f"{runtime.name}-fp32", runtime.name, Precision.FLOAT32, plain[runtime.name])


def ladder(
    runtime: Runtime, precision: Precision, traits: Traits, aim: Aim, room: Room | None = None
) -> tuple[Candidate, ...]:
    """Return the schemes of one precision in the order in which they are tried; empty: none makes sense."""
    if traits.ready is not None:
        return ()
    if runtime.name == "mcu" and precision is Precision.INT8 and not traits.only_float:
        steps = _mcu(runtime, room or Room())
        return (Candidate("mcu-int8", "mcu", precision, steps),)
    if precision is Precision.FLOAT32:
        return (float_candidate(runtime, traits, room),)
    if traits.only_float and precision is not Precision.FLOAT16:
        return ()
    makers = {"onnxruntime": _onnxruntime, "openvino": _openvino_ladder, "litert": _litert}
    if runtime.name not in makers:
        return ()
    return tuple(
        Candidate(f"{runtime.name}-{name}", runtime.name, precision, steps, _RESCUES.get(name, math.inf))
        for name, steps in makers[runtime.name](runtime, precision, traits, aim)
    )


# Kinds of TFLite quantization that need the ranges of activations.
CALIBRATED_KINDS = ("static", "int16x8")
_TFLITE = Step(name="onnx-to-tflite", inputs=("samples",))
_Named = tuple[str, tuple[Step, ...]]
# Eighths of the graph that stay float at its beginning, before NNCF corrects the biases of what follows; and what each
# may rescue: a longer front is worth trying where a shorter one brought it near.
_FRONTS = {2: 12.0, 3: 2.0, 4: 1.5}
# Schemes that only take ranges in another way mend what is nearly good enough, and no more. Accuracy control takes
# minutes, operator by operator.
_RESCUES = {
    **dict.fromkeys(("int8-mean", "int8-default", "int8-percentile", "int8-entropy"), 3.0),
    **dict.fromkeys(("int8-symmetric-percentile", "int8-symmetric-entropy"), 3.0),
    **{f"int8-front-{of_8}": most for of_8, most in _FRONTS.items()},
    "int8-controlled": 1.2,
}
_CONVOLUTIONS, _PRODUCTS = ("Conv", "ConvTranspose"), ("Gemm", "MatMul")


def _openvino(fp16_weights: bool) -> Step:
    return Step(name="onnx-to-openvino", parameters={"fp16_weights": fp16_weights})


def _onnxruntime(runtime: Runtime, precision: Precision, traits: Traits, aim: Aim) -> list[_Named]:
    if precision is Precision.INT8:
        symmetric = runtime.int8_scheme == "symmetric"

        def static(method: str, **more: Any) -> tuple[Step, ...]:
            parameters = {"method": method, "symmetric": symmetric, **more}
            return (Step(name="onnx-int8-static", parameters=parameters, inputs=("samples",)),)

        prefix = "int8-symmetric" if symmetric else "int8"
        parameters = {"symmetric": symmetric, "aim": msgspec.to_builtins(aim)}
        partial = (Step(name="onnx-int8-partial", parameters=parameters, inputs=("samples",)),)
        subsets = []
        if traits.ops.intersection(_CONVOLUTIONS) and traits.ops.intersection(_PRODUCTS):
            subsets = [
                (f"{prefix}-convolutions", static("minmax", op_types=list(_CONVOLUTIONS))),
                (f"{prefix}-products", static("minmax", op_types=list(_PRODUCTS))),
            ]
        return [
            (prefix, static("minmax")),
            (f"{prefix}-percentile", static("percentile")),
            (f"{prefix}-entropy", static("entropy")),
            (f"{prefix}-partial", partial),
            *subsets,
        ]
    single = {
        Precision.DYNAMIC_INT8: ("int8-dynamic", "onnx-int8-dynamic"),
        Precision.WEIGHT_INT8: ("int8-weights", "onnx-int8-weights"),
        Precision.FLOAT16: ("fp16", "onnx-fp16"),
    }
    return [(name, (Step(name=step),)) for name, step in (single[precision],)] if precision in single else []


def _openvino_ladder(runtime: Runtime, precision: Precision, traits: Traits, aim: Aim) -> list[_Named]:
    if precision is Precision.INT8:
        # Attention is where NNCF's other model type differs.
        model_type = "transformer" if {"MatMul", "Softmax"} <= traits.ops else "none"
        pack = Step(name="openvino-pack")

        def quantize(name: str, ranges: str, **more: Any) -> Step:
            return Step(name=name, parameters={"model_type": model_type, "ranges": ranges, **more}, inputs=("samples",))

        def front(of_8: int) -> Step:
            return quantize("openvino-int8", "widest", front=of_8 / 8)

        aimed = {"aim": msgspec.to_builtins(aim)}
        partial = Step(name="openvino-int8-partial", parameters=aimed, inputs=("float", "samples"))
        whole = quantize("openvino-int8", "widest")
        controlled = ("int8-controlled", (_openvino(False), quantize("openvino-int8-controlled", "widest", **aimed)))
        return [
            ("int8", (_openvino(False), whole, pack)),
            ("int8-mean", (_openvino(False), quantize("openvino-int8", "mean"), pack)),
            ("int8-default", (_openvino(False), quantize("openvino-int8", "mean", preset="default"), pack)),
            *((f"int8-front-{of_8}", (_openvino(False), front(of_8), pack)) for of_8 in _FRONTS),
            ("int8-partial", (_openvino(False), whole, partial)),
            *([controlled] if traits.labelled else []),
        ]
    if precision is Precision.WEIGHT_INT8:
        return [("int8-weights", (_openvino(False), Step(name="openvino-int8-weights")))]
    if precision is Precision.FLOAT16:
        return [("fp16-weights", (_openvino(True),))]
    return []


def _blob(runtime: Runtime, room: Room) -> Step:
    parameters = {
        "cpu": runtime.options.get("cpu", ""),
        "portable": runtime.options.get("kernels") == "portable",
        "name": room.model,
        "limits": dict(room.limits),
    }
    return Step(name="mcu-blob", parameters=parameters)


def _mcu(runtime: Runtime, room: Room) -> tuple[Step, ...]:
    return (
        _TFLITE,
        Step(name="mcu-fit", inputs=("samples",)),
        *_quantize_tflite("static"),
        _blob(runtime, room),
    )


def _quantize_tflite(kind: str, **more: Any) -> tuple[Step, ...]:
    """Return the steps from a float TFLite model on; the ranges of one kind are found once for all its schemes."""
    ranges = Step(name="tflite-ranges", parameters={"kind": kind}, inputs=("samples",))
    quantize = Step(name="tflite-quantize", parameters={"kind": kind, **more}, inputs=("samples",))
    return (ranges, quantize) if kind in CALIBRATED_KINDS else (quantize,)


def _litert(runtime: Runtime, precision: Precision, traits: Traits, aim: Aim) -> list[_Named]:
    def quantize(kind: str, **more: Any) -> tuple[Step, ...]:
        return (_TFLITE, *_quantize_tflite(kind, **more))

    if precision is Precision.INT8:
        return [
            ("int8", quantize("static")),
            ("int8-partial", quantize("static", aim=msgspec.to_builtins(aim))),
        ]
    kinds = {
        Precision.DYNAMIC_INT8: ("int8-dynamic", "dynamic"),
        Precision.WEIGHT_INT8: ("int8-weights", "weights"),
        Precision.INT16X8: ("int16x8", "int16x8"),
        Precision.FLOAT16: ("fp16-weights", "fp16"),
    }
    return [(name, quantize(kind)) for name, kind in (kinds[precision],)] if precision in kinds else []
