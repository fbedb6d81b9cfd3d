"""A signed model blob by SMP over a serial line: it runs on trial after `reset`, until somebody confirms it."""

from __future__ import annotations

from collections.abc import Callable

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge import blobs
from firmware_bridge.flashers import Found
from firmware_bridge.link import SmpLink, check_fit
from firmware_bridge.ports import SerialPort


class SmpFlasher:
    """One device.

    Args:
        port: A device file, or `socket://host:port`.
    """

    def __init__(self, port: str) -> None:
        self._port = port

    def probe(self) -> Found:
        """Ask the device; see `Flasher.probe`."""
        with self._link() as link:
            info = link.model_info()
            runs = f"{info.model} {info.version}" if info.model is not None else "nothing"
            return Found(link.system_info(), {"runs": runs, "slot": str(info.slot), "ram": str(info.ram)})

    def plan(self, image: bytes) -> list[str]:
        """Say what is done; see `Flasher.plan`."""
        header, signature = blobs.read(image), blobs.read_trailer(image[blobs.unsigned_size(image) :])
        return [
            f"upload {header.name} {signature.version}, {len(image)} bytes, to the spare slot of {self._port}",
            f"let {blobs.identity(image).hex()} run on trial after the next reset",
        ]

    def write(self, image: bytes, *, on_progress: Callable[[int, int], object] = lambda _done, _all: None) -> None:
        """Upload and mark for trial; see `Flasher.write`."""
        header, identity = blobs.read(image), blobs.identity(image)
        with self._link() as link:
            check_fit(header, len(image), link.model_info())
            link.upload(image, on_progress=on_progress)
            link.test(identity)

    def verify(self, image: bytes) -> None:
        """Check that a slot holds it; see `Flasher.verify`."""
        identity = blobs.identity(image)
        with self._link() as link:
            if not any(one.hash == identity for one in link.images()):
                raise EdgeopsError("E-MCU-ANSWER", f"{self._port}: no slot holds {identity.hex()[:16]}")

    def reset(self) -> None:
        """Reset the device and wait for it."""
        with self._link() as link:
            link.reset()

    def _link(self) -> SmpLink:
        return SmpLink(SerialPort(self._port))
