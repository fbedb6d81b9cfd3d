"""What a person at the device hands to a running agent: a folder of its state directory, one file each.

A file is an exported release, or says which model is to go back to the bundle before.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode, encode

_DIRECTORY, _FILE, _ANSWER = "incoming", ".edgeops", ".json"
_WISH_BYTES = 4096
# Nobody waits for so long.
STALE_S = 3600.0


class GoBack(Wire, frozen=True, kw_only=True, tag="go-back"):
    """The wish that a model goes back to the bundle before."""

    component: str


class Answer(Wire, frozen=True, kw_only=True):
    """What became of a file: the component and release it brings on its way, or the code of what is wrong with it."""

    component: str = ""
    release: str = ""
    code: str = ""
    what: str = ""
    next_step: str = ""


def submit(root: Path, source: Path) -> Path:
    """Copy a file to where the agent finds it; return where it lies then.

    Raises:
        EdgeopsError: E-RELEASE-INVALID; it cannot be read. E-DISK-FULL or E-DISK-WRITE; nothing is left of it.
    """
    directory = root / _DIRECTORY
    durable.make_private_dir(directory)
    name = secrets.token_hex(8)
    temporary = directory / f".{name}.tmp"
    try:
        reading = source.open("rb")
    except OSError as error:
        raise EdgeopsError("E-RELEASE-INVALID", f"{source}: {error.strerror}") from error
    with reading:
        try:
            with temporary.open("xb") as out:
                shutil.copyfileobj(reading, out)
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise durable.disk_error(error, temporary) from error
    durable.rename(temporary, directory / f"{name}{_FILE}")
    return directory / f"{name}{_FILE}"


def ask_back(root: Path, component: str) -> Path:
    """Put the wish to go back where the agent finds it; return where it lies.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """
    directory = root / _DIRECTORY
    durable.make_private_dir(directory)
    path = directory / f"{secrets.token_hex(8)}{_FILE}"
    durable.write_file(path, encode(GoBack(component=component)), mode=0o600)
    return path


def read_wish(file: Path) -> GoBack | None:
    """Return the wish to go back that a file holds; None: it is something else."""
    try:
        with file.open("rb") as reading:
            return decode(reading.read(_WISH_BYTES), GoBack, what=str(file))
    except (OSError, EdgeopsError):
        return None


def waiting(root: Path) -> Iterator[Path]:
    """Give the files that wait, in no order."""
    directory = root / _DIRECTORY
    return directory.glob(f"[!.]*{_FILE}") if directory.is_dir() else iter(())


def answer(file: Path, said: Answer) -> None:
    """Tell what became of a file, and remove it.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """
    durable.write_file(file.with_suffix(_ANSWER), encode(said), mode=0o600)
    durable.remove_tree(file)


def take_answer(file: Path) -> Answer | None:
    """Return what became of a file, once; None: not known yet.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED; the answer is damaged. E-DISK-WRITE.
    """
    path = file.with_suffix(_ANSWER)
    try:
        said = decode(path.read_bytes(), Answer, what=str(path))
    except FileNotFoundError:
        return None
    durable.remove_tree(path)
    return said


def withdraw(root: Path, file: Path) -> None:
    """Take back a file that the agent did not get to. What others left long ago goes too, and nothing of those who
    wait: the answer to another file may lie there.

    Raises:
        EdgeopsError: E-DISK-WRITE.
    """
    durable.remove_tree(file)
    if any(waiting(root)):
        return
    for path in (root / _DIRECTORY).iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > STALE_S:
                durable.remove_tree(path)
