"""Unix-domain sockets at paths of any length, and memory that two processes share safely."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from edgeops.contracts.errors import EdgeopsError

_ELSEWHERE = "edgeops-"
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def listen(path: Path, *, backlog: int) -> socket.socket:
    """Listen at a path, whose folder is made. A socket that lies there is replaced: whoever listened there is gone.

    Raises:
        EdgeopsError: E-CONFIG; something else lies there, or a socket cannot be made there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise EdgeopsError("E-CONFIG", f"{path} is not a socket", "Remove it, or choose another folder.")
            path.unlink()
        with _short(path) as name:
            listener.bind(name)
        # Who may use it is said by its folder, as the loopback port is open to every user of the device.
        path.chmod(0o666)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise EdgeopsError("E-CONFIG", f"{path}: {error.strerror or error}", "Choose another folder.") from error
    except EdgeopsError:
        listener.close()
        raise
    return listener


def listen_or_elsewhere(path: Path, *, backlog: int) -> tuple[socket.socket, Path]:
    """As `listen`; on a disk that takes nothing new, in a folder of memory that only this user may enter.

    Returns:
        The socket, and where it listens.

    Raises:
        EdgeopsError: As `listen`.
    """
    try:
        return listen(path, backlog=backlog), path
    except EdgeopsError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        import tempfile  # brings much with it that workers, which connect only, have no use for

        for folder in (tempfile.gettempdir(), "/dev/shm", "/run"):  # noqa: S108  made by mkdtemp, for this user only
            try:
                elsewhere = Path(tempfile.mkdtemp(prefix=_ELSEWHERE, dir=folder)) / path.name
                return listen(elsewhere, backlog=backlog), elsewhere
            except (OSError, EdgeopsError):
                continue
        raise


def forget(path: Path) -> None:
    """Remove a socket that nobody listens on any more; a disk that refuses is passed over."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        if path.parent.name.startswith(_ELSEWHERE):
            path.parent.rmdir()


def connect(path: Path, timeout_s: float) -> socket.socket:
    """Connect to a socket.

    Raises:
        OSError: Nobody listens there.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(timeout_s)
        with _short(path) as name:
            client.connect(name)
    except OSError:
        client.close()
        raise
    return client


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Give a name for a path that fits into a socket address, 107 bytes, however long the path is."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def shared_memory(size: int) -> int:
    """Return a descriptor of anonymous memory whose size can never change again.

    Raises:
        OSError: There is not enough memory.
    """
    descriptor = os.memfd_create("edgeops", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def check_shared_memory(descriptor: int, size: int) -> None:
    """Check what a peer gave: reading memory that shrinks would end this process.

    Raises:
        EdgeopsError: E-INFER-REQUEST; not such memory, not of this size, or not sealed against a change of it.
    """
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        has = os.fstat(descriptor).st_size
    except OSError as error:
        raise EdgeopsError("E-INFER-REQUEST", f"not shared memory: {error.strerror}") from error
    if seals & _SEALS != _SEALS or has != size:
        raise EdgeopsError("E-INFER-REQUEST", f"shared memory has to have {size} bytes, sealed; it has {has}")
