"""Figures of microcontrollers on emulated boards: instructions are counted, the rest is size and wall time.

    python -m benchmarks.mcu [--models mnist-mcu,basic-motions] [--out FILE]

Prints a table of each; `--out` writes them as JSON. Instructions are no cycles, and QEMU's UART has no baud rate: what
an upload takes here is what protocol, codec and flash driver take.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import models
from edgeops import compiler
from edgeops.cli.output import print_table
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.tensors import TensorSpec
from firmware_bridge import blobs
from firmware_bridge.blob_build import ENTRY, compile_code
from firmware_bridge.build import ARM, FIRMWARE_DIR, build
from firmware_bridge.emulated import QemuBoard
from firmware_bridge.link import SmpLink
from firmware_bridge.ports import SerialPort

PROFILES = ("cortex-m3", "cortex-m4", "cortex-m7")
_SERVER = ("frame", "cbor", "commands", "app")
_UPLOAD_BYTES = 100_000
_PORTABLE = """\
name = "{name}"
title = "{extends} without its own instructions"
extends = "{extends}"
[[runtimes]]
name = "mcu"
runtime_min = "1"
precisions = ["int8"]
options = {{ cpu = "{extends}", kernels = "portable" }}
source = "benchmark"
"""
# The sensor's raw values reach far beyond most of them: int8 keeps every class, and no more of the logits.
_LOOSER = "\n[gates]\nsqnr_min_db = 10\n"


def main() -> None:
    """Measure all, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="mnist-mcu,basic-motions", help="names, with commas")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    wish = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-mcu-") as folder:
        figures = {
            "upload": upload(Path(folder)),
            "server_text_bytes": server_text(),
            "models": [row for name in wish.models.split(",") for row in inferences(name, Path(folder))],
        }
    uploaded = figures["upload"]
    print(f"upload on mps2-an386: {uploaded['kib_per_s']:.1f} KiB/s, packets of {uploaded['buffer']} bytes")
    print(f"SMP server beside crypto, Cortex-M4 -Os: {figures['server_text_bytes']} bytes of text")
    columns = ("model", "profile", "kernels", "instructions", "flash", "arena", "tflite-micro's arena", "vectors equal")
    print_table(columns, [tuple(str(row[column]) for column in columns) for row in figures["models"]])
    if wish.out is not None:
        wish.out.write_text(json.dumps(figures, indent=2) + "\n")


def upload(folder: Path) -> dict[str, Any]:
    """Upload a blob to an emulated M4 with the buffers that it negotiates; the device checks its hash at the end."""
    spec = TensorSpec(name="x", dtype="int8", shape=(1, 4))
    source = folder / "nothing.c"
    source.write_text(
        "#include <stdint.h>\n"
        '__attribute__((section(".text.eo_entry"))) int32_t eo_model_entry(const void *i, void *o, void *a) '
        "{ (void)i; (void)o; (void)a; return 0; }\n"
    )
    code = compile_code(blobs.Cpu.CORTEX_M4, "nothing", [source]) + random.Random(1).randbytes(_UPLOAD_BYTES)
    blob = blobs.pack(blobs.Header(blobs.Cpu.CORTEX_M4, ENTRY, 16, 16, spec, spec, "nothing"), code)
    with QemuBoard("mps2-an386", folder / "flash.bin", [bytes(32)]) as board, SmpLink(SerialPort(board.url)) as link:
        size = link.buffer_size()
        began_s = time.monotonic()
        link.upload(blob + bytes(blobs.TRAILER_SIZE))
        took_s = time.monotonic() - began_s
    return {"bytes": len(blob), "seconds": took_s, "kib_per_s": len(blob) / 1024 / took_s, "buffer": size}


def server_text() -> int:
    """Return the bytes of text of the protocol server: frames, CBOR, commands and the application's loop."""
    total = 0
    for name in _SERVER:
        flags = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=soft", "-Os", "-c"]
        made = build(ARM, f"{name}.o", [FIRMWARE_DIR / "src" / f"{name}.c"], flags, folders=[FIRMWARE_DIR / "include"])
        said = subprocess.run(["arm-none-eabi-size", made], check=True, capture_output=True, text=True, timeout=30)
        total += int(said.stdout.splitlines()[1].split()[0])
    return total


def inferences(name: str, folder: Path) -> list[dict[str, Any]]:
    """Compile a model for each processor, and portably for those that have instructions of their own."""
    handover = folder / name
    handover.mkdir()
    for file in models.handover(name).iterdir():
        (handover / file.name).write_bytes(file.read_bytes())
    declared = handover / "handover.toml"
    declared.write_text(declared.read_text() + _LOOSER)
    portable = []
    for profile in PROFILES[1:]:
        path = folder / f"{profile}-portable.toml"
        path.write_text(_PORTABLE.format(name=path.stem, extends=profile))
        portable.append(str(path))
    result = compiler.compile(handover, [*PROFILES, *portable], folder / f"{name}-out")
    rows = []
    for one in result.profiles:
        proof = one.chosen.on_board
        if proof is None:
            raise EdgeopsError("E-COMPILE-CANDIDATE", f"{name} for {one.profile} was not proved: {one.missed}")
        rows.append(
            {
                "model": name,
                "profile": one.profile,
                "kernels": proof.kernels,
                "instructions": proof.instructions,
                "flash": proof.flash_bytes,
                "arena": proof.arena_bytes,
                "tflite-micro's arena": proof.interpreter_arena_bytes,
                "vectors equal": f"{proof.vectors} of {proof.vectors}, {proof.output_bytes} bytes",
            }
        )
    return rows


if __name__ == "__main__":
    main()
