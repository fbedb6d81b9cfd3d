"""The one place that writes files that must survive a power cut: write, fsync, rename, fsync the directory."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from pathlib import Path

from edgeops.contracts.errors import EdgeopsError


def fsync_dir(directory: Path) -> None:
    """Make renames and unlinks in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file's content at once: after a power cut it is whole, the old one or the new one.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE; the old content is untouched.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
        fsync_dir(path.parent)
    except OSError as error:
        # A read-only disk refuses to unlink even what is not there: the first error is the one to tell.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from error


def append(path: Path, data: bytes, *, mode: int = 0o644, after: int | None = None) -> None:
    """Add to a file, made if it is not there. After a power cut it ends anywhere within what was added last.

    Args:
        path: The file.
        data: What is added.
        mode: Of a file that is made.
        after: How many bytes of what is there count: the rest, such as what a cut has left, goes; None: all.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE; what was there is untouched, and nothing of `data` is.
    """
    try:
        new = not path.exists()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)
        try:
            length = os.fstat(fd).st_size
            if after is not None and after < length:
                os.ftruncate(fd, after)
                length = after
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, length)
                raise
        finally:
            os.close(fd)
        if new:
            fsync_dir(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error


def fsync_tree(root: Path) -> None:
    """Make every file and directory below `root`, and `root` itself, durable.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """
    try:
        for directory, _, files in os.walk(root):
            for name in files:
                fd = os.open(Path(directory) / name, os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            fsync_dir(Path(directory))
    except OSError as error:
        raise disk_error(error, root) from error


def rename(source: Path, target: Path) -> None:
    """Rename within one file system, durably; an existing target file or symlink is replaced at once.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """
    try:
        source.rename(target)
        fsync_dir(target.parent)
        if source.parent != target.parent:
            fsync_dir(source.parent)
    except OSError as error:
        raise disk_error(error, target) from error


def remove_tree(path: Path) -> None:
    """Remove a file or directory tree, durably. Renamed first, so that a cut leaves no half-removed tree by its name.

    Raises:
        EdgeopsError: E-DISK-WRITE.
    """
    doomed = path.parent / f".{path.name}.{secrets.token_hex(4)}.removed"
    try:
        path.rename(doomed)
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed)
        else:
            doomed.unlink()
        fsync_dir(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise disk_error(error, path) from error


def make_private_dir(path: Path) -> None:
    """Make a directory (and its parents) that only its owner may enter: mode 0700. What is made is durable.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Only where it is needed: on a disk that has become read-only what is there still serves.
        if stat.S_IMODE(path.stat().st_mode) != 0o700:
            path.chmod(0o700)
        # A name that is not durable takes all that is written below it along.
        for directory in missing:
            fsync_dir(directory.parent)
    except OSError as error:
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: Path) -> EdgeopsError:
    """Turn an error of the file system into one with a code: full disk or failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EdgeopsError("E-DISK-FULL", f"{path}: no space left", "Free some space; nothing was changed.")
    return EdgeopsError("E-DISK-WRITE", f"{path}: {error.strerror or error}", "Check the disk and its permissions.")
