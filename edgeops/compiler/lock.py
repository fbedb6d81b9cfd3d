"""compile.lock: what was chosen, and from what, so that it can be made again and checked."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode

LOCK_NAME = "compile.lock"
LOCK_SCHEMA = 1


class LockedProfile(Wire, frozen=True, kw_only=True):
    """What was chosen for a profile. `measured_on`: the device whose figures decided; empty: this host's.

    `figures` is the SHA-256 of the statement that holds them; `signed` says whether the device's key signed it.
    """

    scheme: str
    runtime: str
    precision: str
    bundle: str
    measured_on: str = ""
    figures: str = ""
    signed: bool = False


class CompileLock(Wire, frozen=True, kw_only=True):
    """The lock.

    Args:
        model: The model's name.
        handover: Digest of the hand-over.
        profiles: Profile → what was chosen.
        tools: Distribution → version of everything that makes bytes.
        isa: Architecture and instruction set: other kernels give other last bits.
    """

    model: str
    handover: str
    profiles: dict[str, LockedProfile]
    tools: dict[str, str]
    isa: str
    schema_version: int = msgspec.field(default=LOCK_SCHEMA, name="schema")


def write_lock(path: Path, lock: CompileLock) -> None:
    """Write a lock for people and version control: indented, keys sorted.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """
    durable.write_file(path, msgspec.json.format(msgspec.json.encode(lock, order="sorted"), indent=2) + b"\n")


def read_lock(path: Path) -> CompileLock:
    """Read a lock.

    Raises:
        EdgeopsError: E-COMPILE-LOCK; missing, damaged or too new.
    """
    try:
        lock = decode(path.read_bytes(), CompileLock, what=str(path))
    except OSError as error:
        raise EdgeopsError("E-COMPILE-LOCK", f"{path}: {error.strerror}", "Compile without --locked first.") from error
    except EdgeopsError as error:
        raise EdgeopsError("E-COMPILE-LOCK", error.what, "Compile without --locked to write it again.") from error
    if lock.schema_version > LOCK_SCHEMA:
        raise EdgeopsError("E-COMPILE-LOCK", f"{path}: schema {lock.schema_version} is newer than {LOCK_SCHEMA}")
    return lock


def check_profiles(lock: CompileLock, now: CompileLock) -> None:
    """Check that the lock has every profile that is asked for.

    Raises:
        EdgeopsError: E-COMPILE-LOCK.
    """
    if missing := sorted(set(now.profiles) - set(lock.profiles)):
        raise EdgeopsError("E-COMPILE-LOCK", f"not locked: {', '.join(missing)}", "Compile without --locked first.")


def check_same_ground(lock: CompileLock, now: CompileLock) -> None:
    """Check that a compile starts from what the lock started from.

    Raises:
        EdgeopsError: E-COMPILE-LOCK; another hand-over, tool version or instruction set.
    """
    differences = []
    if lock.handover != now.handover:
        differences.append(f"hand-over is {now.handover[:19]}…, locked is {lock.handover[:19]}…")
    for name in sorted(set(lock.tools) | set(now.tools)):
        if lock.tools.get(name) != now.tools.get(name):
            differences.append(
                f"{name} is {now.tools.get(name, 'missing')}, locked is {lock.tools.get(name, 'missing')}"
            )
    if lock.isa != now.isa:
        differences.append(f"processor is {now.isa}, locked is {lock.isa}")
    if differences:
        raise EdgeopsError(
            "E-COMPILE-LOCK",
            "; ".join(differences),
            "Use what was locked, or compile without --check and review the change.",
        )
