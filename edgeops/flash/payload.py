"""What a board gets: this installation's code and the exact wheels for that board, as one file known by its hash."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeops import __version__
from edgeops.contracts.errors import EdgeopsError
from edgeops.flash.facts import Board
from edgeops.flash.fit import Choice
from edgeops.profiles.builtin import builtin_profile_dir

DIST = "edgeops"
PACKAGES_NAME = "edgeops-packages.txt"
_WITHIN_S = 1800.0
_OWN_PACKAGES = ("edgeops", "firmware_bridge")
_GLIBC_OLDEST = 17
_MIB = 1 << 20

Say = Callable[[str], object]


class Payload(NamedTuple):
    """A file for boards of one kind.

    Args:
        file: A .tar.gz of what goes into site-packages.
        version: Name of the version's folder on a board: edgeops' version and the beginning of the hash.
        sha256: Of the file.
        unpacked_mib: What it takes on a board.
        packages: `name==version` of each distribution in it.
    """

    file: Path
    version: str
    sha256: str
    unpacked_mib: int
    packages: tuple[str, ...]


class Platform(NamedTuple):
    """What wheels must fit: processor as `uname -m` says, glibc, and Python."""

    arch: str
    glibc: tuple[int, int]
    python: tuple[int, int]


def platform_of(board: Board, choice: Choice) -> Platform:
    """Return what a board's wheels must fit."""
    assert board.glibc is not None, "`fit.choose` refuses a board without"
    return Platform(board.arch, board.glibc, choice.python.version)


def build(board: Board, choice: Choice, cache: Path, say: Say = lambda _line: None) -> Payload:
    """Resolve the wheels for a board on this machine, and pack them with this installation's code.

    pip takes the wheels that the board's Python, processor and glibc can load, and no other; the board itself
    needs no network. The same inputs give the same file, which the cache keeps.

    Args:
        board: What it is.
        choice: What it gets.
        cache: A folder for the files.
        say: Hears what goes on.

    Raises:
        EdgeopsError: E-FLASH-WHEELS; a package has no wheel for this board, or cannot be fetched. E-DISK-WRITE.
    """
    fits = platform_of(board, choice)
    with tempfile.TemporaryDirectory(prefix="edgeops-payload-") as folder:
        site = Path(folder) / "site"
        say(f"wheels for {fits.arch}, Python {'.'.join(map(str, fits.python))}: {', '.join(choice.extras)}")
        packages = install_wheels(requirements_of(choice.extras), fits, site)
        put_code(site)
        (site / PACKAGES_NAME).write_text("".join(f"{package}\n" for package in packages), encoding="utf-8")
        size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
        packed = Path(folder) / "payload.tar.gz"
        _pack(site, packed)
        sha256 = hashlib.sha256(packed.read_bytes()).hexdigest()
        kept = cache / f"{sha256}.tar.gz"
        try:
            cache.mkdir(parents=True, exist_ok=True)
            # Others may keep the same file at the same time.
            with tempfile.NamedTemporaryFile(dir=cache, prefix=".payload-", delete=False) as temporary:
                shutil.copyfile(packed, temporary.name)
            Path(temporary.name).rename(kept)
        except OSError as error:
            raise EdgeopsError("E-DISK-WRITE", f"{kept}: {error.strerror}", "Check the disk.") from error
    return Payload(kept, f"{__version__}-{sha256[:12]}", sha256, -(-size // _MIB), packages)


class Packer:
    """Builds what boards of one kind get once, though many of them ask at the same time. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: dict[tuple[Platform, tuple[str, ...]], _Kind] = {}

    def build(self, board: Board, choice: Choice, cache: Path, say: Say) -> Payload:
        """As `build`; what another board of this kind has got is not resolved again.

        Raises:
            EdgeopsError: As `build`.
        """
        with self._lock:
            kind = self._kinds.setdefault((platform_of(board, choice), choice.extras), _Kind())
        with kind.lock:
            if kind.payload is None:
                kind.payload = build(board, choice, cache, say)
            return kind.payload


class _Kind:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.payload: Payload | None = None


def requirements_of(extras: Sequence[str]) -> list[str]:
    """Return what edgeops and some of its extras need, in the versions that this machine has where it has them."""
    wanted: dict[str, str] = {}
    for line in importlib.metadata.requires(DIST) or []:
        requirement, _, marker = line.partition(";")
        extra = marker.partition("extra ==")[2].strip().strip("'\"")
        if extra in extras or not marker.strip():
            name = _name(requirement)
            wanted[name.lower()] = _pinned(name, requirement.strip())
        elif "python_version" in marker and not extra:
            wanted[_name(requirement).lower()] = f"{requirement.strip()} ; {marker.strip()}"
    return sorted(wanted.values())


def _pinned(name: str, requirement: str) -> str:
    """Return an exact requirement where this machine has the package: what was tested is what ships."""
    try:
        return f"{name}=={importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return requirement


def _name(requirement: str) -> str:
    end = next((index for index, sign in enumerate(requirement) if sign in "<>=!~[ ;("), len(requirement))
    return requirement[:end].strip()


def platforms(arch: str, glibc: tuple[int, int]) -> list[str]:
    """Return the tags of wheels that a processor and a glibc can load, newest first."""
    newest = glibc[1] if glibc[0] == 2 else _GLIBC_OLDEST
    tags = [f"manylinux_2_{minor}_{arch}" for minor in range(newest, _GLIBC_OLDEST - 1, -1)]
    return [*tags, f"manylinux2014_{arch}", *([f"manylinux1_{arch}"] if arch == "x86_64" else []), f"linux_{arch}"]


def install_wheels(requirements: Sequence[str], fits: Platform, site: Path) -> tuple[str, ...]:
    """Unpack wheels for another machine into a folder, by this machine's pip.

    Args:
        requirements: Exact ones where what was tested here is what ships.
        fits: The other machine.
        site: A folder that is not there yet.

    Returns:
        `name==version sha256:…` of each.

    Raises:
        EdgeopsError: E-FLASH-WHEELS.
    """
    major, minor = fits.python
    tags = [word for tag in platforms(fits.arch, fits.glibc) for word in ("--platform", tag)]
    abis = [word for abi in (f"cp{major}{minor}", "abi3", "none") for word in ("--abi", abi)]
    said = ""
    with tempfile.TemporaryDirectory(prefix="edgeops-wheels-") as folder:
        report = Path(folder) / "report.json"
        # numpy and others drop old Pythons: an exact pin that has no wheel there is taken as an upper bound.
        for pins in (requirements, [pin.replace("==", "<=") for pin in requirements]):
            command = [
                sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
                "--target", str(site), "--only-binary=:all:", "--implementation", "cp", "--report", str(report),
                "--python-version", f"{major}.{minor}", *tags, *abis, *pins,
            ]  # fmt: skip
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
            except subprocess.TimeoutExpired as error:
                raise EdgeopsError(
                    "E-FLASH-WHEELS", f"pip: no end in {_WITHIN_S:.0f} s", "Check the network."
                ) from error
            if done.returncode == 0:
                return _resolved(json.loads(report.read_text(encoding="utf-8")))
            said = next((line for line in done.stderr.splitlines()[::-1] if line.startswith("ERROR")), "no message")
            shutil.rmtree(site, ignore_errors=True)
    glibc = ".".join(map(str, fits.glibc))
    raise EdgeopsError(
        "E-FLASH-WHEELS",
        f"{fits.arch}, glibc {glibc}, Python {major}.{minor}: {said[:400]}",
        "Check the network, or give the board a newer system.",
    )


def _resolved(report: dict[str, Any]) -> tuple[str, ...]:
    """Return what pip's report says that it installed."""
    found = []
    for item in report["install"]:
        hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
        meta = item["metadata"]
        found.append(f"{meta['name']}=={meta['version']} sha256:{hashes.get('sha256', '')}")
    return tuple(sorted(found, key=str.lower))


def put_code(site: Path) -> None:
    """Copy this installation's own code into a folder, with the entry points by which plugins are found."""
    for name in _OWN_PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        source = Path(spec.submodule_search_locations[0])
        shutil.copytree(source, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    profiles = site / "edgeops/profiles/device_profiles"
    if not profiles.is_dir():
        shutil.copytree(builtin_profile_dir(), profiles)
    distribution = importlib.metadata.distribution(DIST)
    info = site / f"{DIST}-{distribution.version}.dist-info"
    info.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        (info / name).write_text(distribution.read_text(name) or "", encoding="utf-8")


def _pack(site: Path, target: Path) -> None:
    """Write a tree as .tar.gz: sorted, owned by root, without times, so that the same tree gives the same bytes."""
    with (
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(site.rglob("*")):
            if path.is_dir() or path.is_symlink():
                continue
            info = tarfile.TarInfo(str(path.relative_to(site)))
            info.size, info.mode = path.stat().st_size, 0o755 if os.access(path, os.X_OK) else 0o644
            with path.open("rb") as source:
                archive.addfile(info, source)
