"""PyTorch modules and exported programs, through torch.onnx; they are exported for one sample of one size."""

from __future__ import annotations

import copy
import inspect
import io
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.exported import OPSET, Exported, ExportedOutput, Tensors, cannot_export, needs, type_name

# How torch's tracer says that Python code saw a value of the sample that it traces.
_ESCAPES = "Converting a tensor to a "


def module_inputs(module: Any, count: int) -> tuple[str, ...]:
    """Return the names of the first `count` arguments of a module's `forward`."""
    names = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return tuple(names[:count]) if len(names) >= count else tuple(f"input_{index}" for index in range(count))


def program_inputs(program: Any) -> tuple[str, ...]:
    """Return the names of an exported program's inputs."""
    return tuple(program.graph_signature.user_inputs)


def export_torch(model: Any, example: Tensors) -> Exported:
    """Export an `nn.Module` as it is in evaluation, or an exported program.

    The module itself stays as it is: a copy of it is put into evaluation on the processor.

    Args:
        model: A `torch.nn.Module`, or what `torch.export.export` or `torch.export.load` gives.
        example: One sample by input, in the order of `forward`.

    Raises:
        EdgeopsError: E-DEPENDENCY; torch or onnxscript is missing. E-HANDOVER-OBJECT; its outputs are no tensors.
            E-HANDOVER-EXPORT; it does not run on the sample, or torch cannot export it.
    """
    try:
        import torch
    except ImportError as error:
        raise needs("torch", "torch", error) from error
    program = isinstance(model, torch.export.ExportedProgram)
    call = model.module() if program else copy.deepcopy(model).cpu().eval()
    feeds = tuple(torch.from_numpy(np.array(value)) for value in example.values())

    def run(one: Tensors) -> dict[str, Any]:
        with torch.no_grad():
            return _named(call(*(torch.from_numpy(np.array(one[name])) for name in example)))

    try:
        names = list(run(example))
    # A network may raise anything for a tensor that it was not made for.
    except Exception as error:
        if isinstance(error, EdgeopsError):
            raise
        raise cannot_export(model, "a run on the first sample", error) from error
    make: Callable[[], bytes] = (
        (lambda: _by_graph(torch, model, (), list(example), names))
        if program
        else (lambda: _by_trace(torch, call, feeds, list(example), names))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = make()
    return Exported(
        suffix="onnx",
        data=data,
        inputs=tuple(example),
        outputs=tuple(ExportedOutput(name) for name in names),
        run=run,
        source=f"{type_name(model)}, exported by torch {torch.__version__}",
    )


def _by_trace(torch: Any, call: Any, feeds: tuple[Any, ...], inputs: list[str], outputs: list[str]) -> bytes:
    """Export what the module does with one sample; where that may depend on its values, all that it says."""
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.onnx.export(
                call, feeds, file, input_names=inputs, output_names=outputs, opset_version=OPSET, dynamo=False
            )  # fmt: skip
    # The tracing exporter raises errors of its own making, some without a base class of torch.
    except Exception as first:  # noqa: BLE001
        try:
            return _by_graph(torch, call, feeds, inputs, outputs)
        except EdgeopsError as second:
            raise second from first
    escapes = [
        one for one in said if issubclass(one.category, torch.jit.TracerWarning) and _ESCAPES in str(one.message)
    ]
    if not escapes:
        return file.getvalue()
    # A value became one of Python: a branch that another sample would take is not in the trace.
    try:
        return _by_graph(torch, call, feeds, inputs, outputs)
    except EdgeopsError as error:
        where = sorted({f"{Path(one.filename).name}:{one.lineno}" for one in escapes})
        raise EdgeopsError(
            "E-HANDOVER-EXPORT",
            f"what {type_name(call)} does may depend on values ({', '.join(where[:8])}), and torch cannot export that: "
            f"{error.what}",
            "Say it with torch.where, torch.cond or torch.clamp; or export the model to ONNX yourself.",
        ) from error


def _by_graph(torch: Any, model: Any, feeds: tuple[Any, ...], inputs: list[str], outputs: list[str]) -> bytes:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise needs("onnxscript", "torch", error) from error
    try:
        with tempfile.TemporaryDirectory(prefix="edgeops-export-") as folder:
            made = torch.onnx.export(
                model, feeds, dynamo=True, verbose=False, input_names=inputs, output_names=outputs, external_data=False
            )
            made.save(Path(folder) / "model.onnx", external_data=False)
            return (Path(folder) / "model.onnx").read_bytes()
    # As above.
    except Exception as error:
        raise cannot_export(model, "torch.onnx", error) from error


def _named(answer: Any) -> dict[str, Any]:
    """Return a module's outputs by name.

    Raises:
        EdgeopsError: E-HANDOVER-OBJECT; something among them is no tensor.
    """
    if isinstance(answer, Mapping):
        found = {str(name): value for name, value in answer.items() if value is not None}
    elif isinstance(answer, list | tuple):
        single = len(answer) == 1
        found = {"output" if single else f"output_{index}": value for index, value in enumerate(answer)}
    else:
        found = {"output": answer}
    for name, value in found.items():
        if not hasattr(value, "detach"):
            raise EdgeopsError(
                "E-HANDOVER-OBJECT",
                f"output {name!r} of the module is {type_name(value)}, not a tensor",
                "Give tensors, a list or tuple of tensors, or a dict of tensors.",
            )
    return {name: value.detach().numpy() for name, value in found.items()}
