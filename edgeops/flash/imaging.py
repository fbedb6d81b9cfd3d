"""From a system's image to a card that makes a board a device at its first boot."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Profile
from edgeops.flash import card, firstboot
from edgeops.flash.facts import Board, Python
from edgeops.flash.firstboot import FirstBoot, Format, Network
from edgeops.flash.fit import choose
from edgeops.flash.payload import Say, build
from edgeops.profiles import registry

_MIB = 1 << 20
_SYSTEM_PYTHON, _SYSTEM_GLIBC = (3, 11), (2, 36)


class Card(NamedTuple):
    """What is asked for.

    Args:
        base: The system's image.
        out: An image file, or a card's block device.
        form: How the system is told what to do at its first boot.
        profile: Device profile.
        hostname: Its name in the network.
        name: Its name in the fleet; None: the fleet gives one.
        user: Who may log in; None: nobody is made.
        ssh_keys: Public keys.
        network: A wireless network; None: a cable.
        token: One-time enrolment token.
        stick: An exported release; None: the fleet brings it.
    """

    base: Path
    out: Path
    form: Format
    profile: str
    hostname: str
    name: str | None
    user: str | None
    ssh_keys: tuple[str, ...]
    network: Network | None
    token: str
    stick: Path | None


def make(asked: Card, cache: Path, may_write: Callable[[str], bool], say: Say) -> str:
    """Make it; return what was written, for people.

    Args:
        asked: What.
        cache: A folder for payloads.
        may_write: Asked before a block device is written to, with its model and size.
        say: Hears what goes on.

    Raises:
        EdgeopsError: E-FLASH-CARD; the device may not be written, is too small, has no boot partition or room, or reads
            back otherwise. E-CONFIG; a value is impossible, or a person said no. E-FLASH-WHEELS. E-DISK-WRITE.
    """
    device = card.describe(asked.out) if _is_device(asked.out) else None
    if device is not None and device.refused:
        raise EdgeopsError("E-FLASH-CARD", f"{device.path} ({device.model}): {device.refused}", "Name the card's own.")
    profile = registry.load(asked.profile)
    board = expected_board(profile)
    payload = build(board, choose(board, profile), cache, say)
    wish = FirstBoot(
        hostname=asked.hostname, user=asked.user, ssh_keys=asked.ssh_keys, network=asked.network, profile=asked.profile,
        name=asked.name, version=payload.version, sha256=payload.sha256, has_token=True,
        has_release=asked.stick is not None,
    )  # fmt: skip
    firstboot.check(wish)
    if device is not None and not may_write(f"{device.path}, {device.model}, {device.size / 1e9:.1f} GB,"):
        raise EdgeopsError("E-CONFIG", f"{device.path} was not written to", "Say yes, or give --yes.")
    with tempfile.TemporaryDirectory(prefix="edgeops-image-", dir=cache) as folder:
        image = Path(folder) / "card.img"
        say(f"copying {asked.base.name}")
        card.copy_image(asked.base, image)
        boot = card.boot_partition(image)
        texts = firstboot.files(wish, asked.form, card.read_text(boot, "cmdline.txt"))
        token = Path(folder) / "token"
        token.touch(mode=0o600)
        token.write_text(asked.token, encoding="utf-8")
        large = {
            f"{firstboot.FOLDER}/{firstboot.PAYLOAD}": payload.file, f"{firstboot.FOLDER}/{firstboot.TOKEN}": token,
        }  # fmt: skip
        if asked.stick is not None:
            large[f"{firstboot.FOLDER}/{firstboot.RELEASE}"] = asked.stick
        say(f"writing {sum(file.stat().st_size for file in large.values()) // _MIB} MiB to its boot partition")
        card.write_files(boot, texts, large)
        if device is not None:
            say(f"writing {device.path}, then reading it back")
            digest = card.write_device(image, device)
        else:
            digest = card.sha256_of(image)
            card.replace(image, asked.out)
    return f"{asked.out}: {asked.form} for {asked.profile}, agent {payload.version}, sha256 {digest}"


def expected_board(profile: Profile) -> Board:
    """Return the board that a card is made for: nobody can ask it yet, so its profile and system speak for it."""
    return Board(
        arch=profile.cpu.arch, os="the image's", glibc=_parsed(profile.glibc_min) or _SYSTEM_GLIBC, model=profile.title,
        pythons=(Python(_parsed(profile.python_min) or _SYSTEM_PYTHON, "python3"),),
        memory_mib=int(profile.memory.ram_mib), disk_mib=0, l4t=None, jetpack="", cuda="", tensorrt="", onnxruntime="",
        power_mode="", clocks="", accelerators=(), systemd=0, systemd_runs=False, root="yes", clock_s=0, versions=(),
        current="",
    )  # fmt: skip


def _parsed(version: str | None) -> tuple[int, int] | None:
    if version is None:
        return None
    major, _, minor = version.partition(".")
    return int(major), int(minor or 0)


def _is_device(path: Path) -> bool:
    return str(path).startswith("/dev/") or (path.exists() and stat.S_ISBLK(path.stat().st_mode))
