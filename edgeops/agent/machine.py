"""What machine this is, for people and for queries over the fleet: nothing secret, nothing that changes by the hour."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

MAX_CHARACTERS = 120


@functools.cache
def attributes(root: Path = Path("/")) -> dict[str, str]:
    """Return operating system, kernel, processor, memory and board, each where the machine tells it.

    Args:
        root: Where `etc`, `proc` and `sys` lie.
    """
    found = {
        "arch": platform.machine(),
        "kernel": platform.release(),
        "os": _os(root / "etc/os-release"),
        "python": platform.python_version(),
        "processors": str(os.cpu_count() or ""),
        "memory-mib": _memory_mib(root / "proc/meminfo"),
        "board": _board(root),
    }
    return {key: value[:MAX_CHARACTERS] for key, value in found.items() if value}


def _os(path: Path) -> str:
    for line in _text(path).splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip().strip('"')
    return platform.system()


def _memory_mib(path: Path) -> str:
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "MemTotal:" and words[1].isdecimal():
            return str(int(words[1]) // 1024)
    return ""


def _board(root: Path) -> str:
    """Return the board's name: a device tree's model, or what the firmware calls the product."""
    for path in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        if name := _text(root / path).strip("\0\n "):
            return name
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
