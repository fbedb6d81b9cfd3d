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
from firmware_bridge import monocypher
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
CLANG = Compiler("clang", "clang libclang-rt-14-dev")
ARM = Compiler("arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi")


def build(
    compiler: Compiler,
    name: str,
    sources: Sequence[Path],
    flags: Sequence[str],
    *,
    folders: Sequence[Path] = (),
    inputs: Sequence[Path] = (),
) -> Path:
    """Compile and link sources into one file, or return it from the cache.

    Args:
        compiler: Which.
        name: Name of the result.
        sources: C and assembler files.
        flags: Beside the warnings, which are errors.
        folders: Searched for headers; their content belongs to the key of the cache.
        inputs: Files that the flags name; their content does, too.

    Raises:
        EdgeopsError: E-DEPENDENCY; no compiler. E-TOOLCHAIN; the compiler refuses the sources. E-DISK-WRITE.
    """
    program = compiler.find()
    headers = sorted(path for folder in folders for path in folder.glob("*.[hi]*"))
    subject = hashlib.sha256("\n".join((_version(program), name, *WARNINGS, *flags)).encode())
    for path in (*sources, *headers, *inputs):
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


def fuzzer(defines: Sequence[str] = ()) -> Path:
    """Build the program that feeds the whole application mutated packets, under the address and undefined sanitizers.

    Args:
        defines: C defines, `NAME=value`.

    Raises:
        EdgeopsError: As `codec_library`.
    """
    crypto = monocypher.sources()
    sources = [*sorted((FIRMWARE_DIR / "src").glob("*.c")), FIRMWARE_DIR / "proofs/fuzz.c", crypto / "monocypher.c"]
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags += [f"-D{define}" for define in defines]
    return build(HOST, "fuzz", sources, flags, folders=[FIRMWARE_DIR / "include", crypto])


def guided_fuzzer(defines: Sequence[str] = ()) -> Path:
    """Build the same program for libFuzzer, which is guided by coverage; it takes libFuzzer's options.

    Args:
        defines: C defines, `NAME=value`.

    Raises:
        EdgeopsError: As `codec_library`; E-DEPENDENCY without clang.
    """
    crypto = monocypher.sources()
    sources = [*sorted((FIRMWARE_DIR / "src").glob("*.c")), FIRMWARE_DIR / "proofs/fuzz.c", crypto / "monocypher.c"]
    flags = ["-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-DEO_LIBFUZZER=1"]
    flags += [f"-D{define}" for define in defines]
    return build(CLANG, "guided-fuzz", sources, flags, folders=[FIRMWARE_DIR / "include", crypto])


def codec_library() -> Path:
    """Build the firmware's codecs, digests and signature check as a shared library of this machine.

    Raises:
        EdgeopsError: As `build`; E-NET-UNREACHABLE; the crypto library cannot be fetched.
    """
    crypto = monocypher.sources()
    names = ("blob", "cbor", "digest", "ed25519", "frame")
    sources = [*(FIRMWARE_DIR / "src" / f"{name}.c" for name in names), crypto / "monocypher.c"]
    folders = [FIRMWARE_DIR / "include", crypto]
    return build(HOST, "codecs.so", sources, ["-O2", "-shared", "-fPIC"], folders=folders)


def keys_source(keys: Sequence[bytes]) -> str:
    """Return the C file that compiles public keys (raw Ed25519, 32 bytes each) into a firmware."""
    rows = [", ".join(f"0x{byte:02x}" for byte in key) for key in keys]
    return "\n".join(
        (
            '#include "eo_board.h"',
            f"const uint32_t eo_board_key_count = {len(keys)};",
            "const uint8_t eo_board_keys[][EO_KEY_SIZE] = {",
            *(f"    {{{row}}}," for row in rows),
            "};",
            "",
        )
    )


def _firmware_sources(keys: Sequence[bytes]) -> tuple[list[Path], list[Path]]:
    """Return sources and header folders of the application, without its board."""
    if not keys or any(len(key) != 32 for key in keys):
        raise EdgeopsError("E-TRUST-KEY", "a firmware needs at least one Ed25519 public key of 32 bytes")
    text = keys_source(keys).encode()
    file = cache_dir() / "firmware" / "keys" / f"{hashlib.sha256(text).hexdigest()[:16]}.c"
    keep(file, text)
    crypto = monocypher.sources()
    sources = [*sorted((FIRMWARE_DIR / "src").glob("*.c")), file, crypto / "monocypher.c"]
    return sources, [FIRMWARE_DIR / "include", crypto]


def host_firmware(keys: Sequence[bytes], defines: Sequence[str] = ()) -> Path:
    """Build the firmware as a program of this machine.

    Args:
        keys: Raw Ed25519 public keys whose blobs it accepts.
        defines: C defines, `NAME=value`.

    Raises:
        EdgeopsError: As `build`; E-NET-UNREACHABLE; the crypto library cannot be fetched. E-TRUST-KEY.
    """
    sources, folders = _firmware_sources(keys)
    flags = ["-O2", *(f"-D{define}" for define in defines)]
    return build(HOST, "edgeops-mcu", [*sources, FIRMWARE_DIR / "boards" / "host" / "board.c"], flags, folders=folders)


# Of the host board and the emulated ones.
SECTOR_SIZE, SLOT_SECTORS = 4096, 64


class EmulatedBoard(NamedTuple):
    """A board that QEMU emulates: its machine, how the compiler calls its processor, and where its flash lies."""

    machine: str
    cpu: str
    define: str
    flash_address: int


# Cortex-M3, M4 and M7.
EMULATED_BOARDS = {
    board.machine: board
    for board in (
        EmulatedBoard("mps2-an385", "cortex-m3", "EO_CPU_CORTEX_M3", 0x21000000),
        EmulatedBoard("mps2-an386", "cortex-m4", "EO_CPU_CORTEX_M4", 0x21000000),
        EmulatedBoard("mps2-an500", "cortex-m7", "EO_CPU_CORTEX_M7", 0x60000000),
    )
}


def board_firmware(machine: str, keys: Sequence[bytes], defines: Sequence[str] = ()) -> Path:
    """Build the firmware for an emulated board, as an ELF file.

    Args:
        machine: A key of `EMULATED_BOARDS`.
        keys: Raw Ed25519 public keys whose blobs it accepts.
        defines: C defines, `NAME=value`.

    Raises:
        EdgeopsError: As `host_firmware`.
    """
    board = EMULATED_BOARDS[machine]
    folder = FIRMWARE_DIR / "boards" / "mps2"
    sources, folders = _firmware_sources(keys)
    # fmt: off
    flags = [
        f"-mcpu={board.cpu}", "-mthumb", "-mfloat-abi=soft", "-Os", "-ffunction-sections", "-fdata-sections",
        f'-DEO_BOARD_NAME="{machine}"', f"-DEO_BOARD_CPU={board.define}", f"-DEO_BOARD_FLASH={board.flash_address:#x}u",
        *(f"-D{define}" for define in defines),
        "--specs=nano.specs", "-nostartfiles", "-Wl,--gc-sections", f"-Wl,-T,{folder / 'board.ld'}",
    ]
    # fmt: on
    return build(
        ARM, f"{machine}.elf", [*sources, folder / "board.c"], flags, folders=folders, inputs=[folder / "board.ld"]
    )
