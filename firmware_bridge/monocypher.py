"""The firmware's crypto library: its published source, fetched at build time, pinned by hash, never committed."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import tempfile
import venv
from pathlib import Path

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge.cache import cache_dir, keep

_REQUIREMENT = "pymonocypher==4.0.3.4"
_SDIST_SHA256 = "5e56e3d3eb770a53e0b9f6274146663c11a11f3d0de5cd48e3be0428d1b07a4a"
_FILES = {
    "monocypher.c": "57eb914fc88136119bd41655cccb8c250048bf54d470540625186f8ab16f64be",
    "monocypher.h": "c494da712122da7ff679fdcf318a5317e84972b6c950fe9d896212947797facd",
}
# pip prepares metadata even of what it only downloads; with this it need not build the package's own requirements.
_SETUPTOOLS = "setuptools==80.9.0"
_FETCH_TIMEOUT_S = 300


def sources() -> Path:
    """Return the folder with monocypher.c and monocypher.h, from the cache or by pip.

    Raises:
        EdgeopsError: E-NET-UNREACHABLE; pip cannot fetch the package, or it is not the pinned one.
            E-DISK-WRITE; the cache cannot be written.
    """
    folder = cache_dir() / "packages" / _SDIST_SHA256[:16]
    if not _whole(folder):
        with tempfile.TemporaryDirectory(prefix="edgeops-monocypher-") as scratch:
            archive = _download(Path(scratch))
            with tarfile.open(archive) as content:
                for name, sha256 in _FILES.items():
                    keep(folder / name, _member(content, name, sha256))
    return folder


def _whole(folder: Path) -> bool:
    return all(
        (folder / name).is_file() and hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
        for name, sha256 in _FILES.items()
    )


def _member(content: tarfile.TarFile, name: str, sha256: str) -> bytes:
    package = _REQUIREMENT.replace("==", "-")
    file = content.extractfile(f"{package}/{name}")
    data = b"" if file is None else file.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise EdgeopsError("E-NET-UNREACHABLE", f"{name} of {_REQUIREMENT} is not the pinned file")
    return data


def _download(scratch: Path) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_SDIST_SHA256}\n")
    venv.create(scratch / "env", with_pip=True)
    pip = [str(scratch / "env" / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # fmt: off
    download = [
        "download", "--no-deps", "--no-build-isolation", "--require-hashes", "--no-binary=:all:",
        "--dest", str(scratch / "got"), "--requirement", str(requirements),
    ]
    # fmt: on
    try:
        for arguments in (["install", _SETUPTOOLS], download):
            subprocess.run([*pip, *arguments], check=True, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = str(error.stderr or error).strip().splitlines()[-1:]
        raise EdgeopsError(
            "E-NET-UNREACHABLE",
            f"pip could not fetch {_REQUIREMENT}: {' '.join(said)}",
            "Check the network and pip's package index, then run this again.",
        ) from error
    return next((scratch / "got").iterdir())
