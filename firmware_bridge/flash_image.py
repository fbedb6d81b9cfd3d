"""The content of a flash that leaves the factory with a model: `SPEC.md`, "Slot store"."""

from __future__ import annotations

import struct
import zlib

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge import blobs

METADATA_SECTORS = 2
_RECORD = struct.Struct("<4sIBBBBIB3xI32s4x")
_NO_SLOT = 255
_ERASED = b"\xff"


def flash_image(blob: bytes, *, sector_size: int, slot_sectors: int) -> bytes:
    """Return the flash of a device whose active slot holds a signed blob, and whose other slot is empty.

    Args:
        blob: Header, code and trailer; the device checks it at boot.
        sector_size: Bytes of a sector.
        slot_sectors: Sectors of a slot.

    Raises:
        EdgeopsError: E-MCU-BLOB; it is not signed, or larger than a slot.
    """
    signature = blobs.read_trailer(blob[blobs.unsigned_size(blob) :])
    size = sector_size * slot_sectors
    if len(blob) > size:
        raise EdgeopsError("E-MCU-BLOB", f"the model blob has {len(blob)} bytes, a slot has {size}")
    record = _RECORD.pack(b"EOMD", 1, 0, _NO_SLOT, 0, 0, signature.counter, _NO_SLOT, 0, bytes(32))
    record += struct.pack("<I", zlib.crc32(record))
    metadata = record.ljust(METADATA_SECTORS * sector_size, _ERASED)
    return metadata + blob.ljust(2 * size, _ERASED)
