"""Whether a board can be served, as which profile, and with which packages. Pure: facts in, decision out."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from edgeops.contracts.enrolment import EnrolmentToken
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Profile
from edgeops.flash.facts import Board, Python

# The oldest that edgeops runs on, and the newest for which runtimes have wheels.
PYTHON_MIN, PYTHON_MAX = (3, 10), (3, 13)
JETPACK_6_L4T = 36
RESERVE_MIB = 200
MEMORY_MIN_MIB = 256
CLOCK_MIN_S = 1_700_000_000
_GUESSES = (
    (r"Raspberry Pi 5", "raspberry-pi-5"),
    (r"Raspberry Pi 4|Compute Module 4|Raspberry Pi 400", "raspberry-pi-4"),
    (r"Raspberry Pi Zero 2|Raspberry Pi 3", "raspberry-pi-zero-2w"),
    (r"Orin NX", "jetson-orin-nx"),
    (r"Orin Nano", "jetson-orin-nano"),
)
_ARCH_GUESSES = {"aarch64": "generic-arm64", "x86_64": "generic-x86-64"}
# Which extra of the package brings a profile's runtime.
_EXTRAS = {"onnxruntime": "onnxruntime", "litert": "litert", "openvino": "openvino"}
# Oldest glibc for which each runtime has wheels.
_GLIBC_MIN = {"onnxruntime": (2, 27), "litert": (2, 35), "openvino": (2, 31)}


class Choice(NamedTuple):
    """What goes to a board.

    Args:
        profile: The device profile.
        python: The interpreter.
        extras: Extras of edgeops that it gets.
        system_packages: Whether the system's own packages are seen: a Jetson's onnxruntime with TensorRT.
        notes: What a person should know.
    """

    profile: str
    python: Python
    extras: tuple[str, ...]
    system_packages: bool
    notes: tuple[str, ...]


def guess_profile(board: Board, known: Iterable[str]) -> str:
    """Return the profile that a board says that it is.

    Raises:
        EdgeopsError: E-FLASH-BOARD; none fits.
    """
    names = set(known)
    for pattern, name in _GUESSES:
        if re.search(pattern, board.model) and name in names:
            return name
    generic = _ARCH_GUESSES.get(board.arch)
    if generic is None or generic not in names:
        raise EdgeopsError(
            "E-FLASH-BOARD", f"no profile for {board.arch} ({board.model or board.os})", "Give --profile."
        )
    return generic


def choose(board: Board, profile: Profile, *, size_mib: int = 0) -> Choice:
    """Decide what a board gets.

    Args:
        board: What it is.
        profile: Of the class that it shall belong to.
        size_mib: What is to be brought, unpacked; 0: not known yet.

    Raises:
        EdgeopsError: E-FLASH-BOARD; it cannot be served, with what can be done about it. E-PROFILE-UNSUPPORTED.
    """
    if profile.status == "unsupported":
        raise EdgeopsError("E-PROFILE-UNSUPPORTED", f"{profile.name}: {profile.reason}", "Choose another board.")
    if profile.cpu.arch != board.arch:
        raise _no(f"it is {board.arch}, profile {profile.name} is {profile.cpu.arch}", "Choose a profile that fits.")
    if not board.root:
        raise _no("this user is not root, and sudo asks for a password", "Log in as root, or let sudo -n work.")
    if board.l4t is not None and board.l4t[0] < JETPACK_6_L4T:
        raise _no(
            f"it runs L4T {board.l4t[0]}.{board.l4t[1]} (JetPack 5 or older), whose Python is 3.8",
            "Install JetPack 6 with NVIDIA's SDK manager; recovery-mode flashing is not done here.",
        )
    if board.glibc is None:
        raise _no("it has no glibc: runtimes have no wheels for it", "Use a Debian, Ubuntu or Raspberry Pi OS.")
    python = next((one for one in board.pythons if PYTHON_MIN <= one.version <= PYTHON_MAX), None)
    if python is None:
        found = ", ".join(f"{major}.{minor}" for (major, minor), _ in board.pythons) or "none"
        raise _no(f"it has Python {found}; 3.10 to 3.13 is needed", "Install a newer system on it.")
    if 0 < board.memory_mib < MEMORY_MIN_MIB:
        raise _no(f"it has {board.memory_mib} MiB of memory, {MEMORY_MIN_MIB} are needed", "Use a larger board.")
    if size_mib and board.disk_mib < size_mib + RESERVE_MIB:
        raise _no(
            f"{board.disk_mib} MiB are free, {size_mib} and {RESERVE_MIB} for reserve are needed",
            "Make room, or use a larger card.",
        )
    return _packages(board, profile, python)


def server_note(token: str, host: str) -> str:
    """Return what is wrong with a token's address of the fleet, for a board that is not this machine; empty: nothing.

    Args:
        token: Enrolment token.
        host: Where the board is; empty: elsewhere.
    """
    try:
        server = urlsplit(EnrolmentToken.from_text(token).server).hostname or ""
    except (EdgeopsError, ValueError):
        return ""
    if not _is_loopback(server) or _is_loopback(host):
        return ""
    return f"the fleet's address in the token is {server}, which is the board itself: edgeops serve --host --advertise"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _packages(board: Board, profile: Profile, python: Python) -> Choice:
    own = "TensorrtExecutionProvider" in board.onnxruntime or "CUDAExecutionProvider" in board.onnxruntime
    extras, left_out, notes = ["agent"], [], []
    for runtime in profile.runtimes:
        extra = _EXTRAS.get(runtime.name)
        if extra is None or (runtime.name == "onnxruntime" and own):
            continue
        assert board.glibc is not None
        if board.glibc < _GLIBC_MIN.get(runtime.name, (0, 0)):
            left_out.append(f"{runtime.name} needs glibc {'.'.join(map(str, _GLIBC_MIN[runtime.name]))}")
            continue
        if extra not in extras:
            extras.append(extra)
    if len(extras) == 1 and not own:
        raise _no(
            f"its glibc is {'.'.join(map(str, board.glibc or ()))}: " + "; ".join(left_out),
            "Install a newer system on it.",
        )
    notes += [f"left out: {reason}" for reason in left_out]
    if own:
        notes.append(f"the system's own onnxruntime is used: {board.onnxruntime}")
    elif board.l4t is not None:
        notes.append("no onnxruntime with TensorRT on the system: models run on the CPU until NVIDIA's is installed")
    if board.clock_s and board.clock_s < CLOCK_MIN_S:
        notes.append("its clock is wrong: certificates are judged by the time of the software until it is right")
    if board.power_mode or board.clocks:
        notes.append(f"power mode {board.power_mode or 'unknown'}, clocks {board.clocks or 'unknown'}")
    return Choice(profile.name, python, tuple(extras), own, tuple(notes))


def _no(what: str, next_step: str) -> EdgeopsError:
    return EdgeopsError("E-FLASH-BOARD", f"this board cannot be served: {what}", next_step)
