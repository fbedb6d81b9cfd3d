"""The program of `McuBackend`'s process: runs one int8 TFLite model in TensorFlow Lite for Microcontrollers.

It shares no process with LiteRT, beside which it hangs. It writes frames of msgpack to what was its standard output:
first what the model is, then one answer for each set of tensors that it reads from standard input.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Union

import msgspec

# An arena that no microcontroller has: what a model needs of it is measured.
_ARENA_BYTES = 64 << 20
_MAX_FRAME_BYTES = 256 << 20
_LENGTH = struct.Struct(">I")
_ARENA = re.compile(rb"Arena allocation total (\d+) bytes")


class Tensor(msgspec.Struct, frozen=True):
    """One of the model's inputs or outputs."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Model(msgspec.Struct, frozen=True, tag=True):
    """What was loaded, and the arena that it needs here: on a 32-bit microcontroller it is smaller."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    arena_bytes: int


class Feeds(msgspec.Struct, frozen=True, tag=True):
    """Tensors by name, as their bytes."""

    tensors: dict[str, bytes]


class Answer(msgspec.Struct, frozen=True, tag=True):
    """Tensors by name, as their bytes."""

    tensors: dict[str, bytes]


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """Why the model cannot be run."""

    why: str


FromInterpreter = Union[Model, Answer, Refusal]  # noqa: UP007  evaluated at run time, also on Python 3.10


def write_frame(target: IO[bytes], message: msgspec.Struct) -> None:
    """Write one message.

    Raises:
        OSError: The other side is gone.
    """
    body = msgspec.msgpack.encode(message)
    target.write(_LENGTH.pack(len(body)) + body)
    target.flush()


def read_frame(read: Callable[[int], bytes], kind: Any) -> Any:
    """Read one message; None at the end.

    Args:
        read: Returns so many bytes, fewer only at the end.
        kind: Type of the message.

    Raises:
        ValueError: The other side does not keep to the form.
    """
    head = read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > _MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return msgspec.msgpack.decode(read(length), type=kind)


def main() -> None:
    """Load the model that the first argument names, and answer until standard input ends."""
    out = os.fdopen(os.dup(1), "wb")
    with tempfile.TemporaryFile() as said:
        # The interpreter prints what it allocates, and why it refuses.
        for number in (1, 2):
            os.dup2(said.fileno(), number)
        try:
            interpreter, model = _load(sys.argv[1], said)
        except (RuntimeError, ValueError, MemoryError) as error:
            write_frame(out, _refusal(error, said))
            return
        write_frame(out, model)
        while (feeds := read_frame(sys.stdin.buffer.read, Feeds)) is not None:
            write_frame(out, _run(interpreter, model, feeds, said))


def _refusal(error: Exception, said: IO[bytes]) -> Refusal:
    """Return what the interpreter said in its own words, where it said something."""
    said.seek(0)
    words = said.read().decode(errors="replace").split("\n")
    why = " ".join(line.strip() for line in words if line.strip() and "Allocator]" not in line)
    return Refusal(f"{error} {why}"[:400].strip())


def _load(path: str, said: IO[bytes]) -> tuple[Any, Model]:
    from tflite_micro.python.tflite_micro import runtime
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    data = Path(path).read_bytes()
    graph = schema.Model.GetRootAs(data)
    if graph.SubgraphsLength() != 1:
        raise ValueError(f"{graph.SubgraphsLength()} subgraphs; a microcontroller runs one")
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=_ARENA_BYTES)
    interpreter.print_allocations()
    said.seek(0)
    found = _ARENA.search(said.read())
    subgraph = graph.Subgraphs(0)
    names = [str(subgraph.Tensors(index).Name(), "utf-8") for index in range(subgraph.TensorsLength())]
    inputs = [names[index] for index in subgraph.InputsAsNumpy()]
    outputs = [names[index] for index in subgraph.OutputsAsNumpy()]
    return interpreter, Model(
        tuple(_tensor(name, interpreter.get_input_details(place)) for place, name in enumerate(inputs)),
        tuple(_tensor(name, interpreter.get_output_details(place)) for place, name in enumerate(outputs)),
        0 if found is None else int(found[1]),
    )


def _tensor(name: str, detail: Any) -> Tensor:
    import numpy as np

    return Tensor(name, np.dtype(detail["dtype"]).name, tuple(int(size) for size in detail["shape"]))


def _run(interpreter: Any, model: Model, feeds: Feeds, said: IO[bytes]) -> Answer | Refusal:
    import numpy as np

    try:
        for place, tensor in enumerate(model.inputs):
            values = np.frombuffer(feeds.tensors[tensor.name], tensor.dtype).reshape(tensor.shape)
            interpreter.set_input(values, place)
        interpreter.invoke()
        return Answer({item.name: interpreter.get_output(place).tobytes() for place, item in enumerate(model.outputs)})
    except (RuntimeError, ValueError, KeyError) as error:
        return _refusal(error, said)


if __name__ == "__main__":
    main()
