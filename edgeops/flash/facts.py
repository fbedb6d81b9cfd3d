"""What a board is: asked by one script of its own shell, read as facts. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError

# Every command may be missing on a board: what says nothing stays empty. No line of it changes anything.
SCRIPT = r"""
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
say() { printf '%s=%s\n' "$1" "$(printf '%s' "$2" | tr '\n' ' ')"; }
say arch "$(uname -m)"
say kernel "$(uname -r)"
say glibc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
( . /etc/os-release 2>/dev/null; say os_id "$ID"; say os_version "$VERSION_ID"; say os_title "$PRETTY_NAME" )
say model "$(tr -d '\0' < /proc/device-tree/model 2>/dev/null)"
for v in 3.13 3.12 3.11 3.10 3.9 3.8; do
  p=$(command -v "python$v" 2>/dev/null) && "$p" -c 'import venv, ssl, ctypes' 2>/dev/null && say python "$v $p"
done
own='import sys, venv, ssl, ctypes; print("%d.%d" % sys.version_info[:2], sys.executable)'
p=$(command -v python3 2>/dev/null) && say python "$("$p" -c "$own" 2>/dev/null)"
say memory_kib "$(awk '/^MemTotal/ {print $2}' /proc/meminfo 2>/dev/null)"
say disk_kib "$(df -Pk "$1" 2>/dev/null | awk 'NR==2 {print $4}')"
say l4t "$(head -n1 /etc/nv_tegra_release 2>/dev/null)"
installed() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null; }
say jetpack "$(installed nvidia-jetpack)"
say cuda "$(ls -d /usr/local/cuda-* 2>/dev/null | tail -n1)"
say tensorrt "$(installed libnvinfer-bin || installed libnvinfer10)"
onnxruntime='import onnxruntime as o; print(o.__version__, *o.get_available_providers())'
say onnxruntime "$(python3 -c "$onnxruntime" 2>/dev/null)"
say power_mode "$(nvpmodel -q 2>/dev/null | head -n1)"
say clocks "$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)"
say accelerators "$(ls -d /dev/dri/renderD* /dev/apex_* /dev/nvhost-gpu /dev/nvidia0 2>/dev/null | tr '\n' ' ')"
say systemd "$(systemctl --version 2>/dev/null | awk 'NR==1 {print $2}')"
[ -d /run/systemd/system ] && say systemd_runs yes
say uid "$(id -u)"
[ "$(id -u)" = 0 ] && say root yes || { sudo -n true 2>/dev/null && say root sudo; }
say clock "$(date +%s)"
"""

MAX_ANSWER_BYTES = 64 << 10
_LINE = re.compile(r"([a-z0-9_]{1,32})=(.{0,2000})")
_GLIBC = re.compile(r"glibc (\d+)\.(\d+)")
_PYTHON = re.compile(r"(\d+)\.(\d+) (/[\w./+-]+)")
_L4T = re.compile(r"R(\d+).*REVISION: (\d+)")


class Python(NamedTuple):
    """An interpreter of the board."""

    version: tuple[int, int]
    path: str


class Board(NamedTuple):
    """What a board is.

    Args:
        arch: As `uname -m` says.
        os: Name and version for people.
        glibc: Version; None: it has none.
        model: What the device tree calls it; empty: it has none.
        pythons: Interpreters with venv, newest first.
        memory_mib: Main memory.
        disk_mib: Room where edgeops goes.
        l4t: Release of NVIDIA's Linux for Tegra; None: it is no Jetson.
        jetpack: Version of JetPack, if its package is installed.
        cuda: Folder of CUDA; empty: none.
        tensorrt: Version of TensorRT; empty: none.
        onnxruntime: Version and providers of the system's own onnxruntime; empty: none.
        power_mode: What nvpmodel says; empty: it does not.
        clocks: Governor of the processor's clock; empty: it does not say.
        accelerators: Device nodes.
        systemd: Its version; 0: none.
        systemd_runs: Whether it is what runs the system.
        root: How to be root: `yes`, `sudo`; empty: not at all.
        clock_s: The board's time, Unix.
        versions: Versions of edgeops that are there.
        current: The one in use; empty: none.
    """

    arch: str
    os: str
    glibc: tuple[int, int] | None
    model: str
    pythons: tuple[Python, ...]
    memory_mib: int
    disk_mib: int
    l4t: tuple[int, int] | None
    jetpack: str
    cuda: str
    tensorrt: str
    onnxruntime: str
    power_mode: str
    clocks: str
    accelerators: tuple[str, ...]
    systemd: int
    systemd_runs: bool
    root: str
    clock_s: int
    versions: tuple[str, ...]
    current: str


def read(answer: bytes) -> Board:
    """Read what `SCRIPT` printed.

    Raises:
        EdgeopsError: E-FLASH-BOARD; it is no such answer.
    """
    lines: dict[str, list[str]] = {}
    for line in answer[:MAX_ANSWER_BYTES].decode(errors="replace").splitlines():
        if found := _LINE.fullmatch(line.strip()):
            lines.setdefault(found[1], []).append(found[2].strip())
    said = {key: values[0] for key, values in lines.items()}
    if not said.get("arch") or not said.get("kernel"):
        raise EdgeopsError("E-FLASH-BOARD", "the board's shell gives no answer", "Can this user run a POSIX shell?")
    glibc, l4t = _GLIBC.search(said.get("glibc", "")), _L4T.search(said.get("l4t", ""))
    return Board(
        arch=said["arch"],
        os=said.get("os_title", "") or "unknown system",
        glibc=(int(glibc[1]), int(glibc[2])) if glibc else None,
        model=said.get("model", ""),
        pythons=_pythons(lines.get("python", [])),
        memory_mib=_number(said, "memory_kib") // 1024,
        disk_mib=_number(said, "disk_kib") // 1024,
        l4t=(int(l4t[1]), int(l4t[2])) if l4t else None,
        jetpack=said.get("jetpack", ""),
        cuda=said.get("cuda", ""),
        tensorrt=said.get("tensorrt", ""),
        onnxruntime=said.get("onnxruntime", ""),
        power_mode=said.get("power_mode", ""),
        clocks=said.get("clocks", ""),
        accelerators=tuple(said.get("accelerators", "").split()),
        systemd=_number(said, "systemd"),
        systemd_runs=said.get("systemd_runs") == "yes",
        root=said.get("root", ""),
        clock_s=_number(said, "clock"),
        versions=tuple(said.get("versions", "").split()),
        current=said.get("current", "").rpartition("/")[2],
    )


def _number(said: dict[str, str], key: str) -> int:
    found = re.match(r"\d{1,18}", said.get(key, ""))
    return int(found[0]) if found else 0


def _pythons(lines: list[str]) -> tuple[Python, ...]:
    found: dict[tuple[int, int], Python] = {}
    for line in lines:
        if match := _PYTHON.fullmatch(line):
            python = Python((int(match[1]), int(match[2])), match[3])
            found.setdefault(python.version, python)
    return tuple(sorted(found.values(), reverse=True))
