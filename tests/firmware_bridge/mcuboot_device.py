"""A device with MCUboot and MCUmgr's image group, as Zephyr's server acts. Nothing of edgeops is in it.

Frames, headers and messages are read and written by `smp`, the library of smpclient; its boot loader's signature check
is imgtool's; what a slot holds is read by smpclient.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import struct
import tempfile
import threading
import time
import tty
from pathlib import Path
from typing import Any

import cbor2
from imgtool import keys
from imgtool.image import Image, VerifyResult
from smp import image_management as images
from smp import os_management as system
from smp import packet
from smp.exceptions import SMPException
from smp.header import OP, Flag, GroupId, Header
from smp.image_management import IMG_MGMT_ERR as ERR
from smpclient.mcuboot import IMAGE_TLV, ImageInfo, MCUBootImageError

SLOT_SIZE, BUFFER, HEADER_SIZE = 128 * 1024, 1024, 32
MAGIC = bytes.fromhex("3db8f396")
STILL_ANSWERS_S, BOOTS_WITHIN_S = 0.25, 0.5
NOT_SUPPORTED = 8
OS, IMAGE = GroupId.OS_MANAGEMENT, GroupId.IMAGE_MANAGEMENT
REQUESTS = {
    (OS, 0, OP.WRITE): system.EchoWriteRequest,
    (OS, 5, OP.WRITE): system.ResetWriteRequest,
    (OS, 6, OP.READ): system.MCUMgrParametersReadRequest,
    (OS, 7, OP.READ): system.OSApplicationInfoReadRequest,
    (IMAGE, 0, OP.READ): images.ImageStatesReadRequest,
    (IMAGE, 0, OP.WRITE): images.ImageStatesWriteRequest,
    (IMAGE, 1, OP.WRITE): images.ImageUploadWriteRequest,
}


def described(image: bytes) -> ImageInfo | None:
    """What smpclient reads in a slot."""
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(image)
        file.flush()
        with contextlib.suppress(MCUBootImageError, ValueError, struct.error):
            return ImageInfo.load_file(file.name)
    return None


def hash_of(image: bytes) -> bytes:
    info = described(image)
    return b"" if info is None else info.get_tlv(IMAGE_TLV.SHA256).value


class Refused(Exception):
    """The server answers with an error of the image group."""


class McubootDevice:
    """The device.

    Args:
        key: PEM of the key that its boot loader holds.
        running: The image in its primary slot, confirmed.
    """

    def __init__(self, key: Path, running: bytes) -> None:
        self._key = keys.load(str(key))
        self.slots = [running, b""]
        self.confirmed, self.pending = True, False
        self.requests: list[str] = []
        self.reset_after_uploads = 0
        self._session: tuple[bytes, int, bytearray] | None = None  # hash of the file, its length, what has come
        self._silent_until_s = self._resets_at_s = 0.0
        self._line, self._end = os.openpty()
        tty.setraw(self._line)
        tty.setraw(self._end)
        self.url = os.ttyname(self._end)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> McubootDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(60)
        os.close(self._line)
        os.close(self._end)

    def reset(self) -> None:
        """Boot: swap what is pending, if it is signed; go back from what was not confirmed."""
        self._session = None
        if self.pending:
            self.pending = False
            if self._is_signed(self.slots[1]):
                self.slots.reverse()
                self.confirmed = False
        elif not self.confirmed:
            self.slots.reverse()
            self.confirmed = True

    def _is_signed(self, image: bytes) -> bool:
        with tempfile.NamedTemporaryFile(suffix=".bin") as file:
            file.write(image)
            file.flush()
            return bool(Image.verify(file.name, self._key)[0] is VerifyResult.OK)

    # The line

    def _run(self) -> None:
        rest = b""
        decoder = None
        while not self._stopped.is_set():
            if self._resets_at_s and time.monotonic() > self._resets_at_s:
                self._resets_at_s = 0.0
                self._silent_until_s = time.monotonic() + BOOTS_WITHIN_S
                self.reset()
            ready, _, _ = select.select([self._line], [], [], 0.02)
            if not ready:
                continue
            rest += os.read(self._line, 4096)
            *lines, rest = rest.split(b"\n")
            for line in lines:
                if time.monotonic() < self._silent_until_s:
                    continue
                if line.startswith(packet.START_DELIMITER) or decoder is None:
                    decoder = packet.decode()
                    next(decoder)
                try:
                    decoder.send(line + b"\n")
                except StopIteration as done:
                    decoder = None
                    self._answer(bytes(done.value))
                except (SMPException, ValueError):
                    decoder = None

    def _answer(self, frame: bytes) -> None:
        asked = Header.loads(frame[: Header.SIZE])
        kind = REQUESTS.get((asked.group_id, asked.command_id, asked.op))
        values: dict[str, Any] = {"rc": NOT_SUPPORTED}
        if kind is not None:
            self.requests.append(kind.__name__.removesuffix("Request"))
            # The library refuses what is no request of the protocol.
            request = kind.loads(frame)
            try:
                values = self._do(request)
            except Refused as refused:
                values = {"err": {"group": int(IMAGE), "rc": int(refused.args[0])}}
        body = cbor2.dumps(values)
        header = Header(
            op=OP(asked.op + 1), version=asked.version, flags=Flag(0), length=len(body), group_id=asked.group_id,
            sequence=asked.sequence, command_id=asked.command_id,
        )  # fmt: skip
        for part in packet.encode(bytes(header) + body):
            os.write(self._line, part)

    # The commands

    def _do(self, request: Any) -> dict[str, Any]:
        match request:
            case system.EchoWriteRequest():
                return {"r": request.d}
            case system.ResetWriteRequest():
                self._resets_at_s = time.monotonic() + STILL_ANSWERS_S
                return {}
            case system.MCUMgrParametersReadRequest():
                return {"buf_size": BUFFER, "buf_count": 1}
            case system.OSApplicationInfoReadRequest():
                return {"output": "Zephyr"}
            case images.ImageStatesWriteRequest():
                self._set_state(request.hash or b"", request.confirm)
                return self._state()
            case images.ImageUploadWriteRequest():
                return self._upload(request)
            case _:
                return self._state()

    def _state(self) -> dict[str, Any]:
        found = []
        for slot, image in enumerate(self.slots):
            info = described(image)
            if info is None:
                continue
            version = info.header.ver
            one = {
                "slot": slot, "image": 0, "version": f"{version.major}.{version.minor}.{version.revision}",
                "hash": hash_of(image), "bootable": True,
            }  # fmt: skip
            # What is false is left out.
            if slot == 0:
                one["active"] = True
            if (slot == 0) is self.confirmed and not (slot == 1 and self.pending):
                one["confirmed"] = True
            if slot == 1 and self.pending:
                one["pending"] = True
            found.append(one)
        return {"images": found, "splitStatus": 0}

    def _set_state(self, wanted: bytes, confirm: bool) -> None:
        slot = next((slot for slot, image in enumerate(self.slots) if image and hash_of(image) == wanted), None)
        if slot is None:
            raise Refused(ERR.HASH_NOT_FOUND)
        if slot == 0 and not confirm:
            raise Refused(ERR.IMAGE_SETTING_TEST_TO_ACTIVE_DENIED)
        if slot == 0:
            self.confirmed = True
        else:
            self.pending = True

    def _upload(self, request: images.ImageUploadWriteRequest) -> dict[str, Any]:
        if request.off == 0:
            if request.len is None:
                raise Refused(ERR.INVALID_LENGTH)
            if len(request.data) < HEADER_SIZE:
                raise Refused(ERR.INVALID_IMAGE_HEADER)
            if not request.data.startswith(MAGIC):
                raise Refused(ERR.INVALID_IMAGE_HEADER_MAGIC)
            if request.len > SLOT_SIZE:
                raise Refused(ERR.INVALID_IMAGE_TOO_LARGE)
            if self.pending or not self.confirmed:
                raise Refused(ERR.NO_FREE_SLOT)
            if self._session is None or self._session[0] != request.sha:
                self._session = (request.sha or b"", request.len, bytearray())
        if self._session is None:
            return {"off": 0}
        sha, length, came = self._session
        if request.off != len(came):
            return {"off": len(came)}
        if len(came) + len(request.data) > length:
            raise Refused(ERR.INVALID_IMAGE_DATA_OVERRUN)
        came += request.data
        if self.reset_after_uploads and self.requests.count("ImageUploadWrite") == self.reset_after_uploads:
            self._resets_at_s = time.monotonic()
        if len(came) < length:
            return {"off": len(came)}
        self.slots[1], self._session = bytes(came), None
        return {"off": length, "match": hashlib.sha256(came).digest() == sha}
