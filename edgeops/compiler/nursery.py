"""A process that has imported what workers need and forks one per request: a new interpreter takes ten times as long.

A worker stays a process of its own, in a group of its own: what it breaks ends with it. What passes import beside the
plain worker (their `preload`) is imported by a fork of this process that forks in its turn, a specialist: so a worker
holds what its own pass wants and nothing else. Whoever asks is told a worker's id, then how it ended; until they hang
up, it is left as a zombie, so that its id means no other process. See `forking` for the other end.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from edgeops.compiler import engine, inherited, worker
from edgeops.contracts.wire import Wire, decode

ORDER_BYTES = 64 << 10
# With each order: the channel to whoever asks, the worker's standard input, and the file for its output.
_HANDLES = 3
_TASKS = Path("/proc/self/task")


class Order(Wire, frozen=True, kw_only=True):
    """A worker to fork: the file of its request, and the modules that its work wants imported."""

    request: str
    preload: tuple[str, ...] = ()


class _Worker(NamedTuple):
    """A running or ended one: its id, a handle that tells its end, and the channel to whoever asked."""

    pid: int
    end: int
    channel: socket.socket


class _Specialist(NamedTuple):
    """A fork with modules of its own: its id, and where it takes orders."""

    pid: int
    control: socket.socket


def main() -> None:
    """Serve orders from the socket that the first argument names, until it is closed."""
    worker.settle()
    # What every worker would find out anew.
    engine.code_digest()
    engine.isa_digest()
    engine.load_pass("ingest")
    _attend(socket.socket(fileno=int(sys.argv[1])), specialist=False)


def _attend(control: socket.socket, *, specialist: bool) -> NoReturn:
    if not _of_one_thread():
        # A fork would have the locks of the other threads, and nobody to open them.
        os._exit(1)
    # What a worker's memory is measured against; where the kernel does not tell, this process ends.
    inherited.note()
    # Forks share what lies in memory as long as nobody touches it.
    gc.freeze()
    workers: dict[int, _Worker] = {}
    specialists: dict[tuple[str, ...], _Specialist] = {}
    watched = select.poll()
    watched.register(control, select.POLLIN)
    while True:
        for handle, _ in watched.poll():
            if handle == control.fileno():
                data, handles, _, _ = socket.recv_fds(control, ORDER_BYTES, _HANDLES)
                if not data:
                    _end(specialists.values())
                order = decode(data, Order, what="order of a worker")
                # No fork may hold these open: that they are closed is how the other ends know.
                held = [control, *(one.control for one in specialists.values())]
                held += [one.channel for one in workers.values()]
                if order.preload and not specialist:
                    _pass_on(order, data, handles, specialists, held)
                else:
                    one = _fork(order, handles, held)
                    workers |= {one.end: one, one.channel.fileno(): one}
                    watched.register(one.end, select.POLLIN)
            elif handle == workers[handle].end:
                one = workers.pop(handle)
                watched.unregister(handle)
                os.close(handle)
                ended = os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
                assert ended is not None
                status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
                with contextlib.suppress(OSError):  # who asked may be gone
                    one.channel.send(str(status).encode())
                watched.register(one.channel, select.POLLIN)
            else:
                one = workers.pop(handle)
                watched.unregister(handle)
                one.channel.close()
                os.waitpid(one.pid, 0)


def _fork(order: Order, handles: Sequence[int], held: Sequence[socket.socket]) -> _Worker:
    channel = socket.socket(fileno=handles[0])
    pid = os.fork()
    if pid == 0:
        for one in (*held, channel):
            one.close()
        _work(Path(order.request), handles[1], handles[2])
    # By both: who is told of it may end the group at once.
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)
    for handle in handles[1:]:
        os.close(handle)
    with contextlib.suppress(OSError):
        channel.send(str(pid).encode())
    return _Worker(pid, os.pidfd_open(pid), channel)


def _work(request: Path, standard_input: int, log: int) -> NoReturn:
    status = 1
    try:
        os.setpgid(0, 0)
        for handle, place in ((standard_input, 0), (log, 1), (log, 2)):
            os.dup2(handle, place)
        os.close(standard_input)
        os.close(log)
        os.chdir(request.parent)
        worker.answer(request)
        status = 0
    except BaseException:  # noqa: BLE001  this process ends here whatever happens: above it is the loop of another
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _pass_on(
    order: Order,
    data: bytes,
    handles: Sequence[int],
    specialists: dict[tuple[str, ...], _Specialist],
    held: Sequence[socket.socket],
) -> None:
    """Hand an order to the specialist for its modules; one that died is replaced once."""
    for _ in range(2):
        if order.preload not in specialists:
            specialists[order.preload] = _specialist(order.preload, held, handles)
        try:
            socket.send_fds(specialists[order.preload].control, [data], handles)
            break
        except OSError:
            dead = specialists.pop(order.preload)
            dead.control.close()
            os.kill(dead.pid, signal.SIGKILL)
            os.waitpid(dead.pid, 0)
    for handle in handles:
        os.close(handle)


def _specialist(modules: Sequence[str], held: Sequence[socket.socket], handles: Sequence[int]) -> _Specialist:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            for one in (*held, mine):
                one.close()
            for handle in handles:
                os.close(handle)
            for module in modules:
                # What cannot be imported fails the pass that wants it, and says why there.
                with contextlib.suppress(ImportError):
                    importlib.import_module(module)
            _attend(theirs, specialist=True)
        finally:
            os._exit(1)
    theirs.close()
    return _Specialist(pid, mine)


def _end(specialists: Iterable[_Specialist]) -> NoReturn:
    """End after the specialists, so that what their workers took is known to whoever waits for this process."""
    for one in specialists:
        one.control.close()
        os.waitpid(one.pid, 0)
    os._exit(0)


def _of_one_thread() -> bool:
    try:
        return len(list(_TASKS.iterdir())) == 1
    except OSError:
        return False


if __name__ == "__main__":
    main()
