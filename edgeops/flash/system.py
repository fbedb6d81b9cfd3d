"""What system an image holds: asked of its own files, without a mount and without root, before a card is written."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError
from edgeops.flash.card import find_tool, partitions

_MAGIC_AT, _MAGIC = 1024 + 56, b"\x53\xef"
_WITHIN_S = 120.0
_STATUS, _RELEASE, _FSTAB, _CLOUD = (
    "/var/lib/dpkg/status",
    "/usr/lib/os-release",
    "/etc/fstab",
    "/etc/cloud/cloud.cfg.d",
)
_ARCHES = {"arm64": "aarch64", "amd64": "x86_64", "armhf": "armv7l", "i386": "i686"}
_VERSION = re.compile(r"(?:\d+:)?(\d+)\.(\d+)")
_BOOTS = ("/boot/firmware", "/boot/efi", "/boot")


class System(NamedTuple):
    """A Debian or one of its kin in an image.

    Args:
        title: For people.
        arch: Processor, as `uname -m` would say.
        glibc: Version of its C library.
        python: Version of its python3; None: it has none.
        has_cloud_init: Whether cloud-init is installed.
        has_netplan: Whether netplan is: cloud-init sets up wireless networks by nothing else.
        boot: Where the boot partition is mounted.
        boot_label: By which label it is mounted; empty: by something else.
        is_seeded: Whether its cloud-init is told to look at the boot partition, whatever its label is.
    """

    title: str
    arch: str
    glibc: tuple[int, int]
    python: tuple[int, int] | None
    has_cloud_init: bool
    has_netplan: bool
    boot: str
    boot_label: str
    is_seeded: bool


def read_system(image: Path) -> System | None:
    """Return the system in an image's ext4 partition; None: there is none that can be read.

    Raises:
        EdgeopsError: E-FLASH-CARD; the image has no table of partitions. E-DEPENDENCY.
    """
    for offset, _ in partitions(image):
        with image.open("rb") as file:
            file.seek(offset + _MAGIC_AT)
            if file.read(len(_MAGIC)) != _MAGIC:
                continue
        drive = f"{image}?offset={offset}"
        if status := _cat(drive, _STATUS):
            return read(status, _cat(drive, _RELEASE), _cat(drive, _FSTAB), _folder(drive, _CLOUD))
    return None


def read(status: str, release: str, fstab: str, cloud: Iterable[str]) -> System | None:
    """Read a system's own files. Pure.

    Args:
        status: dpkg's list of packages.
        release: os-release.
        fstab: Its mounts.
        cloud: The files of cloud.cfg.d.

    Returns:
        The system; None: it has no C library of a known processor.
    """
    packages = dict(_packages(status))
    arch, glibc = _ARCHES.get(packages.get("libc6", ("", ""))[0]), _version(packages.get("libc6"))
    if arch is None or glibc is None:
        return None
    title = re.search(r'^PRETTY_NAME="?([^"\n]{1,100})', release, re.MULTILINE)
    boot, label = _boot(fstab)
    return System(
        title=title[1] if title else "Debian or one of its kin",
        arch=arch,
        glibc=glibc,
        python=_version(packages.get("python3")),
        has_cloud_init="cloud-init" in packages,
        has_netplan="netplan.io" in packages,
        boot=boot,
        boot_label=label,
        is_seeded=any(re.search(r"^[^#\n]*\b(seedfrom|fs_label)\b", text, re.MULTILINE) for text in cloud),
    )


def _packages(status: str) -> Iterable[tuple[str, tuple[str, str]]]:
    """Yield architecture and version of each installed package by name."""
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Architecture|Version): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            yield fields.get("Package", ""), (fields.get("Architecture", ""), fields.get("Version", ""))


def _version(package: tuple[str, str] | None) -> tuple[int, int] | None:
    found = _VERSION.match(package[1]) if package else None
    return (int(found[1]), int(found[2])) if found else None


def _boot(fstab: str) -> tuple[str, str]:
    """Return where the boot partition is mounted, and by which label."""
    for words in (line.split() for line in fstab.splitlines()):
        if len(words) > 2 and words[1] in _BOOTS and words[2] == "vfat":
            return words[1], words[0].partition("LABEL=")[2] if words[0].startswith("LABEL=") else ""
    return _BOOTS[0], ""


def _cat(drive: str, path: str) -> str:
    return _debugfs(drive, f"cat {path}")


def _folder(drive: str, path: str) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="edgeops-system-") as folder:
        _debugfs(drive, f'rdump {path} "{folder}"')
        return [file.read_text(errors="replace") for file in sorted(Path(folder).rglob("*.cfg")) if file.is_file()]


def _debugfs(drive: str, request: str) -> str:
    """Ask debugfs; what is not there is empty, for its exit status never tells."""
    try:
        done = subprocess.run(
            [find_tool("debugfs"), "-R", request, drive], capture_output=True, timeout=_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise EdgeopsError("E-FLASH-CARD", f"{drive}: debugfs gives no answer") from error
    return done.stdout.decode(errors="replace")
