"""Build the firmware's C sources: for this machine, and for boards. Results are kept by their inputs' hash."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge.cache import cache_dir, keep

FIRMWARE_DIR = Path(__file__).parent / "firmware"
WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Werror")
_BUILD_TIMEOUT_S = 300


class Compiler(NamedTuple):
    """A C compiler: the program, and how it is installed on Debian."""

    program: str
    package: str

    def find(self) -> str:
        """Return the program's path.

        Raises:
            EdgeopsError: E-DEPENDENCY; it is not installed.
        """
        path = shutil.which(self.program)
        if path is None:
            raise EdgeopsError(
                "E-DEPENDENCY", f"no {self.program} on this machine", f"apt-get install --yes {self.package}"
            )
        return path


HOST = Compiler("cc", "gcc libc6-dev")
ARM = Compiler("arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi")


def build(
    compiler: Compiler,
    name: str,
    sources: Sequence[Path],
    flags: Sequence[str],
    *,
    folders: Sequence[Path] = (),
) -> Path:
    """Compile and link sources into one file, or return it from the cache.

    Args:
        compiler: Which.
        name: Name of the result.
        sources: C and assembler files.
        flags: Beside the warnings, which are errors.
        folders: Searched for headers; their content belongs to the key of the cache.

    Raises:
        EdgeopsError: E-DEPENDENCY; no compiler. E-TOOLCHAIN; the compiler refuses the sources. E-DISK-WRITE.
    """
    program = compiler.find()
    headers = sorted(path for folder in folders for path in folder.glob("*.[hi]*"))
    subject = hashlib.sha256("\n".join((_version(program), name, *WARNINGS, *flags)).encode())
    for path in (*sources, *headers):
        subject.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    target = cache_dir() / "firmware" / subject.hexdigest()[:16] / name
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(prefix="edgeops-build-") as folder:
        out = Path(folder) / name
        includes = [f"-I{path}" for path in folders]
        command = [program, *WARNINGS, *includes, *map(str, sources), *flags, "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S)
        if done.returncode != 0:
            raise EdgeopsError("E-TOOLCHAIN", f"{program} cannot build {name}: {_first_error(done.stderr)}")
        keep(target, out.read_bytes(), mode=0o755)
    return target


def _version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30).stdout.split("\n")[0]


def _first_error(said: str) -> str:
    errors = [line for line in said.splitlines() if re.search(r"error|undefined|overflow", line)]
    return (errors or said.strip().splitlines() or ["no message"])[0][:400]


def powercut(mutant: str | None = None) -> Path:
    """Build the power-cut proof of the slot store, of the store itself or of one of its mutants.

    Raises:
        EdgeopsError: As `build`.
    """
    sources = [FIRMWARE_DIR / "src" / "store.c", FIRMWARE_DIR / "src" / "digest.c", FIRMWARE_DIR / "proofs/powercut.c"]
    flags = ["-O2", *([f"-DEO_MUTANT_{mutant}=1"] if mutant else [])]
    return build(HOST, f"powercut-{(mutant or 'store').lower()}", sources, flags, folders=[FIRMWARE_DIR / "include"])
