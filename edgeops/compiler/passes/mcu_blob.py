"""Make the blob of an int8 TFLite model: C by bakenn, compiled for the processor into position-independent code."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeops.compiler import bakenn_adapter
from edgeops.compiler.passes import Outcome, Work, refuse, tflite
from edgeops.compiler.passes.flatmodel import INT8, FlatModel
from edgeops.contracts.tensors import TensorSpec
from edgeops.contracts.wire import Wire
from firmware_bridge import blobs
from firmware_bridge.blob_build import BLOB_DIR, ENTRY, compile_code

BLOB_NAME = "model.blob"
NOTICE_NAME = "LICENSES.txt"
INPUT, OUTPUT = "input", "output"
# Operator → the version that its int8 form has by TFLite's own table.
_VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2, "AVERAGE_POOL_2D": 2, "MAX_POOL_2D": 2,
    "RESHAPE": 1, "PAD": 2, "PADV2": 2,
}  # fmt: skip
# Their options say nothing, and converters leave them out.
_EMPTY_OPTIONS = {"PAD": "PadOptions", "PADV2": "PadV2Options"}
_WITHOUT_BIAS = {"FULLY_CONNECTED": 6}
_SOFTMAX_SCALE, _SOFTMAX_ZERO = 1 / 256, -128
_DIFFERENCE_BITS = 5
# Third-party code is compiled as it is.
_FLAGS = ("-O3", "-w", "-Wno-error")
_OWN_LICENCE = "edgeops (entry, memory and softmax functions): Apache-2.0, the text is that of bakenn below.\n"


class Limits(Wire, frozen=True, kw_only=True):
    """What the profile offers: bytes, and the line of the profile that says so; None: no limit."""

    arena_bytes: int | None = None
    arena_line: str = ""
    flash_bytes: int | None = None
    flash_line: str = ""


class McuBlob:
    """Make the blob, and refuse what the processor's profile has no room for."""

    tools = ("ai-edge-litert", "bakenn", "flatbuffers", "numpy", "tflite")
    programs = ("arm-none-eabi-gcc",)
    requires: frozenset[str] = frozenset({"tflite", "baked"})
    ensures = frozenset({"tflite", "baked", "mcu-blob"})

    def run(self, work: Work) -> Outcome:
        """Make it.

        Parameters: `cpu`, a profile's name of a processor: cortex-m4; `limits`, `Limits`; `portable`, no instructions
        of the processor's own. Notes: `shipped`, the files that a bundle gets; `artifact`, the file and names that
        replace those of the TFLite model, which stays beside it as the oracle; `flash_bytes`, `arena_bytes`, `kernels`.
        """
        cpu = processor(work.parameters["cpu"])
        limits = msgspec.convert(work.parameters.get("limits", {}), Limits)
        model = FlatModel.read(work.source / tflite.MODEL_NAME)
        shutil.copyfile(work.source / tflite.MODEL_NAME, work.target / tflite.MODEL_NAME)
        scratch = work.target / "c"
        scratch.mkdir()
        try:
            name, code = _model_name(work.parameters), _Code(model)
            made = bakenn_adapter.generate(
                code.model.packed(), cpu, scratch / "generated", portable=work.parameters.get("portable", False)
            )
            header = _header(name, cpu, made, model)
            _check_arena(header, limits)
            blob = blobs.pack(header, _compiled(name, cpu, made, code, scratch))
            _check_flash(blob, limits)
            (work.target / BLOB_NAME).write_bytes(blob)
            (work.target / NOTICE_NAME).write_text(_notice(made))
        finally:
            shutil.rmtree(scratch)
        artifact = {
            "file": BLOB_NAME,
            "tensors": {
                model.name(int(model.graph.inputs[0])): INPUT,
                model.name(int(model.graph.outputs[0])): OUTPUT,
            },
        }
        notes = {
            "shipped": [BLOB_NAME, NOTICE_NAME], "artifact": artifact, "flash_bytes": len(blob),
            "arena_bytes": header.arena_size, "kernels": made.kernels,
        }  # fmt: skip
        return Outcome(work.facts | {"mcu-blob"}, {**work.notes, **notes})


def processor(name: str) -> blobs.Cpu:
    """Return a processor by the name that profiles use: cortex-m4, x86-64.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; blobs are for no such processor.
    """
    try:
        return blobs.Cpu[name.upper().replace("-", "_")]
    except KeyError:
        known = ", ".join(cpu.name.lower().replace("_", "-") for cpu in blobs.Cpu)
        raise refuse(f"no blobs for processor {name!r}; known: {known}", "Set options.cpu of the runtime.") from None


def _model_name(parameters: Any) -> str:
    return re.sub(r"[^!-~]", "-", str(parameters.get("name") or "model"))[:64]


class _Code:
    """The part of a model that bakenn compiles, and the softmax behind it, which it has not bit for bit."""

    def __init__(self, model: FlatModel) -> None:
        self.model = model.copy()
        self.softmax = ""
        _check_ends(self.model)
        operators = self.model.graph.operators
        if operators and self.model.kind(operators[-1]) == "SOFTMAX":
            self.softmax = _cut_softmax(self.model)
        for index, one in enumerate(self.model.graph.operators):
            kind = self.model.kind(one)
            if kind not in _VERSIONS:
                output = self.model.name(int(one.outputs[0]))
                known = ", ".join(sorted(_VERSIONS))
                raise refuse(f"operator {index}, {kind} (it writes {output!r}), has no code here; there is: {known}")
            plain = kind in _WITHOUT_BIAS and (len(one.inputs) < 3 or int(one.inputs[2]) < 0)
            one.opcodeIndex = self.model.code(kind, _WITHOUT_BIAS[kind] if plain else _VERSIONS[kind])
            if one.builtinOptions is None and kind in _EMPTY_OPTIONS:
                self.model.give_options(one, self.model.options(_EMPTY_OPTIONS[kind]))


def _check_ends(model: FlatModel) -> None:
    variables = [model.name(index) for index, tensor in enumerate(model.graph.tensors) if tensor.isVariable]
    if variables:
        raise refuse(f"the model keeps state in {len(variables)} variables, such as {variables[0]!r}: a blob has none")
    for what, ends in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        if len(ends) != 1:
            raise refuse(f"the model has {len(ends)} {what}s, a blob has one")
        tensor = model.graph.tensors[int(ends[0])]
        if tensor.type != INT8:
            raise refuse(f"the model's {what} {model.name(int(ends[0]))!r} is not int8")


def _cut_softmax(model: FlatModel) -> str:
    """Take the softmax off the end; return the C statement that does it."""
    one = model.graph.operators[-1]
    source, output = int(one.inputs[0]), int(one.outputs[0])
    shape = model.shape(source)
    scale = float(model.graph.tensors[source].quantization.scale[0])
    ends = model.graph.tensors[output].quantization
    if (float(ends.scale[0]), int(ends.zeroPoint[0])) != (_SOFTMAX_SCALE, _SOFTMAX_ZERO):
        raise refuse(f"SOFTMAX writes {model.name(output)!r} in another scale than 1/256")
    multiplier, shift = _step(float(one.builtinOptions.beta) * scale)
    smallest = -((((1 << _DIFFERENCE_BITS) - 1) << (31 - _DIFFERENCE_BITS)) >> shift)
    model.graph.operators.pop()
    model.graph.outputs = np.asarray([source], np.int32)
    model.model.signatureDefs = None
    rows, columns = math.prod(shape[:-1]), shape[-1]
    return f"eo_softmax_s8(output, output, {rows}, {columns}, {multiplier}, {shift}, {smallest});"


def _step(real: float) -> tuple[int, int]:
    """Return what a step of softmax's input is worth in units of 2^-26, as multiplier / 2^31 × 2^shift."""
    scaled = min(real * (1 << (31 - _DIFFERENCE_BITS)), (1 << 31) - 1.0)
    fraction, shift = math.frexp(scaled)
    # Half a unit goes away from zero, as C's round does.
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier, shift = multiplier // 2, shift + 1
    if shift < 0:
        raise refuse("SOFTMAX reads values whose steps are too small for its arithmetic")
    return multiplier, shift


def _header(name: str, cpu: blobs.Cpu, made: bakenn_adapter.Generated, model: FlatModel) -> blobs.Header:
    shapes = [model.shape(int(end[0])) for end in (model.graph.inputs, model.graph.outputs)]
    return blobs.Header(
        cpu=cpu,
        entry=ENTRY,
        arena_size=made.arena_bytes,
        arena_align=max(16, made.arena_align),
        input=TensorSpec(name=INPUT, dtype="int8", shape=shapes[0]),
        output=TensorSpec(name=OUTPUT, dtype="int8", shape=shapes[1]),
        name=name,
    )


def _check_arena(header: blobs.Header, limits: Limits) -> None:
    if limits.arena_bytes is not None and header.ram_size > limits.arena_bytes:
        raise refuse(
            f"{header.name} needs {header.ram_size} bytes of RAM (arena {header.arena_size}, input "
            f"{header.input.nbytes}, output {header.output.nbytes}), the profile offers {limits.arena_bytes} "
            f"({limits.arena_line})"
        )


def _check_flash(blob: bytes, limits: Limits) -> None:
    size = len(blob) + blobs.TRAILER_SIZE
    if limits.flash_bytes is not None and size > limits.flash_bytes:
        raise refuse(
            f"the blob needs {size} bytes of flash with its signature, the profile offers {limits.flash_bytes} "
            f"({limits.flash_line})"
        )


def _compiled(name: str, cpu: blobs.Cpu, made: bakenn_adapter.Generated, code: _Code, scratch: Path) -> bytes:
    entry = scratch / "entry.c"
    arena = "arena" if made.arena_bytes else "0"
    entry.write_text(
        f'#include "{made.header}"\n#include "eo_softmax.h"\n'
        '__attribute__((section(".text.eo_entry")))\n'
        "int32_t eo_model_entry(const void *input, void *output, void *arena) {\n"
        f"    (void)arena;\n    {made.function}({arena}, input, output);\n    {code.softmax}\n    return 0;\n}}\n"
    )
    return compile_code(
        cpu, name, [entry, BLOB_DIR / "softmax.c", *made.sources], folders=[*made.folders, BLOB_DIR],
        flags=[*_FLAGS, *made.defines],
    )  # fmt: skip


def _notice(made: bakenn_adapter.Generated) -> str:
    parts = ["What the code of this blob is made of, and its licences.\n", _OWN_LICENCE]
    texts: dict[str, list[str]] = {}
    for name, path in sorted(made.licences.items()):
        texts.setdefault(path.read_text().strip(), []).append(name)
    parts += [f"{', '.join(names)}:\n\n{text}\n" for text, names in texts.items()]
    parts.append(
        "libgcc: GPL-3.0 with the GCC Runtime Library Exception, which leaves the blob under its own licence.\n"
    )
    return f"\n{'=' * 78}\n\n".join(parts)
