"""MCUboot's images: a header, a body, and TLVs with the hash and the signature of both, as `imgtool sign` makes them.

Format: MCUboot's documentation, "Image format". The signature is checked by imgtool itself (extra `imgtool`).
"""

from __future__ import annotations

import hashlib
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError

MARK = (0x96F3B83D).to_bytes(4, "little")
HEADER_SIZE = 32
_HEADER = struct.Struct("<4sIHHIIBBHI4x")
_PAIR = struct.Struct("<HH")
_AREA, _PROTECTED_AREA = 0x6907, 0x6908
_ENCRYPTED = 0x04 | 0x08
_KEY_HASH, _COUNTER = 0x01, 0x50
_HASHES = {0x10: "sha256", 0x11: "sha384", 0x12: "sha512"}
_SIGNATURES = {0x20: "RSA-2048", 0x22: "ECDSA", 0x23: "RSA-3072", 0x24: "Ed25519"}
_NEXT = "Sign it again: imgtool sign."


class Image(NamedTuple):
    """A whole image.

    Args:
        version: As devices tell it: `1.2.3`, or `1.2.3.4` with a build number.
        hash: Of header, body and protected TLVs: how devices name it.
        signatures: Kinds of its signatures.
        key_hash: Hash of the key that signed, as the image says; empty: it does not.
        counter: Its security counter; None: it has none.
    """

    version: str
    hash: bytes
    signatures: tuple[str, ...]
    key_hash: bytes
    counter: int | None


def is_image(data: bytes) -> bool:
    """Say whether these bytes begin as an image does."""
    return data[: len(MARK)] == MARK


def read(data: bytes) -> Image:
    """Take an image apart and check its sizes, its TLVs and its hash; not its signature.

    Raises:
        EdgeopsError: E-MCU-IMAGE; it is none, damaged, encrypted, or has something behind it.
    """
    if len(data) < HEADER_SIZE or not is_image(data):
        raise _bad("it does not begin as one", "Give the signed .bin, no .hex or .elf.")
    _, _, header_size, protected_size, body_size, flags, *version = _HEADER.unpack_from(data)
    body_end = header_size + body_size
    if header_size < HEADER_SIZE or body_end > len(data):
        raise _bad(f"a header of {header_size} and a body of {body_size} bytes do not fit its {len(data)}")
    if flags & _ENCRYPTED:
        raise _bad("it is encrypted, so that its hash cannot be checked here", "Sign it without --encrypt.")
    protected, hashed_end = _area(data, body_end, _PROTECTED_AREA) if protected_size else ([], body_end)
    if hashed_end - body_end != protected_size:
        raise _bad(f"its protected TLVs have {hashed_end - body_end} bytes, its header says {protected_size}")
    entries, end = _area(data, hashed_end, _AREA)
    if end != len(data):
        raise _bad(f"{len(data) - end} bytes follow its TLVs", "Sign it without --pad: devices fill their slots.")
    found = [(_HASHES[kind], value) for kind, value in entries if kind in _HASHES]
    if len(found) != 1:
        raise _bad(f"it has {len(found)} hashes")
    ((name, value),) = found
    if hashlib.new(name, data[:hashed_end]).digest() != value:
        raise _bad("its bytes are not those that its hash names")
    counters = [int.from_bytes(value, "little") for kind, value in protected if kind == _COUNTER and len(value) == 4]
    major, minor, revision, build = version
    return Image(
        version=f"{major}.{minor}.{revision}" + (f".{build}" if build else ""),
        hash=value,
        signatures=tuple(_SIGNATURES[kind] for kind, _ in entries if kind in _SIGNATURES),
        key_hash=next((value for kind, value in entries if kind == _KEY_HASH), b""),
        counter=counters[0] if counters else None,
    )


def verify(data: bytes, key_file: Path) -> Image:
    """Check an image, and that a key signed it.

    Args:
        data: The image.
        key_file: The key as PEM; the public half is enough.

    Raises:
        EdgeopsError: As `read`; E-MCU-IMAGE also if it has no signature, or not of this key. E-CONFIG; the file holds
            no key that signs images. E-DEPENDENCY; imgtool is missing.
    """
    image = read(data)
    try:
        from imgtool import keys
        from imgtool.image import Image as Signed
        from imgtool.image import VerifyResult
    except ImportError as error:
        raise EdgeopsError("E-DEPENDENCY", f"imgtool: {error}", "pip install 'edgeops[imgtool]'") from error
    try:
        key = keys.load(str(key_file))
    except (OSError, ValueError, TypeError) as error:
        raise EdgeopsError("E-CONFIG", f"{key_file}: {error}", "Give the signing key's public half as PEM.") from error
    if key is None or not hasattr(key, "sig_tlv"):
        raise EdgeopsError(
            "E-CONFIG", f"{key_file} holds no key that is open and signs images", "Give its public half."
        )
    if not image.signatures:
        raise _bad("it has no signature", "Sign it: imgtool sign --key KEY.")
    with tempfile.NamedTemporaryFile(suffix=".bin", prefix="edgeops-image-") as file:
        file.write(data)
        file.flush()
        try:
            found = Signed.verify(file.name, key)[0]
        except (TypeError, ValueError, struct.error):  # TLVs in an order that imgtool never writes
            found = VerifyResult.INVALID_SIGNATURE
    if found is not VerifyResult.OK:
        raise _bad(f"it is not signed by the key in {key_file} ({', '.join(image.signatures)}: {found.name})")
    return image


def _area(data: bytes, begin: int, mark: int) -> tuple[list[tuple[int, bytes]], int]:
    """Return the TLVs of an area, and where it ends."""
    if begin + _PAIR.size > len(data):
        raise _bad("it ends before its TLVs")
    found, size = _PAIR.unpack_from(data, begin)
    if found != mark or size < _PAIR.size or begin + size > len(data):
        raise _bad(f"its TLVs begin with {found:#06x} and have {size} bytes")
    return list(_entries(data[begin + _PAIR.size : begin + size])), begin + size


def _entries(area: bytes) -> Iterator[tuple[int, bytes]]:
    while area:
        if len(area) < _PAIR.size:
            raise _bad("its last TLV is cut off")
        kind, size = _PAIR.unpack_from(area)
        value, area = area[_PAIR.size : _PAIR.size + size], area[_PAIR.size + size :]
        if len(value) != size:
            raise _bad(f"its TLV {kind:#06x} of {size} bytes is cut off")
        yield kind, value


def _bad(why: str, next_step: str = _NEXT) -> EdgeopsError:
    return EdgeopsError("E-MCU-IMAGE", f"this is no MCUboot image that can be installed: {why}", next_step)
