"""Model blobs: header, code, signed trailer. `SPEC.md`, "Model blob"."""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.tensors import TensorSpec

ABI = 1
HEADER_SIZE = 160
TRAILER_SIZE = 160
ALIGN_MAX = 64
_HEADER = struct.Struct("<4sHHB4B3xIIIIII4H4H8x32s64s")
_TRAILER = struct.Struct("<4s4sI56s28x64s")
_SIGNED_TRAILER_SIZE = 96
_DOMAIN = b"edgeops mcu model blob 1".ljust(32, b"\0")
MARK = b"EOM1"
_TRAILER_MARK = b"EOS1"
_DTYPES = ("", "int8", "uint8", "int16", "int32", "float32")
_NEXT = "Compile the model again for this device's profile."


class Cpu(enum.IntEnum):
    """The processor that a blob's code is for."""

    CORTEX_M3 = 3
    CORTEX_M4 = 4
    CORTEX_M7 = 7
    X86_64 = 64


class Header(NamedTuple):
    """What a blob is.

    Args:
        cpu: Processor of the code.
        entry: Offset of the first instruction from the blob's first byte.
        arena_size: Bytes of arena.
        arena_align: Alignment of arena, input and output.
        input: The model's input.
        output: The model's output.
        name: The model's name.
    """

    cpu: Cpu
    entry: int
    arena_size: int
    arena_align: int
    input: TensorSpec
    output: TensorSpec
    name: str

    @property
    def ram_size(self) -> int:
        """Bytes of RAM that the model needs: arena, input and output, each from its own aligned address."""
        sizes = (self.arena_size, self.input.nbytes, self.output.nbytes)
        return sum(-(-size // ALIGN_MAX) * ALIGN_MAX for size in sizes)


class Signature(NamedTuple):
    """What a trailer says: who signed, the anti-rollback counter, and the version."""

    key_id: bytes
    counter: int
    version: str


def key_id(public_key: bytes) -> bytes:
    """Return how trailers name a public key (32 bytes): the first four bytes of its SHA-256."""
    return hashlib.sha256(public_key).digest()[:4]


def identity(blob: bytes) -> bytes:
    """Return how devices name a signed blob: the SHA-256 of its header and the signed part of its trailer.

    Raises:
        EdgeopsError: E-MCU-BLOB; it is no signed blob.
    """
    trailer = blob[unsigned_size(blob) :]
    read_trailer(trailer)
    return hashlib.sha256(blob[:HEADER_SIZE] + trailer[:_SIGNED_TRAILER_SIZE]).digest()


def unsigned_size(blob: bytes) -> int:
    """Return how many bytes header and code have, as the header says.

    Raises:
        EdgeopsError: E-MCU-BLOB; it is no blob.
    """
    if len(blob) < HEADER_SIZE or blob[:4] != MARK:
        raise EdgeopsError("E-MCU-BLOB", "this is no model blob", _NEXT)
    return HEADER_SIZE + int.from_bytes(blob[16:20], "little")


def pack(header: Header, code: bytes) -> bytes:
    """Return the unsigned blob: header and code.

    Raises:
        EdgeopsError: E-MODEL-UNSUPPORTED; a tensor's type, rank or size, or the model's name, cannot be carried.
    """
    shapes: list[int] = []
    kinds: list[int] = []
    for spec in (header.input, header.output):
        if spec.dtype not in _DTYPES or not 1 <= len(spec.shape) <= 4 or not all(0 < n < 65536 for n in spec.shape):
            raise EdgeopsError(
                "E-MODEL-UNSUPPORTED",
                f"{spec.name}: {spec.dtype}{list(spec.shape)} cannot go to a microcontroller",
                "Give the model inputs and outputs of 1 to 4 dimensions, int8.",
            )
        kinds += [_DTYPES.index(spec.dtype), len(spec.shape)]
        shapes += [*spec.shape, *[0] * (4 - len(spec.shape))]
    return (
        _HEADER.pack(
            MARK, HEADER_SIZE, ABI, header.cpu, *kinds, len(code), header.entry, header.arena_size, header.arena_align,
            header.input.nbytes, header.output.nbytes, *shapes, hashlib.sha256(code).digest(), _text(header.name, 64),
        )
        + code
    )  # fmt: skip


def _text(value: str, size: int) -> bytes:
    raw = value.encode("ascii", "replace")
    if not value or len(raw) > size or not all(0x20 < byte < 0x7F for byte in raw):
        raise EdgeopsError("E-MODEL-UNSUPPORTED", f"{value!r} does not fit the {size} characters of a blob's header")
    return raw.ljust(size, b"\0")


def sign(blob: bytes, *, version: str, counter: int, public_key: bytes, signer: Callable[[bytes], bytes]) -> bytes:
    """Return the trailer that makes an unsigned blob installable.

    Args:
        blob: Header and code.
        version: Version of the release.
        counter: Anti-rollback counter: devices refuse a smaller one than that of what they confirmed.
        public_key: Raw Ed25519 public key, 32 bytes.
        signer: Returns the Ed25519 signature (64 bytes) of a message.

    Raises:
        EdgeopsError: E-MCU-BLOB; this is no unsigned blob. E-MODEL-UNSUPPORTED; the version is too long.
    """
    read(blob)
    body = _TRAILER.pack(_TRAILER_MARK, key_id(public_key), counter, _text(version, 56), bytes(64))
    body = body[:_SIGNED_TRAILER_SIZE]
    return body + signer(_DOMAIN + blob[:HEADER_SIZE] + body)


def read(blob: bytes) -> Header:
    """Read and check a blob's header against the code that follows; a trailer may follow that.

    Raises:
        EdgeopsError: E-MCU-BLOB; it is no blob, or damaged.
    """
    unsigned_size(blob)
    (_, size, abi, cpu, in_dtype, in_rank, out_dtype, out_rank, code_size, entry, arena, align, in_size, out_size,
     *rest) = _HEADER.unpack_from(blob)  # fmt: skip
    if size != HEADER_SIZE or abi != ABI or cpu not in set(Cpu):
        raise EdgeopsError("E-MCU-BLOB", f"a model blob of ABI {abi} for CPU {cpu} is unknown here", _NEXT)
    code = blob[HEADER_SIZE : HEADER_SIZE + code_size]
    if len(code) != code_size or hashlib.sha256(code).digest() != rest[8]:
        raise EdgeopsError("E-MCU-BLOB", "the model blob's code is not the one that its header names", _NEXT)
    made = Header(
        cpu=Cpu(cpu),
        entry=entry,
        arena_size=arena,
        arena_align=align,
        input=_tensor("input", in_dtype, in_rank, rest[0:4], in_size),
        output=_tensor("output", out_dtype, out_rank, rest[4:8], out_size),
        name=rest[9].rstrip(b"\0").decode("ascii", "replace"),
    )
    if pack(made, code) != blob[: HEADER_SIZE + code_size]:
        raise EdgeopsError("E-MCU-BLOB", "the model blob's header has bytes that must be zero", _NEXT)
    return made


def _tensor(name: str, dtype: int, rank: int, shape: Sequence[int], size: int) -> TensorSpec:
    if not 1 <= dtype < len(_DTYPES) or not 1 <= rank <= 4 or 0 in shape[:rank]:
        raise EdgeopsError("E-MCU-BLOB", f"the model blob's {name} is of unknown type or shape", _NEXT)
    spec = TensorSpec(name=name, dtype=_DTYPES[dtype], shape=tuple(shape[:rank]))
    if spec.nbytes != size:
        raise EdgeopsError("E-MCU-BLOB", f"the model blob's {name} has {size} bytes and the shape {spec.shape}", _NEXT)
    return spec


def read_trailer(trailer: bytes) -> Signature:
    """Take a trailer apart, without checking its signature: devices do that.

    Raises:
        EdgeopsError: E-MCU-BLOB; it is none.
    """
    if len(trailer) != TRAILER_SIZE or trailer[:4] != _TRAILER_MARK:
        raise EdgeopsError("E-MCU-BLOB", "the model blob has no signature", "Publish the release: that signs it.")
    _, key, counter, version, _ = _TRAILER.unpack(trailer)
    return Signature(key, counter, version.rstrip(b"\0").decode("ascii", "replace"))
