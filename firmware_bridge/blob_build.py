"""Compile C into the position-independent code of a model blob."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge import blobs
from firmware_bridge.build import ARM, FIRMWARE_DIR, HOST, Compiler, build

BLOB_DIR = FIRMWARE_DIR / "blob"
_OBJCOPY_TIMEOUT_S = 60
_BASES = (0, 0x00123400)


class Target(NamedTuple):
    """How code is made for a processor."""

    compiler: Compiler
    objcopy: str
    flags: tuple[str, ...]


_THUMB = ("-mthumb", "-mfloat-abi=soft")
_X86_64 = ("-fcf-protection=none", "-fno-stack-protector", "-fno-asynchronous-unwind-tables")
TARGETS = {
    blobs.Cpu.CORTEX_M3: Target(ARM, "arm-none-eabi-objcopy", ("-mcpu=cortex-m3", *_THUMB)),
    blobs.Cpu.CORTEX_M4: Target(ARM, "arm-none-eabi-objcopy", ("-mcpu=cortex-m4", *_THUMB)),
    blobs.Cpu.CORTEX_M7: Target(ARM, "arm-none-eabi-objcopy", ("-mcpu=cortex-m7", *_THUMB)),
    blobs.Cpu.X86_64: Target(HOST, "objcopy", _X86_64),
}
# Offset of the entry: it stands first in the code.
ENTRY = blobs.HEADER_SIZE


def compile_code(
    cpu: blobs.Cpu,
    name: str,
    sources: Sequence[Path],
    *,
    folders: Sequence[Path] = (),
    flags: Sequence[str] = ("-O2",),
) -> bytes:
    """Compile and link sources into code that runs wherever it lies.

    Args:
        cpu: Processor.
        name: For messages.
        sources: C files; one defines `int32_t eo_model_entry(const void *, void *, void *)` in `.text.eo_entry`.
        folders: Searched for headers.
        flags: Optimization, and defines.

    Raises:
        EdgeopsError: E-TOOLCHAIN; it does not compile, or needs a global offset table, fixed addresses or variables.
            E-DEPENDENCY; no compiler.
    """
    target = TARGETS[cpu]
    script = BLOB_DIR / "blob.ld"
    # fmt: off
    link = (
        "-ffreestanding", "-ffunction-sections", "-fdata-sections", "-fpie", "-fno-tree-loop-distribute-patterns",
        "-include", str(BLOB_DIR / "hidden.h"), "-nostartfiles", "-nostdlib", "-no-pie",
        "-Wl,--gc-sections", "-Wl,--build-id=none", "-Wl,-z,noexecstack", f"-Wl,-T,{script}", "-lgcc",
    )
    # fmt: on
    here, elsewhere = (
        _binary(
            target,
            build(
                target.compiler,
                f"{name}-{base:x}.elf",
                [*sources, BLOB_DIR / "memory.c"],
                [*target.flags, *flags, *link, f"-Wl,--defsym=eo_base={base}"],
                folders=folders,
                inputs=[script, BLOB_DIR / "hidden.h"],
            ),
        )
        for base in _BASES
    )
    if here != elsewhere:
        raise EdgeopsError("E-TOOLCHAIN", f"the code of {name} depends on where it lies: it has addresses in it")
    return here


def _binary(target: Target, linked: Path) -> bytes:
    """Return the code section of a linked blob."""
    program = Compiler(target.objcopy, target.compiler.package).find()
    with tempfile.TemporaryDirectory(prefix="edgeops-blob-") as folder:
        out = Path(folder) / "code"
        command = [program, "-O", "binary", "--only-section=.code", str(linked), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_OBJCOPY_TIMEOUT_S)
        if done.returncode != 0:
            raise EdgeopsError("E-TOOLCHAIN", f"{program}: {done.stderr.strip()[:400]}")
        return out.read_bytes()
