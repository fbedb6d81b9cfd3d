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
from edgeops.flash.system import System, read_system
from edgeops.profiles import registry

_MIB = 1 << 20
_SEED_LABEL = "CIDATA"
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
        has_identity: Whether the card gets an identity, as `edgeops agent enroll` makes it, and not a token.
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
    has_identity: bool
    stick: Path | None


def make(
    asked: Card, cache: Path, vouch: Callable[[], Path], may_write: Callable[[str], bool], say: Say
) -> str:  # fmt: skip
    """Make it; return what was written, for people.

    Args:
        asked: What.
        cache: A folder for payloads.
        vouch: Asked for the card's secret once all else is on it: a file with the token, or the packed identity.
        may_write: Asked before a block device is written to, with its model and size.
        say: Hears what goes on.

    Raises:
        EdgeopsError: E-FLASH-CARD; the device may not be written, is too small, has no boot partition or room, or reads
            back otherwise. E-CONFIG; a value is impossible, or a person said no. E-FLASH-WHEELS. E-DISK-WRITE.
    """
    device = _device_of(asked)
    profile = registry.load(asked.profile)
    card.boot_partition(asked.base)
    system = read_system(asked.base)
    say(
        f"{asked.base.name}: {system.title}, {system.arch}" if system else f"{asked.base.name}: a system not known here"
    )
    board = expected_board(profile, system)
    choice = choose(board, profile)
    if system is not None:
        check_system(system, asked.form, has_wireless=asked.network is not None)
    payload = build(board, choice, cache, say)
    wish = FirstBoot(
        hostname=asked.hostname, user=asked.user, ssh_keys=asked.ssh_keys, network=asked.network, profile=asked.profile,
        name=asked.name, version=payload.version, sha256=payload.sha256, has_identity=asked.has_identity,
        has_release=asked.stick is not None, python=choice.python.version,
        boot=system.boot if system is not None else firstboot.BOOT,
    )  # fmt: skip
    firstboot.check(wish)
    if device is not None and not may_write(f"{device.path}, {device.model}, {device.size / 1e9:.1f} GB,"):
        raise EdgeopsError("E-CONFIG", f"{device.path} was not written to", "Say yes, or give --yes.")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgeops-image-", dir=cache) as folder:
        image = Path(folder) / "card.img"
        say(f"copying {asked.base.name}")
        card.copy_image(asked.base, image)
        boot = card.boot_partition(image)
        texts = firstboot.files(wish, asked.form, card.read_text(boot, "cmdline.txt"))
        large = {f"{firstboot.FOLDER}/{firstboot.PAYLOAD}": payload.file}
        if asked.stick is not None:
            large[f"{firstboot.FOLDER}/{firstboot.RELEASE}"] = asked.stick
        say(f"writing {sum(file.stat().st_size for file in large.values()) // _MIB} MiB to its boot partition")
        card.write_files(boot, texts, large)
        if asked.form == "cloud-init" and system is not None:
            _let_it_be_found(boot, system)
        secret = firstboot.IDENTITY if asked.has_identity else firstboot.TOKEN
        card.write_files(boot, {}, {f"{firstboot.FOLDER}/{secret}": vouch()})
        if device is not None:
            say(f"writing {device.path}, then reading it back")
            digest = card.write_device(image, device, _percent(say))
        else:
            digest = card.sha256_of(image)
            card.replace(image, asked.out)
    return f"{asked.out}: {asked.form} for {asked.profile}, agent {payload.version}, sha256 {digest}"


def _device_of(asked: Card) -> card.Device | None:
    """Return the card that is to be written; None: an image is.

    Raises:
        EdgeopsError: E-FLASH-CARD; the card may not be written, is too small, or the image would take its base's place.
    """
    try:
        if asked.out.samefile(asked.base):
            raise EdgeopsError("E-FLASH-CARD", f"{asked.out} is the base image itself", "Give another --out.")
    except OSError:
        pass  # one of the two is not there yet
    if not _is_device(asked.out):
        if not asked.out.absolute().parent.is_dir() or asked.out.is_dir():
            raise EdgeopsError("E-FLASH-CARD", f"{asked.out}: no image can be written there", "Name a new file.")
        return None
    device = card.describe(asked.out)
    if device.refused:
        raise EdgeopsError("E-FLASH-CARD", f"{device.path} ({device.model}): {device.refused}", "Name the card's own.")
    if device.size < asked.base.stat().st_size:
        raise EdgeopsError(
            "E-FLASH-CARD",
            f"{device.path} ({device.model}) has {device.size} bytes, the image more",
            "Use a larger card.",
        )
    return device


def expected_board(profile: Profile, system: System | None) -> Board:
    """Return the board that a card is made for: nobody can ask it yet, so its system and profile speak for it."""
    python, glibc = _parsed(profile.python_min) or _SYSTEM_PYTHON, _parsed(profile.glibc_min) or _SYSTEM_GLIBC
    pythons: tuple[Python, ...] = (Python(python, "python3"),)
    if system is not None:
        glibc, pythons = system.glibc, (Python(system.python, "python3"),) if system.python else ()
    return Board(
        arch=system.arch if system is not None else profile.cpu.arch, os=system.title if system is not None else "",
        glibc=glibc, model=profile.title, pythons=pythons, memory_mib=int(profile.memory.ram_mib), disk_mib=0, l4t=None,
        jetpack="", cuda="", tensorrt="", onnxruntime="", power_mode="", clocks="", accelerators=(), systemd=0,
        systemd_runs=False, root="yes", clock_s=0, versions=(), current="",
    )  # fmt: skip


def check_system(system: System, form: Format, *, has_wireless: bool) -> None:
    """Refuse a card whose system would not do what is written on it.

    Raises:
        EdgeopsError: E-FLASH-CARD.
    """
    if form == "firstrun":
        return
    if not system.has_cloud_init:
        raise EdgeopsError(
            "E-FLASH-CARD", f"{system.title} has no cloud-init", "Raspberry Pi OS before trixie: --format firstrun."
        )
    if has_wireless and not system.has_netplan:
        raise EdgeopsError(
            "E-FLASH-CARD",
            f"{system.title} sets up no wireless network: its cloud-init has no netplan",
            "Use a cable, or Raspberry Pi OS or Ubuntu.",
        )


def _let_it_be_found(boot: card.Boot, system: System) -> None:
    """Let cloud-init look at the boot partition: by its label, unless it is told to anyway.

    Raises:
        EdgeopsError: E-FLASH-CARD; it is mounted by the label that it has.
    """
    if system.is_seeded or card.label_of(boot).upper() == _SEED_LABEL:
        return
    if system.boot_label:
        raise EdgeopsError(
            "E-FLASH-CARD",
            f"{system.title} looks for cloud-init's files at {_SEED_LABEL}, and needs the label {system.boot_label}",
            "Use an image whose cloud-init looks at its boot partition.",
        )
    card.set_label(boot, _SEED_LABEL)


def _percent(say: Say) -> card.Progress:
    """Return what says each tenth of a long work."""
    said = [-1]

    def on_progress(done: int, whole: int) -> None:
        if (tenth := 10 * done // max(1, whole)) != said[0]:
            said[0] = tenth
            say(f"{10 * tenth}% written and read back")

    return on_progress


def _parsed(version: str | None) -> tuple[int, int] | None:
    if version is None:
        return None
    major, _, minor = version.partition(".")
    return int(major), int(minor or 0)


def _is_device(path: Path) -> bool:
    return str(path).startswith("/dev/") or (path.exists() and stat.S_ISBLK(path.stat().st_mode))
