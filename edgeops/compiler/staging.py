"""Results appear together: they are made in a folder beside, and take their places once every profile has one."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgeops import durable


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield an empty folder on the disk of `out`; at the end it is gone, with all that did not take its place.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """
    folder, new = out / f".compile.{secrets.token_hex(4)}.tmp", not out.exists()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise durable.disk_error(error, folder) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if new:
            # Where nothing was made there is nothing.
            with contextlib.suppress(OSError):
                out.rmdir()


def put_in_place(made: Path, folder: Path, stale: Iterable[str]) -> None:
    """Move all that lies in one folder to another, each part whole; what has the same name there is replaced.

    Args:
        made: What was made, on the same disk.
        folder: Where it belongs.
        stale: Names that no longer stand for anything there.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise durable.disk_error(error, folder) from error
    for name in stale:
        durable.remove_tree(folder / name)
    for item in sorted(made.iterdir()):
        target = folder / item.name
        if target.is_dir():
            durable.remove_tree(target)
        durable.rename(item, target)
