"""Cards and images: copied, given their files by mtools, and read back. Needs no mount and, for images, no root."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError

_BLOCK = 4 << 20
_SECTOR = 512
_WITHIN_S = 600.0
_BLKFLSBUF = 0x1261
# Types of partitions that hold FAT: MBR's, and the basic data and EFI system partitions of GPT.
_FAT = {
    "b", "c", "e", "6", "ef", "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
}  # fmt: skip
_NEXT = "Use an image of Raspberry Pi OS, Ubuntu or Debian with a FAT boot partition."

Progress = Callable[[int, int], object]


class Device(NamedTuple):
    """A block device.

    Args:
        path: Its node.
        model: For people.
        size: In bytes.
        refused: Why it is not to be written to; empty: it may be.
        identity: Which it is of all disks that this machine has had since it booted.
    """

    path: Path
    model: str
    size: int
    refused: str
    identity: str = ""


class Boot(NamedTuple):
    """The boot partition of an image."""

    image: Path
    offset: int

    @property
    def drive(self) -> str:
        """As mtools names it."""
        return f"{self.image}@@{self.offset}"


def describe(path: Path) -> Device:
    """Look at a block device.

    Raises:
        EdgeopsError: E-FLASH-CARD; there is none. E-DEPENDENCY.
    """
    try:
        if not stat.S_ISBLK(path.stat().st_mode):
            raise EdgeopsError("E-FLASH-CARD", f"{path} is no block device", "Name the card's, such as /dev/sdb.")
    except OSError as error:
        raise EdgeopsError("E-FLASH-CARD", f"{path}: {error.strerror}", "Is the card in its reader?") from error
    said = _run("lsblk", "--json", "--bytes", "--output", "NAME,TYPE,MODEL,SIZE,RO,MOUNTPOINTS,FSTYPE", str(path))
    return read_lsblk(path, said)._replace(identity=_identity(path.stat().st_rdev))


def _identity(number: int) -> str:
    """Return which disk stands behind a device number: another one in the same reader is another one."""
    try:
        sequence = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/diskseq").read_text().strip()
    except OSError:
        sequence = ""  # Linux before 5.15 does not count them
    return f"{os.major(number)}:{os.minor(number)} {sequence}"


def read_lsblk(path: Path, said: str) -> Device:
    """Read what lsblk says of a device. Pure.

    Raises:
        EdgeopsError: E-FLASH-CARD; it is not its word.
    """
    try:
        (top,) = json.loads(said)["blockdevices"]
        mounted = [place for part in _walk(top) for place in part.get("mountpoints") or [] if place]
        swap = any(part.get("fstype") in ("swap", "LVM2_member", "linux_raid_member") for part in _walk(top))
        refused = ""
        if top["type"] not in ("disk", "loop"):
            refused = f"it is a {top['type']}, not a whole disk"
        elif mounted:
            refused = f"it is in use: {', '.join(sorted(mounted))}"
        elif swap:
            refused = "it holds swap, LVM or RAID: it is part of a system"
        elif top["ro"]:
            refused = "it is write-protected"
        return Device(path, str(top.get("model") or "unknown model").strip(), int(top["size"]), refused)
    except (ValueError, KeyError, TypeError) as error:
        raise EdgeopsError("E-FLASH-CARD", f"{path}: lsblk gives no answer") from error


def _walk(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [part, *(inner for child in part.get("children") or [] for inner in _walk(child))]


def copy_image(base: Path, out: Path, on_progress: Progress = lambda _done, _all: None) -> None:
    """Copy a base image.

    Raises:
        EdgeopsError: E-FLASH-CARD; there is no such image. E-DISK-FULL or E-DISK-WRITE.
    """
    try:
        size = base.stat().st_size
        with base.open("rb") as source, out.open("wb") as target:
            done = 0
            while block := source.read(_BLOCK):
                target.write(block)
                done += len(block)
                on_progress(done, size)
    except OSError as error:
        if error.filename == str(base):
            raise EdgeopsError("E-FLASH-CARD", f"{base}: {error.strerror}", _NEXT) from error
        raise durable.disk_error(error, out) from error


def boot_partition(image: Path) -> Boot:
    """Return an image's first FAT partition; an image that is FAT as a whole is its own.

    Raises:
        EdgeopsError: E-FLASH-CARD; it has none.
    """
    head = _head(image)
    if len(head) < _SECTOR or head[510:] != b"\x55\xaa":
        raise EdgeopsError("E-FLASH-CARD", f"{image} is no disk image", _NEXT)
    if head[54:57] == b"FAT" or head[82:85] == b"FAT":
        return Boot(image, 0)
    offset = next((offset for offset, kind in partitions(image) if kind.upper() in _UPPER), None)
    if offset is None:
        raise EdgeopsError("E-FLASH-CARD", f"{image} has no FAT partition", _NEXT)
    return Boot(image, offset)


def partitions(image: Path) -> list[tuple[int, str]]:
    """Return offset in bytes and type of an image's partitions; an image that is FAT as a whole has none.

    Raises:
        EdgeopsError: E-FLASH-CARD; its table cannot be read.
    """
    head = _head(image)
    if head[54:57] == b"FAT" or head[82:85] == b"FAT":
        return []
    try:
        table = json.loads(_run("sfdisk", "--json", str(image)))["partitiontable"]
        sector = int(table.get("sectorsize", _SECTOR))
        return [(int(part["start"]) * sector, str(part["type"])) for part in table.get("partitions", ())]
    except (ValueError, KeyError, TypeError) as error:
        raise EdgeopsError("E-FLASH-CARD", f"{image}: its partitions cannot be read", _NEXT) from error


def _head(image: Path) -> bytes:
    try:
        with image.open("rb") as file:
            return file.read(_SECTOR)
    except OSError as error:
        raise EdgeopsError("E-FLASH-CARD", f"{image}: {error.strerror}", _NEXT) from error


def label_of(boot: Boot) -> str:
    """Return the label of the boot partition; empty: it has none."""
    done = subprocess.run(
        [find_tool("mlabel"), "-s", "-i", boot.drive, "::"], capture_output=True, text=True, timeout=_WITHIN_S,
        check=False, env=_ENV,
    )  # fmt: skip
    return done.stdout.partition(" is ")[2].split("(")[0].strip()


def set_label(boot: Boot, label: str) -> None:
    """Name the boot partition.

    Raises:
        EdgeopsError: E-FLASH-CARD.
    """
    _run("mlabel", "-i", boot.drive, f"::{label}")


_UPPER = {kind.upper() for kind in _FAT}


def read_text(boot: Boot, name: str) -> str | None:
    """Return a file of the boot partition; None: there is none."""
    done = subprocess.run(
        [find_tool("mtype"), "-i", boot.drive, f"::{name}"],
        capture_output=True,
        timeout=_WITHIN_S,
        check=False,
        env=_ENV,
    )
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def write_files(boot: Boot, texts: Mapping[str, str], large: Mapping[str, Path]) -> None:
    """Put files on the boot partition, and read each back.

    Args:
        boot: The partition.
        texts: Content by name; one folder deep at most.
        large: Files by name.

    Raises:
        EdgeopsError: E-FLASH-CARD; there is no room, or a file reads back otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="edgeops-card-") as folder:
        sources = dict(large)
        for index, (name, text) in enumerate(texts.items()):
            sources[name] = Path(folder) / str(index)
            sources[name].write_text(text, encoding="utf-8")
        for parent in sorted({name.rpartition("/")[0] for name in sources} - {""}):
            subprocess.run(
                [find_tool("mmd"), "-i", boot.drive, "-D", "s", f"::{parent}"], capture_output=True, timeout=_WITHIN_S,
                check=False, env=_ENV,
            )  # fmt: skip
        for name, source in sorted(sources.items()):
            _run("mcopy", "-i", boot.drive, "-o", "-Q", str(source), f"::{name}")
            back = Path(folder) / "back"
            _run("mcopy", "-i", boot.drive, "-n", "-o", f"::{name}", str(back))
            if sha256_of(back) != sha256_of(source):
                raise EdgeopsError("E-FLASH-CARD", f"{boot.image}: {name} reads back otherwise", "Use another card.")
            back.unlink()


def write_device(image: Path, device: Device, on_progress: Progress = lambda _done, _all: None) -> str:
    """Write an image to a card and read it back; return its SHA-256.

    Nobody can mount it meanwhile, and it is the very disk that was looked at.

    Raises:
        EdgeopsError: E-FLASH-CARD; the card may not be written, is another one than was looked at, is too small, or
            reads back otherwise. E-DISK-WRITE; it was taken out, or fails.
    """
    if device.refused:
        raise EdgeopsError(
            "E-FLASH-CARD", f"{device.path} ({device.model}): {device.refused}", "Name the card's device."
        )
    size = image.stat().st_size
    if device.size < size:
        raise EdgeopsError(
            "E-FLASH-CARD", f"{device.path} has {device.size} bytes, the image {size}", "Use a larger card."
        )
    card = _open_alone(device)
    try:
        written = _write(image, card, lambda done: on_progress(done, 2 * size))
        os.fsync(card)
        _forget_what_was_read(card)
        found = _read_back(card, size, lambda done: on_progress(size + done, 2 * size))
    except OSError as error:
        what = f"{device.path}: {error.strerror}: what is on it is not usable now"
        raise EdgeopsError("E-DISK-WRITE", what, "Is the card in its reader, and whole?") from error
    finally:
        os.close(card)
    if found != written:
        raise EdgeopsError("E-FLASH-CARD", f"{device.path} reads back otherwise", "Use another card.")
    return written


def _open_alone(device: Device) -> int:
    """Open a card so that nothing mounts it while it is open; refuse one that is in use, or another one."""
    try:
        card = os.open(device.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise EdgeopsError(
                "E-FLASH-CARD", f"{device.path} ({device.model}): it is in use by now", "Unmount it, and again."
            ) from error
        raise EdgeopsError("E-DISK-WRITE", f"{device.path}: {error.strerror}", "Are you root?") from error
    if device.identity and _identity(os.fstat(card).st_rdev) != device.identity:
        os.close(card)
        raise EdgeopsError(
            "E-FLASH-CARD", f"{device.path} is another disk than the {device.model} that was looked at", "Look again."
        )
    return card


def _write(image: Path, card: int, on_progress: Callable[[int], object]) -> str:
    digest, done = hashlib.sha256(), 0
    with image.open("rb") as source:
        while block := source.read(_BLOCK):
            digest.update(block)
            left = memoryview(block)
            while left:
                left = left[os.write(card, left) :]
            done += len(block)
            on_progress(done)
    return digest.hexdigest()


def _forget_what_was_read(card: int) -> None:
    """What is read back must come from the card, not from memory."""
    if stat.S_ISBLK(os.fstat(card).st_mode):
        fcntl.ioctl(card, _BLKFLSBUF)
    os.posix_fadvise(card, 0, 0, os.POSIX_FADV_DONTNEED)


def _read_back(card: int, size: int, on_progress: Callable[[int], object]) -> str:
    digest, done = hashlib.sha256(), 0
    os.lseek(card, 0, os.SEEK_SET)
    while done < size and (block := os.read(card, min(_BLOCK, size - done))):
        digest.update(block)
        done += len(block)
        on_progress(done)
    return digest.hexdigest()


def replace(image: Path, out: Path) -> None:
    """Copy a finished image to its place, at once; it holds secrets, so nobody else may read it.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=out.absolute().parent, prefix=f".{out.name}-", delete=False) as target:
            temporary = Path(target.name)
            with image.open("rb") as source:
                shutil.copyfileobj(source, target, _BLOCK)
            target.flush()
            os.fsync(target.fileno())
        durable.rename(temporary, out)
    except OSError as error:
        raise durable.disk_error(error, out) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


# Cards of all sizes pass: mtools' own checks of geometry are for floppy disks.
_ENV = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
_PACKAGES = {"sfdisk": "fdisk", "lsblk": "util-linux", "debugfs": "e2fsprogs"}


def find_tool(program: str) -> str:
    """Return where a program is.

    Raises:
        EdgeopsError: E-DEPENDENCY; it is not installed.
    """
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        package = _PACKAGES.get(program, "mtools")
        raise EdgeopsError("E-DEPENDENCY", f"no {program} on this machine", f"apt-get install --yes {package}")
    return path


def _run(program: str, *words: str) -> str:
    done = subprocess.run(
        [find_tool(program), *words], capture_output=True, text=True, timeout=_WITHIN_S, check=False, env=_ENV
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
        raise EdgeopsError("E-FLASH-CARD", f"{program}: {said[-1][:300]}", "Is there room on the boot partition?")
    return done.stdout
