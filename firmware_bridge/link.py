"""A device at the other end of a serial line: requests, answers, and what to do when none comes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge import blobs, frames, packets, refusals
from firmware_bridge.packets import Command, Packet
from firmware_bridge.ports import Port

T = TypeVar("T")

ANSWER_WITHIN_S = 3.0
# A device may erase a whole slot before it answers the first part of an upload.
ERASE_WITHIN_S = 40.0
_ATTEMPTS = 4
_NO_ANSWER = ("E-MCU-SILENT", "E-MCU-ANSWER")
# A device may lose the end of an upload's session by a reset; then the upload begins again where its flash ends. So
# often in a row without a byte more than before.
_UPLOAD_RESTARTS = 8
_SMALLEST_BUFFER = 96
# Of a server that does not tell: less than Zephyr and MCUboot's serial recovery have.
_ASSUMED_BUFFER = 256
_ROOM_FOR_FIRST_KEYS = 96
_ROOM_FOR_KEYS = 32
# More than the memory of such a device.
_MAX_TENSOR = 1 << 22
# No count, clock or size of such a device is larger, and everything that is reckoned with it stays a number.
_MAX_COUNT = 1 << 53
_MAX_TEXT = 200


class Image(NamedTuple):
    """A slot that holds a blob, or an MCUboot image; `hash` is empty where the server does not tell it."""

    slot: int
    version: str
    hash: bytes
    pending: bool
    confirmed: bool
    active: bool


class ModelInfo(NamedTuple):
    """What a firmware accepts, and what it runs; `model` and what follows are None when it runs nothing.

    Args:
        abi: Calling convention of blobs.
        cpu: Processor of blobs; a value of `blobs.Cpu`.
        ram: Bytes for arena, input and output together.
        slot: Bytes of a slot.
        floor: Smallest anti-rollback counter that is accepted.
        outcome: How the last trial ended: 0 none, 1 confirmed, 2 not confirmed, 3 invalid.
        trial: Whether what runs is a trial.
        model: Name.
        version: Version.
        counter: Anti-rollback counter.
        hash: Identity of the blob.
        input_size: Bytes.
        output_size: Bytes.
    """

    abi: int
    cpu: int
    ram: int
    slot: int
    floor: int
    outcome: int
    trial: bool
    model: str | None
    version: str | None
    counter: int | None
    hash: bytes | None
    input_size: int | None
    output_size: int | None


class Inference(NamedTuple):
    """An output, and how long the device took."""

    output: bytes
    ticks: int
    ticks_hz: int


class SmpLink:
    """Speaks SMP with one device. Not safe for use by two threads at once.

    Args:
        port: The line; closed with the link.
        answer_within_s: How long a request waits before it is repeated; every request may be repeated.
        erase_within_s: How long a device may take to erase a slot.
    """

    def __init__(
        self, port: Port, *, answer_within_s: float = ANSWER_WITHIN_S, erase_within_s: float = ERASE_WITHIN_S
    ) -> None:
        self._port = port
        self._answer_within_s = answer_within_s
        self._erase_within_s = erase_within_s
        self._receiver = frames.FrameReceiver()
        self._sequence = 0
        self._buffer_size: int | None = None

    def __enter__(self) -> SmpLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the line back."""
        self._port.close()

    @property
    def counts(self) -> frames.Counts:
        """Frames that came from the device."""
        return self._receiver.counts

    def request(self, command: Command, values: dict[str, Any], *, within_s: float | None = None) -> dict[str, Any]:
        """Ask, again if no answer comes, and return the answer.

        Raises:
            EdgeopsError: E-MCU-SILENT; no answer. E-MCU-ANSWER; bytes come, but nothing that answers.
                E-MCU-REFUSED; the device says no. E-MCU-PORT; the line is gone.
        """
        end_s = time.monotonic() + (within_s or _ATTEMPTS * self._answer_within_s)
        sent: set[int] = set()
        heard = 0
        while (left_s := end_s - time.monotonic()) > 0:
            self._sequence = (self._sequence + 1) % 256
            sent.add(self._sequence)
            self._port.write(frames.encode(packets.encode(command, self._sequence, values)))
            answer, count = self._await(command, sent, min(left_s, self._answer_within_s))
            if answer is not None:
                return _granted(answer, command)
            heard += count
        if heard:
            raise EdgeopsError(
                "E-MCU-ANSWER",
                f"{self._port.name}: {heard} bytes came, but no answer",
                "Is this the right port, with firmware that speaks SMP at this rate?",
            )
        raise EdgeopsError("E-MCU-SILENT", f"{self._port.name}: {len(sent)} requests, no answer", "Check the cable.")

    def _await(self, command: Command, sent: set[int], wait_s: float) -> tuple[Packet | None, int]:
        """Return the answer to one of the repetitions, or None when the time is over; and how many bytes came."""
        heard = 0
        end_s = time.monotonic() + wait_s
        while (left_s := end_s - time.monotonic()) > 0:
            data = self._port.read(left_s)
            heard += len(data)
            for raw in self._receiver.feed(data):
                try:
                    packet = packets.decode(raw)
                except EdgeopsError:
                    continue  # damaged in a way that the crc missed, or not SMP: as good as not heard
                if packet.answers(command, sent):
                    return packet, heard
        return None, heard

    def echo(self, text: str) -> str:
        """Return what the device makes of `text`: the same."""
        return _of(self.request(packets.ECHO, {"d": text}), "r", str)

    def buffer_size(self) -> int:
        """Return the largest packet that the device takes; asked once."""
        if self._buffer_size is None:
            try:
                size = _of(self.request(packets.PARAMETERS, {}), "buf_size", int)
            except EdgeopsError as error:
                if error.code != "E-MCU-REFUSED":
                    raise
                size = _ASSUMED_BUFFER
            if size < _SMALLEST_BUFFER + _ROOM_FOR_FIRST_KEYS:
                raise EdgeopsError("E-MCU-ANSWER", f"{self._port.name}: a buffer of {size} bytes cannot take an upload")
            self._buffer_size = min(size, frames.PACKET_MAX)
        return self._buffer_size

    def system_info(self) -> str:
        """Return what the firmware calls itself."""
        return _shown(_of(self.request(packets.SYSTEM_INFO, {}), "output", str))

    def images(self) -> list[Image]:
        """Return the slots that hold a blob."""
        return _images(self.request(packets.IMAGE_STATE, {}))

    def test(self, identity: bytes) -> list[Image]:
        """Let a blob run at the next boot, once.

        Raises:
            EdgeopsError: E-MCU-REFUSED; the device refuses the blob, with its reason.
        """
        return _images(self.request(packets.SET_IMAGE_STATE, {"hash": identity, "confirm": False}))

    def confirm(self, identity: bytes) -> list[Image]:
        """Keep the blob that runs.

        Raises:
            EdgeopsError: E-MCU-REFUSED; another one runs.
        """
        return _images(self.request(packets.SET_IMAGE_STATE, {"hash": identity, "confirm": True}))

    def erase(self) -> None:
        """Erase the slot that is neither active nor running."""
        self.request(packets.ERASE, {}, within_s=self._erase_within_s)

    def reset(self, *, back_within_s: float = 20.0, gone_after_s: float = 0.0) -> None:
        """Reset the device and wait until it answers again.

        Args:
            back_within_s: How long it may take.
            gone_after_s: How long it may still answer before it resets.

        Raises:
            EdgeopsError: E-MCU-SILENT; it does not come back in time.
        """
        waiting = self._pending()
        for attempt in range(_ATTEMPTS):
            answered = self._ask_for_reset(last=attempt + 1 == _ATTEMPTS)
            time.sleep(gone_after_s)
            self._wait_back(back_within_s)
            # The answer alone may have been lost, and a second reset would end the trial that began with the first.
            if answered or self._pending() != waiting:
                return

    def _pending(self) -> list[Image]:
        try:
            return [image for image in self.images() if image.pending]
        except EdgeopsError as error:
            if error.code != "E-MCU-REFUSED":
                raise
            return []  # a server that knows no images tries none out

    def _ask_for_reset(self, *, last: bool) -> bool:
        """Ask once; return whether the device answered."""
        try:
            self.request(packets.RESET, {}, within_s=self._answer_within_s)
        except EdgeopsError as error:
            if last or error.code not in _NO_ANSWER:
                raise
            return False
        return True

    def _wait_back(self, within_s: float) -> None:
        end_s = time.monotonic() + within_s
        while True:
            try:
                if self.echo("back") == "back":
                    return
                raise EdgeopsError("E-MCU-ANSWER", f"{self._port.name}: an echo is another text")
            except EdgeopsError as error:
                if error.code not in _NO_ANSWER or time.monotonic() > end_s:
                    raise

    def upload(self, blob: bytes, *, on_progress: Callable[[int, int], object] = lambda _done, _all: None) -> None:
        """Upload a signed blob or an image into the spare slot; goes on where an earlier try of the same one ended.

        Args:
            blob: Header, code and trailer; or an MCUboot image.
            on_progress: Called with bytes that the device holds, and all bytes.

        Raises:
            EdgeopsError: E-MCU-REFUSED; the device refuses it, with its reason. As `request`.
        """
        offset = furthest = restarts = 0
        while restarts < _UPLOAD_RESTARTS:
            before = offset
            try:
                offset = self._send_part(blob, offset)
            except EdgeopsError as error:
                if error.code != "E-MCU-REFUSED" or not error.what.endswith(refusals.OFFSET):
                    raise
                offset = 0  # the device was reset: ask it how far it is
            if offset:
                on_progress(offset, len(blob))
            if offset == len(blob):
                return
            # A server that forgets an upload when it is reset wants the first byte again.
            restarts += offset <= before
            if offset > furthest:
                furthest, restarts = offset, 0
        raise EdgeopsError("E-MCU-ANSWER", f"{self._port.name}: the device is reset again and again during the upload")

    def _send_part(self, blob: bytes, offset: int) -> int:
        """Send what fits from an offset on; return the offset that the device wants next."""
        first = offset == 0
        values = {"len": len(blob), "sha": hashlib.sha256(blob).digest()} if first else {}
        room = self.buffer_size() - frames.PACKET_HEADER - (_ROOM_FOR_FIRST_KEYS if first else _ROOM_FOR_KEYS)
        part = blob[offset : offset + room]
        answer = self.request(
            packets.UPLOAD, {"off": offset, **values, "data": part}, within_s=self._erase_within_s if first else None
        )
        wanted = _of(answer, "off", int)
        if not 0 <= wanted <= len(blob):
            raise EdgeopsError("E-MCU-ANSWER", f"{self._port.name}: wants byte {wanted} of {len(blob)}")
        return wanted

    def statistics(self, name: str) -> dict[str, int]:
        """Return counters of a group: `smp` or `model`."""
        fields = _of(self.request(packets.STATISTICS, {"name": name}), "fields", dict)
        return {_shown(str(key)): _of(fields, key, int) for key, value in fields.items() if type(value) is int}

    def model_info(self) -> ModelInfo:
        """Return what the firmware accepts and runs."""
        got = self.request(packets.MODEL_INFO, {})
        model, version = _maybe(got, "model", str), _maybe(got, "version", str)
        sizes = [_maybe(got, key, int) for key in ("in", "out")]
        if any(size is not None and size > _MAX_TENSOR for size in sizes):
            raise EdgeopsError("E-MCU-ANSWER", f"{self._port.name}: tensors of {sizes} bytes")
        return ModelInfo(
            abi=_of(got, "abi", int),
            cpu=_of(got, "cpu", int),
            ram=_of(got, "ram", int),
            slot=_of(got, "slot", int),
            floor=_of(got, "floor", int),
            outcome=_of(got, "outcome", int),
            trial=_of(got, "trial", bool),
            model=None if model is None else _shown(model),
            version=None if version is None else _shown(version),
            counter=_maybe(got, "counter", int),
            hash=_maybe(got, "hash", bytes),
            input_size=sizes[0],
            output_size=sizes[1],
        )

    def infer(self, data: bytes) -> Inference:
        """Run one inference on the device.

        Args:
            data: The input tensor's bytes.

        Raises:
            EdgeopsError: E-MCU-REFUSED; nothing runs, or the input has another size. E-MCU-ANSWER; what it says of
                the run cannot be. As `request`.
        """
        room = self.buffer_size() - frames.PACKET_HEADER - _ROOM_FOR_KEYS
        for offset in range(0, len(data), room):
            part = data[offset : offset + room]
            self.request(packets.MODEL_INPUT, {"off": offset, "data": part})
        run = self.request(packets.MODEL_RUN, {})
        size, ticks, hz = _of(run, "len", int), _of(run, "ticks", int), _of(run, "hz", int)
        if size > _MAX_TENSOR or not hz:
            said = f"{size} bytes of output in {ticks} ticks of {hz} a second"
            raise EdgeopsError("E-MCU-ANSWER", f"{self._port.name}: {said}")
        output = bytearray()
        while len(output) < size:
            part = _of(self.request(packets.MODEL_OUTPUT, {"off": len(output)}), "data", bytes)
            if not part:
                raise EdgeopsError("E-MCU-ANSWER", f"{self._port.name}: the output ends at {len(output)} of {size}")
            output += part
        return Inference(bytes(output), ticks, hz)


def check_fit(header: blobs.Header, size: int, info: ModelInfo) -> None:
    """Check before an upload what the device will check after it: processor, slot and memory.

    Args:
        header: Of the blob.
        size: Bytes of the blob with its trailer.
        info: What the device says of itself.

    Raises:
        EdgeopsError: E-MCU-BLOB.
    """
    if header.cpu != info.cpu:
        known = {cpu.value: cpu.name for cpu in blobs.Cpu}
        raise EdgeopsError(
            "E-MCU-BLOB",
            f"{header.name} is for {header.cpu.name}, the device is {known.get(info.cpu, info.cpu)}",
            "Compile the model for the device's profile.",
        )
    if size > info.slot:
        raise EdgeopsError("E-MCU-BLOB", f"{header.name} has {size} bytes, a slot has {info.slot}")
    if header.ram_size > info.ram:
        raise EdgeopsError("E-MCU-BLOB", f"{header.name} needs {header.ram_size} bytes of RAM, there are {info.ram}")


def _granted(packet: Packet, command: Command) -> dict[str, Any]:
    told = refusals.told(packet.values)
    if told is None:
        return packet.values
    raise EdgeopsError("E-MCU-REFUSED", f"the device refuses group {command.group} command {command.number}: {told}")


def _of(values: dict[str, Any], key: str, kind: type[T]) -> T:
    value = values.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise EdgeopsError("E-MCU-ANSWER", f"an answer's {key!r} is {type(value).__name__}, not {kind.__name__}")
    if isinstance(value, int) and not 0 <= value <= _MAX_COUNT:
        raise EdgeopsError("E-MCU-ANSWER", f"an answer's {key!r} is no count")
    return value


def _shown(value: str) -> str:
    return packets.shown(value, _MAX_TEXT)


def _maybe(values: dict[str, Any], key: str, kind: type[T]) -> T | None:
    return _of(values, key, kind) if key in values else None


def _images(values: dict[str, Any]) -> list[Image]:
    images = []
    for entry in _of(values, "images", list):
        if not isinstance(entry, dict):
            raise EdgeopsError("E-MCU-ANSWER", "an image in an answer is no map")
        # Zephyr leaves out what is false, and serial recovery the hash.
        entry = {"pending": False, "confirmed": False, "active": False, "hash": b"", **entry}
        flags = (_of(entry, key, bool) for key in ("pending", "confirmed", "active"))
        images.append(
            Image(_of(entry, "slot", int), _shown(_of(entry, "version", str)), _of(entry, "hash", bytes), *flags)
        )
    return images
