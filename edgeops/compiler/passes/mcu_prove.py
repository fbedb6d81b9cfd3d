"""Run a blob on an emulated board and hold every output against the interpreter's, byte for byte."""

from __future__ import annotations

import statistics
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.compiler.engine import program_versions
from edgeops.compiler.passes import Outcome, Work, refuse, tflite
from edgeops.compiler.passes.mcu_blob import BLOB_NAME
from edgeops.compiler.passes.samples import read_samples
from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import OnBoard
from edgeops.contracts.tensors import TensorSpec
from edgeops.runtimes.bundle_session import BundleSession
from edgeops.runtimes.protocol import LoadOptions, Session, Tensors
from edgeops.runtimes.registry import backend
from firmware_bridge import blobs

_COMPILER = "arm-none-eabi-gcc"


class McuProve:
    """Prove that the blob computes what the TFLite model does, on the processor's own instructions."""

    tools = ("numpy", "tflite-micro")
    programs = (_COMPILER, "qemu-system-arm")
    requires: frozenset[str] = frozenset({"mcu-blob"})
    ensures = frozenset({"mcu-proved"})

    def run(self, work: Work) -> Outcome:
        """Parameters: `manifest`, as `judge` bound the TFLite model; `indices` of the judged samples.

        Inputs: `samples`, `judged`. Notes: `on_board`, an `OnBoard`.

        Raises:
            EdgeopsError: E-COMPILE-CANDIDATE; an output differs. E-DEPENDENCY; no emulator.
        """
        from firmware_bridge.proving import ProvingBoard

        manifest = msgspec.convert(work.parameters["manifest"], BundleManifest)
        samples = read_samples(work.inputs["samples"], "judged")
        blob = (work.source / BLOB_NAME).read_bytes()
        oracle = _Recorder(backend("mcu").load(work.source / tflite.MODEL_NAME, LoadOptions()))
        instructions: list[int] = []
        with BundleSession(oracle, manifest) as session, ProvingBoard(blob, count_instructions=True) as board:
            for index in work.parameters["indices"]:
                session.run({name: np.asarray(array[index]) for name, array in samples.items()})
                fed, wanted = oracle.last
                try:
                    found = board.infer(fed)
                except EdgeopsError as error:
                    raise refuse(f"golden vector {index} on {board.name}: {error.what}") from error
                if found.output != wanted:
                    raise refuse(_difference(board.name, index, found.output, wanted))
                instructions.append(found.instructions)
            header, name = board.header, board.name
        on_board = OnBoard(
            board=name,
            vectors=len(instructions),
            output_bytes=len(instructions) * header.output.nbytes,
            instructions=int(statistics.median(instructions)),
            flash_bytes=len(blob),
            arena_bytes=header.arena_size,
            ram_bytes=header.ram_size,
            interpreter_arena_bytes=int(work.input_notes["judged"].get("interpreter_arena_bytes") or 0),
            kernels=str(work.notes["kernels"]),
            compiler=program_versions((_COMPILER,))[_COMPILER] if header.cpu is not blobs.Cpu.X86_64 else "cc",
        )
        return Outcome(frozenset({"mcu-proved"}), {"on_board": msgspec.to_builtins(on_board)})


def _difference(board: str, index: int, found: bytes, wanted: bytes) -> str:
    if len(found) != len(wanted):
        return f"golden vector {index} on {board}: {len(found)} bytes of output, the interpreter gives {len(wanted)}"
    differing = [place for place, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other]
    first = differing[0]
    return (
        f"golden vector {index} on {board}: {len(differing)} of {len(wanted)} bytes differ from the interpreter's, "
        f"the first at {first}: {found[first]:#04x}, wanted {wanted[first]:#04x}"
    )


class _Recorder:
    """A session that remembers the bytes that went in and came out last."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.last = (b"", b"")

    @property
    def provider(self) -> str:
        return self._session.provider

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._session.outputs

    @property
    def arena_bytes(self) -> int | None:
        return self._session.arena_bytes

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        answer = self._session.run(feeds)
        (fed,), (given,) = feeds.values(), answer.values()
        self.last = (np.ascontiguousarray(fed).tobytes(), np.ascontiguousarray(given).tobytes())
        return answer

    def close(self) -> None:
        self._session.close()
