"""Microcontrollers behind the `Backend` protocol.

A blob runs on an emulated board of its processor. An int8 TFLite model, of which a blob is made, runs in TensorFlow
Lite for Microcontrollers: it computes what the blob computes, bit for bit, so a bundle is proved with it. Times of
neither say anything of a microcontroller.
"""

from __future__ import annotations

import importlib.metadata
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.tensors import DTYPES, TensorSpec
from edgeops.runtimes.mcu_interpreter import Answer, Feeds, FromInterpreter, Model, Refusal, read_frame, write_frame
from edgeops.runtimes.protocol import Availability, FeedCheck, LoadOptions, Session, Tensors
from firmware_bridge import blobs

if TYPE_CHECKING:
    from firmware_bridge.proving import ProvingBoard

_PACKAGE = "tflite-micro"
_FLATBUFFER_MARK = b"TFL3"
_WITHIN_S = 60.0


class McuBackend:
    """An int8 TFLite model as a microcontroller runs it."""

    name = "mcu"

    def available(self) -> Availability:
        """Say whether tflite-micro is installed, and its version. It is not imported: it hangs beside LiteRT."""
        try:
            return Availability(importlib.metadata.version(_PACKAGE))
        except importlib.metadata.PackageNotFoundError:
            return Availability(None, f"{_PACKAGE} is not installed")

    def load(self, artifact: Path, options: LoadOptions) -> Session:
        """Load a blob or a .tflite file; see `Backend.load`. There is one thread, and no setting."""
        try:
            with artifact.open("rb") as model:
                mark = model.read(8)
        except OSError as error:
            raise EdgeopsError("E-RUNTIME-LOAD", f"{artifact}: {error.strerror}") from error
        if mark[:4] == blobs.MARK:
            return _BoardSession(artifact)
        if self.available().version is None:
            raise EdgeopsError("E-RUNTIME-MISSING", f"{_PACKAGE} is not installed", "pip install 'edgeops[mcu]'")
        if mark[4:] != _FLATBUFFER_MARK:
            raise EdgeopsError("E-RUNTIME-LOAD", f"{artifact} is neither a blob nor a TFLite model")
        return _McuSession(artifact)


class _BoardSession:
    """A blob on an emulated board."""

    def __init__(self, artifact: Path) -> None:
        from firmware_bridge import proving

        try:
            self._board: ProvingBoard | None = proving.ProvingBoard(artifact.read_bytes(), count_instructions=True)
        except EdgeopsError as error:
            missing = error.code in ("E-DEPENDENCY", "E-NET-UNREACHABLE", "E-TOOLCHAIN", "E-MCU-PORT")
            code = "E-RUNTIME-MISSING" if missing else "E-RUNTIME-LOAD"
            raise EdgeopsError(code, f"{artifact}: {error.what}", error.next_step) from error
        except OSError as error:
            raise EdgeopsError("E-RUNTIME-LOAD", f"{artifact}: {error.strerror}") from error
        self._header = self._board.header
        self._name = self._board.name
        self._check = FeedCheck(self.inputs)

    @property
    def provider(self) -> str:
        """What runs it."""
        return f"emulated board {self._name}"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The blob's input."""
        return (self._header.input,)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The blob's output."""
        return (self._header.output,)

    @property
    def arena_bytes(self) -> int | None:
        """The arena that the blob needs."""
        return self._header.arena_size

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Run one inference; see `Session.run`."""
        self._check(feeds)
        if self._board is None:
            raise EdgeopsError("E-RUNTIME-RUN", "the board's session is closed")
        spec = self._header.output
        try:
            found = self._board.infer(np.ascontiguousarray(feeds[self._header.input.name]).tobytes())
            answer = np.frombuffer(found.output, spec.dtype).reshape(spec.shape)
        except (EdgeopsError, ValueError) as error:
            raise EdgeopsError("E-RUNTIME-RUN", f"board {self._name}: {error}") from error
        return {spec.name: answer}

    def close(self) -> None:
        """Take the board's power."""
        board, self._board = self._board, None
        if board is not None:
            board.close()

    def __del__(self) -> None:
        if hasattr(self, "_board"):
            self.close()


class _McuSession:
    """A model in a process of its own."""

    def __init__(self, artifact: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-m", "edgeops.runtimes.mcu_interpreter", str(artifact.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        said = self._ask(None, "E-RUNTIME-LOAD")
        if not isinstance(said, Model):
            self.close()
            why = said.why if isinstance(said, Refusal) else "it answered out of turn"
            raise EdgeopsError("E-RUNTIME-LOAD", f"tflite-micro refuses {artifact}: {why}")
        if odd := [tensor for tensor in (*said.inputs, *said.outputs) if tensor.dtype not in DTYPES]:
            self.close()
            raise EdgeopsError("E-RUNTIME-LOAD", f"tensor {odd[0].name!r} has type {odd[0].dtype}")
        self._inputs, self._outputs = (
            tuple(TensorSpec(name=one.name, dtype=one.dtype, shape=one.shape) for one in ends)
            for ends in (said.inputs, said.outputs)
        )
        self._check = FeedCheck(self._inputs)
        self._arena_bytes = said.arena_bytes

    @property
    def provider(self) -> str:
        """What runs it."""
        return "tflite-micro on the host"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs."""
        return self._outputs

    @property
    def arena_bytes(self) -> int | None:
        """The arena that the model needs."""
        return self._arena_bytes

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Run one inference; see `Session.run`."""
        self._check(feeds)
        if self._process is None:
            raise EdgeopsError("E-RUNTIME-RUN", "tflite-micro: the session is closed")
        said = self._ask(
            Feeds({name: np.ascontiguousarray(values).tobytes() for name, values in feeds.items()}), "E-RUNTIME-RUN"
        )
        if not isinstance(said, Answer):
            why = said.why if isinstance(said, Refusal) else "it answered out of turn"
            raise EdgeopsError("E-RUNTIME-RUN", f"tflite-micro: {why}")
        return {
            spec.name: np.frombuffer(said.tensors[spec.name], spec.dtype).reshape(spec.shape) for spec in self._outputs
        }

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def __del__(self) -> None:
        self.close()

    def _ask(self, feeds: Feeds | None, code: str) -> Model | Answer | Refusal:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        deadline = time.monotonic() + _WITHIN_S
        try:
            if feeds is not None:
                write_frame(process.stdin, feeds)
            said: Model | Answer | Refusal | None = read_frame(lambda size: self._read(size, deadline), FromInterpreter)
        except (OSError, ValueError) as error:
            said = None
            reason = str(error)
        else:
            reason = "its process ended"
        if said is None:
            status = process.poll()
            self.close()
            raise EdgeopsError(code, f"tflite-micro: {reason}" + ("" if status is None else f" with status {status}"))
        return said

    def _read(self, size: int, deadline: float) -> bytes:
        """Read so many bytes, fewer at the end.

        Raises:
            TimeoutError: They do not come.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor, data = self._process.stdout.fileno(), b""
        while len(data) < size:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("it does not answer")
            part = os.read(descriptor, size - len(data))
            if not part:
                break
            data += part
        return data
