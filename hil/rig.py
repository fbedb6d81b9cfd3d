"""Rig files: which boards a rig has, how each is reached, and what the rig may be used for."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.wire import Declared
from edgeops.profiles import registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Purpose = Literal["release", "measure", "soak"]

BUILTIN_RIGS = Path(__file__).parent / "rigs"
_MAX_BYTES = 256 << 10
_SEE = "See docs/reference/hil.md."
_LINE = re.compile(r"\(at line (\d+)")
_WHERE = re.compile(r"`\$\.?(?P<path>[^`]*)`")
_FIELD = re.compile(r"field `(?P<name>[^`]*)`")

_Words = Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


class PowerSwitch(Declared, frozen=True, kw_only=True):
    """Commands of this machine that switch a board's supply: each a program and its arguments, no shell."""

    on: _Words
    off: _Words


class _Board(Declared, frozen=True, kw_only=True):
    """What every board has.

    Args:
        name: Its name in the rig.
        profile: Its device profile.
        boot_within_s: How long it may take from power to its first answer.
        timing: Whether its latency means anything; without it latency is shown and never judged.
    """

    name: str
    profile: str
    boot_within_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 120.0


class LocalSpec(_Board, frozen=True, kw_only=True, tag="local", tag_field="kind"):
    """This machine."""

    timing: bool = True


class Arm64UserSpec(_Board, frozen=True, kw_only=True, tag="arm64-user", tag_field="kind"):
    """An arm64 Debian whose programs run on this machine's kernel through QEMU's user emulation."""

    timing: bool = False


class Arm64VmSpec(_Board, frozen=True, kw_only=True, tag="arm64-vm", tag_field="kind"):
    """An arm64 machine that QEMU emulates whole: Debian's kernel, systemd, sshd."""

    timing: bool = False
    boot_within_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 420.0
    memory_mib: Annotated[int, msgspec.Meta(ge=512, le=16384)] = 1024


class SshSpec(_Board, frozen=True, kw_only=True, tag="ssh", tag_field="kind"):
    """A Linux board that runs already, reached by SSH.

    Args:
        host: Address or name.
        user: Who logs in, with a key.
        port: Of its sshd.
        key_file: Private key; None: what ssh finds by itself.
        known_hosts: File with the board's host key; a board with another one is not spoken to.
        python: Interpreter on the board that has edgeops.
        power: How to take its power; without it the power-cut check kills the agent's processes instead, and says so.
    """

    host: str
    user: str = "root"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 22
    key_file: str | None = None
    known_hosts: str | None = None
    python: str = "/opt/edgeops/current/bin/python"
    power: PowerSwitch | None = None
    timing: bool = True


class QemuMcuSpec(_Board, frozen=True, kw_only=True, tag="qemu-cortex-m", tag_field="kind"):
    """A Cortex-M board that QEMU emulates, with the reference firmware.

    Args:
        machine: QEMU's name of it.
    """

    machine: Literal["mps2-an385", "mps2-an386", "mps2-an500"]
    timing: bool = False
    boot_within_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 20.0


class SerialMcuSpec(_Board, frozen=True, kw_only=True, tag="serial-mcu", tag_field="kind"):
    """A microcontroller on a serial line of this machine, with firmware that speaks SMP.

    Args:
        port: Device file or pyserial's URL.
        signing_key: PEM file of the Ed25519 key whose public half its firmware holds.
        power: How to take its power; without it the power-cut check resets the device instead, and says so.
    """

    port: str
    signing_key: str
    power: PowerSwitch | None = None
    timing: bool = True
    boot_within_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 20.0


class _Labgrid(_Board, frozen=True, kw_only=True):
    """What is behind labgrid.

    Args:
        environment: labgrid's environment file; a target's remote place is held while the board is used.
        target: The target in it.
        state: State of the target's strategy in which the board runs; None: its power is switched, no more.
    """

    environment: str
    target: str = "main"
    state: str | None = None
    timing: bool = True


class LabgridSpec(_Labgrid, frozen=True, kw_only=True, tag="labgrid", tag_field="kind"):
    """A Linux board that labgrid switches and reaches by its SSHDriver.

    Args:
        known_hosts: File with the board's host key; None: the user's. A board with another one is not spoken to.
        python: Interpreter on the board that has edgeops.
    """

    known_hosts: str | None = None
    python: str = "/opt/edgeops/current/bin/python"


class LabgridMcuSpec(_Labgrid, frozen=True, kw_only=True, tag="labgrid-mcu", tag_field="kind"):
    """A microcontroller whose serial line is a console of labgrid's, with firmware that speaks SMP.

    Args:
        signing_key: PEM file of the Ed25519 key whose public half its firmware holds.
    """

    signing_key: str
    boot_within_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 20.0


BoardSpec = (
    LocalSpec | Arm64UserSpec | Arm64VmSpec | SshSpec | QemuMcuSpec | SerialMcuSpec | LabgridSpec | LabgridMcuSpec
)


class Rig(Declared, frozen=True, kw_only=True):
    """A rig.

    Args:
        name: Unique name, the file's stem.
        title: For people.
        purposes: What it may be used for: `release` checks, `measure` figures for the compiler, `soak` long runs.
        boards: At least one.
    """

    name: str
    title: str
    purposes: tuple[Purpose, ...] = ("release", "measure", "soak")
    boards: Annotated[tuple[BoardSpec, ...], msgspec.Meta(min_length=1)]


def read_rig(path: Path) -> Rig:
    """Read and check a rig file.

    Raises:
        EdgeopsError: E-HIL-RIG; it cannot be read, or a key or value is wrong: line and key are named.
    """
    try:
        text = path.read_bytes()[: _MAX_BYTES + 1].decode()
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(path, None, str(error)) from error
    if len(text) > _MAX_BYTES:
        raise _wrong(path, None, f"more than {_MAX_BYTES} bytes")
    try:
        rig = msgspec.convert(tomllib.loads(text), Rig)
    except tomllib.TOMLDecodeError as error:
        found = _LINE.search(str(error))
        raise _wrong(path, int(found[1]) if found else None, str(error)) from error
    except msgspec.ValidationError as error:
        raise _wrong(path, line_of(text, _place(str(error))), str(error)) from error
    _check(rig, path, text)
    return rig


def find_rig(name: str, folders: tuple[Path, ...] = ()) -> Path:
    """Return the file of a rig: a path as it is, a name from the folders, then from the rigs that edgeops brings.

    Raises:
        EdgeopsError: E-HIL-RIG; there is none.
    """
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    for folder in (*folders, BUILTIN_RIGS):
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    known = sorted({path.stem for folder in (*folders, BUILTIN_RIGS) for path in folder.glob("*.toml")})
    raise EdgeopsError("E-HIL-RIG", f"no rig {name!r}; there are {', '.join(known)}", "edgeops hil list")


def _check(rig: Rig, path: Path, text: str) -> None:
    """Check what single keys cannot show to be wrong."""
    try:
        check_name(rig.name, "rig")
    except EdgeopsError as error:
        raise _wrong(path, line_of(text, ("name",)), error.what) from error
    if rig.name != path.stem:
        raise _wrong(path, line_of(text, ("name",)), f"name is {rig.name!r}, the file's is {path.stem!r}")
    seen: set[str] = set()
    for index, board in enumerate(rig.boards):
        key = ("boards", str(index))
        try:
            check_name(board.name, "board")
            profile = registry.load(board.profile)
        except EdgeopsError as error:
            place = (*key, "name" if error.code == "E-NAME" else "profile")
            raise _wrong(path, line_of(text, place), error.what) from error
        if board.name in seen:
            raise _wrong(path, line_of(text, (*key, "name")), f"two boards are called {board.name!r}")
        seen.add(board.name)
        is_mcu = isinstance(board, QemuMcuSpec | SerialMcuSpec | LabgridMcuSpec)
        if is_mcu != profile.cpu.arch.startswith("armv7"):
            what = f"board {board.name}: profile {board.profile} is for {profile.cpu.arch}"
            raise _wrong(path, line_of(text, (*key, "profile")), f"{what}, which kind {kind_of(board)} is not")


def kind_of(board: BoardSpec) -> str:
    """Return a board's kind as rig files write it."""
    kind = board.__struct_config__.tag
    return str(kind)


def _place(said: str) -> tuple[str, ...]:
    """Return the keys that lead to what msgspec complains of."""
    where = _WHERE.search(said.rpartition(" - at ")[2]) if " - at " in said else None
    keys = tuple(re.findall(r"[^.\[\]]+", where["path"])) if where else ()
    field = _FIELD.search(said)
    return (*keys, field["name"]) if field else keys


def line_of(text: str, keys: tuple[str, ...]) -> int | None:
    """Return the line where a key of a rig file stands: its own, or its table's where the key is missing."""
    table = keys[:2] if keys[:1] == ("boards",) and len(keys) > 1 else ()
    names, best = keys[len(table) :], None
    index, inside, within = -1, not table, ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("[["):
            index, within = index + 1, ""
            inside = table == ("boards", str(index))
            best = number if inside else best
        elif stripped.startswith("[") and not table:
            inside = False
        elif stripped.startswith("["):
            within = stripped.strip("[]").rpartition(".")[2].strip()
            best = number if inside and names[:1] == (within,) else best
        elif inside and names and within in ("", names[0]):
            wanted = names[1] if within and len(names) > 1 else names[0]
            if re.match(rf"[\"']?{re.escape(wanted)}[\"']?\s*[=.]", stripped):
                return number
    return best


def _wrong(path: Path, line: int | None, what: str) -> EdgeopsError:
    return EdgeopsError("E-HIL-RIG", f"{path}{f':{line}' if line else ''}: {what}", _SEE)
