"""Cut the power at every file operation: record what a program does to a folder, then build what a cut would leave.

A file system may lose, after a power cut, every change that was not made durable: data of a file until that file is
fsynced, names (create, rename, remove) until their directory is fsynced. `recording` notes each operation below a
folder; `cuts` gives, for each point between two operations, the trees that a disk may then hold.

Model after: Pillai et al., All File Systems Are Not Created Equal, OSDI 2014; littlefs's and MCUboot's power tests.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

_ROOT = 0


class Write(NamedTuple):
    """Bytes written to a file; durable once the file is fsynced."""

    inode: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """A file cut or extended to a size; durable once the file is fsynced."""

    inode: int
    size: int


class Link(NamedTuple):
    """A name that now leads to an inode; durable once its directory is fsynced."""

    directory: int
    name: str
    inode: int


class Unlink(NamedTuple):
    """A name that is gone; durable once its directory is fsynced."""

    directory: int
    name: str


class Rename(NamedTuple):
    """A name that moved, replacing what was there; durable once the new directory is fsynced."""

    from_directory: int
    from_name: str
    directory: int
    name: str
    inode: int


class Fsync(NamedTuple):
    """A file's data, or a directory's names, made durable."""

    inode: int


Operation = Write | Truncate | Link | Unlink | Rename | Fsync


class Tree:
    """Files, directories and symlinks by inode."""

    def __init__(self) -> None:
        self.names: dict[tuple[int, str], int] = {}
        self.files: dict[int, bytearray] = {}
        self.symlinks: dict[int, str] = {}

    def copy(self) -> Tree:
        """Return an independent copy."""
        other = Tree()
        other.names = dict(self.names)
        other.files = {inode: bytearray(data) for inode, data in self.files.items()}
        other.symlinks = self.symlinks
        return other

    def apply(self, operation: Operation) -> None:
        """Carry out one operation."""
        match operation:
            case Write(inode, offset, data):
                content = self.files.setdefault(inode, bytearray())
                content.extend(bytes(max(0, offset - len(content))))
                content[offset : offset + len(data)] = data
            case Truncate(inode, size):
                content = self.files.setdefault(inode, bytearray())
                content.extend(bytes(max(0, size - len(content))))
                del content[size:]
            case Link(directory, name, inode):
                self.names[directory, name] = inode
            case Unlink(directory, name):
                self.names.pop((directory, name), None)
            case Rename(from_directory, from_name, directory, name, inode):
                if self.names.get((from_directory, from_name)) == inode:
                    del self.names[from_directory, from_name]
                self.names[directory, name] = inode
            case Fsync():
                pass

    def write_to(self, folder: Path, inode: int = _ROOT) -> None:
        """Build this tree on the disk, in a new folder."""
        folder.mkdir(parents=True)
        for (directory, name), child in self.names.items():
            if directory != inode:
                continue
            if child in self.symlinks:
                (folder / name).symlink_to(self.symlinks[child])
            elif child in self.files:
                (folder / name).write_bytes(bytes(self.files[child]))
            else:
                self.write_to(folder / name, child)


class Cut(NamedTuple):
    """What the disk may hold after a cut.

    Args:
        after: Number of operations that had been done.
        case: `kept`, `lost`, `one lost: N` or `torn`.
        tree: The files.
    """

    after: int
    case: str
    tree: Tree


class Journal:
    """All operations below one folder, in order; the tree from which they began, and the tree as it is now."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.operations: list[Operation] = []
        self.start = Tree()
        self.now = Tree()
        self._newest_inode = _ROOT
        self._lock = threading.RLock()
        self._read_tree(self.root, _ROOT)
        self.now = self.start.copy()

    def note(self, operation: Operation) -> None:
        """Add one operation."""
        with self._lock:
            self.operations.append(operation)
            self.now.apply(operation)

    def place(self, path: Any, dir_fd: int | None = None) -> tuple[int, str] | None:
        """Return directory and name of a path below the folder; None for any other path."""
        text = os.fsdecode(path)
        if dir_fd is not None and not text.startswith("/"):
            text = str(Path(f"/proc/self/fd/{dir_fd}").readlink() / text)
        absolute = Path(text).absolute()
        parent = Path(os.path.realpath(absolute.parent))
        if parent != self.root and self.root not in parent.parents:
            return None
        inode = _ROOT
        for part in parent.relative_to(self.root).parts:
            if (inode, part) not in self.now.names and not parent.exists():
                return None  # `mkdir(parents=True)` tries the child first: the real call fails, nothing is noted
            inode = self.now.names[inode, part]
        return inode, absolute.name

    def inode_at(self, path: Any) -> int | None:
        """Return the inode of a path below the folder (the folder itself: 0); None for any other path."""
        real = os.path.realpath(path)
        if real == str(self.root):
            return _ROOT
        place = self.place(real)
        return None if place is None else self.now.names.get(place)

    def new_inode(self) -> int:
        """Return a number for something that is made now."""
        with self._lock:
            self._newest_inode += 1
            return self._newest_inode

    def _read_tree(self, folder: Path, inode: int) -> None:
        for entry in sorted(folder.iterdir()):
            child = self.new_inode()
            self.start.names[inode, entry.name] = child
            if entry.is_symlink():
                self.start.symlinks[child] = str(entry.readlink())
            elif entry.is_dir():
                self._read_tree(entry, child)
            else:
                self.start.files[child] = bytearray(entry.read_bytes())

    def symlink(self, inode: int, target: str) -> None:
        """Note where a new symlink leads; that never changes, so it is no operation of its own."""
        self.start.symlinks[inode] = target
        self.now.symlinks[inode] = target


def cuts(journal: Journal) -> Iterator[Cut]:
    """Give every tree that a power cut during the recorded operations may leave, cut point by cut point."""
    for after in range(len(journal.operations) + 1):
        done = journal.operations[:after]
        pending = _pending(done)
        yield Cut(after, "kept", _replay(journal, done, set()))
        if not pending:
            continue
        yield Cut(after, "lost", _replay(journal, done, set(pending)))
        if len(pending) > 1:
            for index in pending:
                yield Cut(after, f"one lost: {index}", _replay(journal, done, {index}))
        last = pending[-1]
        if isinstance(torn := done[last], Write) and len(torn.data) > 1:
            half = torn._replace(data=torn.data[: len(torn.data) // 2])
            yield Cut(after, "torn", _replay(journal, [*done[:last], half, *done[last + 1 :]], set()))


def _pending(done: list[Operation]) -> list[int]:
    """Return the operations that no later fsync has made durable."""
    pending = []
    synced: set[int] = set()
    for index in range(len(done) - 1, -1, -1):
        match done[index]:
            case Fsync(inode):
                synced.add(inode)
            case Write(inode, _, _) | Truncate(inode, _):
                if inode not in synced:
                    pending.append(index)
            case Link(directory, _, _) | Unlink(directory, _) | Rename(_, _, directory, _, _):
                if directory not in synced:
                    pending.append(index)
    return pending[::-1]


def _replay(journal: Journal, done: list[Operation], without: set[int]) -> Tree:
    tree = journal.start.copy()
    created = {operation.inode for operation in done if isinstance(operation, Link)}
    for inode in created - set(journal.start.symlinks):
        if any(isinstance(operation, Write | Truncate) and operation.inode == inode for operation in done):
            tree.files.setdefault(inode, bytearray())
    for index, operation in enumerate(done):
        if index not in without:
            tree.apply(operation)
    return tree


@contextlib.contextmanager
def recording(root: Path) -> Iterator[Journal]:
    """Record every file operation of this process, all its threads, below a folder.

    Sees `os` and `open` (so `pathlib`, `shutil`, `zipfile`, `tempfile` too); does not see native libraries.
    """
    journal = Journal(root)
    tap = _Tap(journal)
    with contextlib.ExitStack() as stack:
        for module, name, replacement in tap.replacements():
            stack.enter_context(mock.patch.object(module, name, replacement))
        yield journal


class _RecordedFile(io.FileIO):
    """A file whose writes are noted as they reach the operating system."""

    journal: Journal
    inode: int

    def write(self, data: Any) -> int:
        offset = os.fstat(self.fileno()).st_size if "a" in self.mode else self.tell()
        count = super().write(data)
        self.journal.note(Write(self.inode, offset, bytes(memoryview(data).cast("B")[:count])))
        return count

    def truncate(self, size: int | None = None) -> int:
        length = super().truncate(size)
        self.journal.note(Truncate(self.inode, length))
        return length


class _Tap:
    """Stand-ins for the operating system's calls: each does the real thing and notes it."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.descriptors: dict[int, int] = {}
        self.appending: set[int] = set()
        self.real_open, self.real_io_open = os.open, io.open

    def replacements(self) -> list[tuple[Any, str, Callable[..., Any]]]:
        """Return what to replace: module, name, stand-in."""
        return [
            (os, "open", self.open),
            (os, "close", self._after(os.close, self.closed)),
            (os, "write", self.write),
            (os, "ftruncate", self.ftruncate),
            (os, "sendfile", self.sendfile),
            (os, "fsync", self._fsync(os.fsync)),
            (os, "fdatasync", self._fsync(os.fdatasync)),
            (os, "rename", self._rename(os.rename)),
            (os, "replace", self._rename(os.replace)),
            (os, "unlink", self._remove(os.unlink)),
            (os, "remove", self._remove(os.remove)),
            (os, "rmdir", self._remove(os.rmdir)),
            (os, "mkdir", self._mkdir(os.mkdir)),
            (os, "symlink", self._symlink(os.symlink)),
            (io, "open", self.open_file),
            (builtins, "open", self.open_file),
        ]

    def _created(self, place: tuple[int, str], *, truncate: bool) -> int:
        """Note that a name was opened for writing; return its inode, made if it was not there."""
        inode = self.journal.now.names.get(place)
        if inode is None:
            inode = self.journal.new_inode()
            # First that it is a file: with a name alone it would look like a directory.
            self.journal.note(Truncate(inode, 0))
            self.journal.note(Link(*place, inode))
        elif truncate and self.journal.now.files.get(inode):
            self.journal.note(Truncate(inode, 0))
        return inode

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = None if isinstance(path, int) else self.journal.place(path, dir_fd)
        fd = self.real_open(path, flags, mode, dir_fd=dir_fd)
        if place is not None and flags & (os.O_WRONLY | os.O_RDWR):
            self.descriptors[fd] = self._created(place, truncate=bool(flags & os.O_TRUNC))
            if flags & os.O_APPEND:
                self.appending.add(fd)
        return fd

    def open_file(self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        writes = set(mode) & set("wax+")
        place = self.journal.place(file) if writes and not isinstance(file, int) else None
        if place is None:
            return self.real_io_open(file, mode, buffering, *rest, **named)
        raw = _RecordedFile(file, mode.replace("b", "").replace("t", ""), opener=named.pop("opener", None))
        raw.journal, raw.inode = self.journal, self._created(place, truncate="w" in mode)
        self.descriptors[raw.fileno()] = raw.inode
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **named)

    def closed(self, fd: int) -> None:
        self.descriptors.pop(fd, None)
        self.appending.discard(fd)

    def write(self, fd: int, data: Any) -> int:
        inode = self.descriptors.get(fd)
        whence = os.SEEK_END if fd in self.appending else os.SEEK_CUR
        offset = os.lseek(fd, 0, whence) if inode is not None else 0
        count = _REAL_WRITE(fd, data)
        if inode is not None:
            self.journal.note(Write(inode, offset, bytes(memoryview(data).cast("B")[:count])))
        return count

    def ftruncate(self, fd: int, length: int) -> None:
        _REAL_FTRUNCATE(fd, length)
        if fd in self.descriptors:
            self.journal.note(Truncate(self.descriptors[fd], length))

    def sendfile(self, out_fd: int, in_fd: int, offset: Any, count: int) -> int:
        start = os.lseek(out_fd, 0, os.SEEK_CUR) if out_fd in self.descriptors else 0
        sent = _REAL_SENDFILE(out_fd, in_fd, offset, count)
        if sent and out_fd in self.descriptors:
            with self.real_io_open(f"/proc/self/fd/{out_fd}", "rb") as copy:
                copy.seek(start)
                self.journal.note(Write(self.descriptors[out_fd], start, copy.read(sent)))
        return sent

    def _fsync(self, real: Callable[[Any], None]) -> Callable[[Any], None]:
        def fsync(fd: Any) -> None:
            real(fd)
            number = fd if isinstance(fd, int) else fd.fileno()
            inode = self.journal.inode_at(f"/proc/self/fd/{number}")
            if inode is not None:
                self.journal.note(Fsync(inode))

        return fsync

    def _rename(self, real: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
            start, end = self.journal.place(source, src_dir_fd), self.journal.place(target, dst_dir_fd)
            real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            if start is not None and end is not None:
                self.journal.note(Rename(*start, *end, self.journal.now.names[start]))

        return rename

    def _remove(self, real: Callable[..., None]) -> Callable[..., None]:
        def remove(path: Any, *, dir_fd: int | None = None) -> None:
            place = self.journal.place(path, dir_fd)
            real(path, dir_fd=dir_fd)
            if place is not None:
                self.journal.note(Unlink(*place))

        return remove

    def _mkdir(self, real: Callable[..., None]) -> Callable[..., None]:
        def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            place = self.journal.place(path, dir_fd)
            real(path, mode, dir_fd=dir_fd)
            if place is not None:
                self.journal.note(Link(*place, self.journal.new_inode()))

        return mkdir

    def _symlink(self, real: Callable[..., None]) -> Callable[..., None]:
        def symlink(target: Any, path: Any, target_is_directory: bool = False, *, dir_fd: int | None = None) -> None:
            place = self.journal.place(path, dir_fd)
            real(target, path, target_is_directory, dir_fd=dir_fd)
            if place is not None:
                inode = self.journal.new_inode()
                self.journal.symlink(inode, os.fsdecode(target))
                self.journal.note(Link(*place, inode))

        return symlink

    @staticmethod
    def _after(real: Callable[[int], None], then: Callable[[int], None]) -> Callable[[int], None]:
        def call(fd: int) -> None:
            then(fd)
            real(fd)

        return call


_REAL_WRITE, _REAL_FTRUNCATE, _REAL_SENDFILE = os.write, os.ftruncate, os.sendfile
