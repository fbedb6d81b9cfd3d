"""An arm64 Debian root folder with what an agent needs, made once and kept in the cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgeops.contracts.errors import EdgeopsError
from edgeops.flash import payload
from edgeops.intake.cache import cache_dir
from hil.tools import APT_GET, DEBOOTSTRAP, MOUNT, QEMU_USER

SUITE = "bookworm"
SITE = "/opt/edgeops/site"
CODE = "/opt/edgeops/code"

PACKAGES = ("python3", "ca-certificates")
_EXTRAS = ("agent", "onnxruntime", "litert")
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_BINFMT_RULE = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
_MAKE_WITHIN_S = 7200
_DONE = ".edgeops-made"
_FITS = payload.Platform("aarch64", (2, 36), (3, 11))

Say = Callable[[str], object]


def ensure_emulation() -> None:
    """Let the kernel run arm64 programs through QEMU, for this boot.

    Raises:
        EdgeopsError: E-DEPENDENCY; QEMU's user emulation is missing, or this user may not tell the kernel of it.
    """
    QEMU_USER.find()
    rule = _BINFMT / "qemu-aarch64"
    if rule.exists():
        return
    try:
        if not (_BINFMT / "register").exists():
            command = [MOUNT.find(), "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)]
            subprocess.run(command, check=True, capture_output=True)
        if not rule.exists():
            (_BINFMT / "register").write_bytes(_BINFMT_RULE.read_bytes().strip())
    except (OSError, subprocess.CalledProcessError) as error:
        raise EdgeopsError(
            "E-DEPENDENCY",
            f"the kernel cannot be told to run arm64 programs: {error}",
            "update-binfmts --enable, as root",
        ) from error


def arm64_root(say: Say = lambda _line: None) -> Path:
    """Return the root folder; makes it if it is not there, which takes minutes.

    Raises:
        EdgeopsError: E-DEPENDENCY; a tool is missing, or this is not root. E-TOOLCHAIN; Debian's or Python's packages
            cannot be had.
    """
    if os.geteuid() != 0:
        raise EdgeopsError("E-DEPENDENCY", "an arm64 root folder needs root: chroot and mounts", "Run it as root.")
    ensure_emulation()
    wheels = payload.requirements_of(_EXTRAS)

    def make(folder: Path) -> None:
        say("arm64: Debian's base system; takes minutes, once")
        debootstrap(folder, PACKAGES)
        say("arm64: the agent's packages")
        install_packages(folder / SITE[1:])

    return made_once("arm64", (SUITE, *PACKAGES, *wheels), make)


def made_once(name: str, parts: Sequence[str], make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache that depends on `parts` alone; a cut leaves nothing that counts as made.

    Args:
        name: Of the folder, for people.
        parts: What it is made of.
        make: Fills the new folder.

    Raises:
        EdgeopsError: What `make` raised.
    """
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    folder = cache_dir() / "hil" / f"{name}-{key}"
    with _alone(folder.with_suffix(".lock")):
        if not (folder / _DONE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            make(folder)
            (folder / _DONE).touch()
    return folder


def install_packages(folder: Path) -> None:
    """Unpack what an agent needs for arm64 into a folder.

    Raises:
        EdgeopsError: E-FLASH-WHEELS.
    """
    payload.install_wheels(payload.requirements_of(_EXTRAS), _FITS, folder)


def debootstrap(folder: Path, packages: Sequence[str], *, architecture: str = "arm64", suite: str = SUITE) -> None:
    """Make a Debian root folder, from where this machine gets its packages.

    Args:
        folder: Where to.
        packages: Beside the base system.
        architecture: As Debian calls it.
        suite: Debian's release.

    Raises:
        EdgeopsError: E-DEPENDENCY or E-TOOLCHAIN.
    """
    program = DEBOOTSTRAP.find()
    mirror = subprocess.run(
        [APT_GET.find(), "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    ).stdout.split("\n")[0]  # fmt: skip
    include = f"--include={','.join(packages)}"
    call(
        [
            program,
            f"--arch={architecture}",
            "--variant=minbase",
            include,
            suite,
            str(folder),
            *([mirror] if mirror else []),
        ]
    )


def call(command: list[str]) -> None:
    """Run a program that makes something.

    Raises:
        EdgeopsError: E-TOOLCHAIN; it failed, or does not end.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MAKE_WITHIN_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise EdgeopsError("E-TOOLCHAIN", f"{command[0]}: no end in {_MAKE_WITHIN_S} s") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise EdgeopsError("E-TOOLCHAIN", f"{Path(command[0]).name}: {said[-1][:300]}", "Check the network; try again.")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
