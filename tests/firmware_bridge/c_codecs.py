"""The firmware's codecs, called from Python."""

from __future__ import annotations

import ctypes

from firmware_bridge.build import codec_library
from firmware_bridge.frames import Counts

_RECEIVER_SIZE = 8192  # more than the structure has
_PUT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint8)


class CCodecs:
    """`eo_frame.h`, `eo_digest.h`, `eo_cbor.h` and `eo_ed25519.h`."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(str(codec_library()))
        self.library.eo_frame_byte.restype = ctypes.c_size_t
        self.library.eo_crc16.restype = ctypes.c_uint16
        self.library.eo_crc32.restype = ctypes.c_uint32
        self.library.eo_ed25519_verify.restype = ctypes.c_bool
        self.library.eo_cbor_is_map.restype = ctypes.c_bool

    def encode(self, packet: bytes) -> bytes:
        out = bytearray()
        put = _PUT(lambda _context, byte: out.append(byte))
        self.library.eo_frame_send(packet, ctypes.c_size_t(len(packet)), put, None)
        return bytes(out)

    def receive(self, stream: bytes) -> tuple[list[bytes], Counts]:
        receiver = ctypes.create_string_buffer(_RECEIVER_SIZE)
        self.library.eo_frame_init(receiver)
        packet = ctypes.POINTER(ctypes.c_uint8)()
        packets = []
        for byte in stream:
            length = self.library.eo_frame_byte(receiver, ctypes.c_uint8(byte), ctypes.byref(packet))
            if length:
                packets.append(ctypes.string_at(packet, length))
        return packets, Counts(*(ctypes.c_uint32 * 3).from_buffer(receiver))

    def sha256(self, *parts: bytes) -> bytes:
        return self._sha("eo_sha256", 32, parts)

    def sha512(self, *parts: bytes) -> bytes:
        return self._sha("eo_sha512", 64, parts)

    def _sha(self, name: str, size: int, parts: tuple[bytes, ...]) -> bytes:
        state, digest = ctypes.create_string_buffer(512), ctypes.create_string_buffer(size)
        getattr(self.library, f"{name}_init")(state)
        for part in parts:
            getattr(self.library, f"{name}_update")(state, part, ctypes.c_size_t(len(part)))
        getattr(self.library, f"{name}_final")(state, digest)
        return digest.raw

    def verify(self, signature: bytes, key: bytes, message: bytes) -> bool:
        return bool(self.library.eo_ed25519_verify(signature, key, message, ctypes.c_size_t(len(message))))

    def is_map(self, data: bytes) -> bool:
        return bool(self.library.eo_cbor_is_map(data, ctypes.c_size_t(len(data))))
