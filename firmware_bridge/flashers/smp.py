"""By SMP over a serial line: a signed model blob, or an MCUboot image. It runs on trial after `reset`, until confirmed.

A blob goes to edgeops' firmware, an image to any server with MCUmgr's image group, such as Zephyr's.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge import blobs, mcuboot
from firmware_bridge.flashers import NO_OPTIONS, Found, Options
from firmware_bridge.link import Image, SmpLink, check_fit
from firmware_bridge.ports import SerialPort

# MCUboot swaps whole slots before it boots; Zephyr resets a moment after it has answered that it will.
_SWAP_WITHIN_S = 180.0
_GONE_AFTER_S = 1.0


class SmpFlasher:
    """One device.

    Args:
        port: A device file, or `socket://host:port`.
        options: The key of images.
    """

    def __init__(self, port: str, options: Options = NO_OPTIONS) -> None:
        self._port, self._key = port, options.key

    def probe(self) -> Found:
        """Ask the device; see `Flasher.probe`. A server without edgeops' group tells its slots."""
        with self._link() as link:
            system = _or_unknown(link.system_info)
            try:
                info = link.model_info()
            except EdgeopsError as error:
                if error.code != "E-MCU-REFUSED":
                    raise
                slots = {f"slot {one.slot}": _described(one) for one in link.images()}
                return Found(system, slots)
            runs = f"{info.model} {info.version}" if info.model is not None else "nothing"
            return Found(system, {"runs": runs, "slot": str(info.slot), "ram": str(info.ram)})

    def plan(self, image: bytes) -> list[str]:
        """Say what is done; see `Flasher.plan`."""
        if mcuboot.is_image(image):
            found = self._checked(image)
            signed = (
                f"signed by the key in {self._key}" if self._key is not None else "its boot loader checks who signed"
            )
            what = f"MCUboot image {found.version}, {len(image)} bytes, {signed}"
            return [
                f"upload {what}, to the spare slot of {self._port}",
                f"let {found.hash.hex()} run on trial after the next reset",
            ]
        header, signature = blobs.read(image), blobs.read_trailer(image[blobs.unsigned_size(image) :])
        return [
            f"upload {header.name} {signature.version}, {len(image)} bytes, to the spare slot of {self._port}",
            f"let {blobs.identity(image).hex()} run on trial after the next reset",
        ]

    def write(self, image: bytes, *, on_progress: Callable[[int, int], object] = lambda _done, _all: None) -> None:
        """Upload and mark for trial; see `Flasher.write`. Nothing is sent of an image that a slot holds already."""
        identity = self._identity(image)
        with self._link() as link:
            if mcuboot.is_image(image):
                held = [one for one in link.images() if one.hash == identity]
                if not held:
                    link.upload(image, on_progress=on_progress)
                if any(one.active or one.pending for one in held):
                    return
            else:
                check_fit(blobs.read(image), len(image), link.model_info())
                link.upload(image, on_progress=on_progress)
            link.test(identity)

    def verify(self, image: bytes) -> None:
        """Check that a slot holds it; see `Flasher.verify`."""
        identity = self._identity(image)
        with self._link() as link:
            if not any(one.hash == identity for one in link.images()):
                raise EdgeopsError("E-MCU-ANSWER", f"{self._port}: no slot holds {identity.hex()[:16]}")

    def reset(self) -> None:
        """Reset the device and wait for it; MCUboot exchanges its slots meanwhile."""
        with self._link() as link:
            if _has_models(link):
                link.reset()
            else:
                link.reset(back_within_s=_SWAP_WITHIN_S, gone_after_s=_GONE_AFTER_S)

    def confirm(self, image: bytes) -> None:
        """Keep an image that runs on trial; without effect where it is kept.

        Raises:
            EdgeopsError: E-MCU-REFUSED; it does not run: the device did not take it. As `Flasher.probe`.
        """
        identity = self._identity(image)
        with self._link() as link:
            running = next((one for one in link.images() if one.active), None)
            if running is None or running.hash != identity:
                runs = "nothing" if running is None else f"{running.version}, {running.hash.hex()[:16]}"
                raise EdgeopsError(
                    "E-MCU-REFUSED",
                    f"{self._port}: it runs {runs}: its boot loader did not take the image, or went back",
                    "Is it signed by the key that the boot loader holds, and linked for its slot?",
                )
            if not running.confirmed:
                link.confirm(identity)

    def _identity(self, image: bytes) -> bytes:
        return self._checked(image).hash if mcuboot.is_image(image) else blobs.identity(image)

    def _checked(self, image: bytes) -> mcuboot.Image:
        return mcuboot.read(image) if self._key is None else mcuboot.verify(image, self._key)

    def _link(self) -> SmpLink:
        return SmpLink(SerialPort(self._port))


def _has_models(link: SmpLink) -> bool:
    try:
        link.model_info()
    except EdgeopsError as error:
        if error.code != "E-MCU-REFUSED":
            raise
        return False
    return True


def _or_unknown(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except EdgeopsError as error:
        if error.code != "E-MCU-REFUSED":
            raise
        return "an SMP server that does not say what it is"


def _described(image: Image) -> str:
    flags = [name for name in ("active", "confirmed", "pending") if getattr(image, name)]
    return " ".join((image.version, image.hash.hex()[:16], *flags))
