"""Unix-domain sockets at paths of any length, and memory that two processes share safely."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from edgeops.contracts.errors import EdgeopsError

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
