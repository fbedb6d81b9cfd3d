"""labgrid's end of `hil.boards.labgrid_process`: a program of labgrid's environment, which knows nothing of edgeops.

Requests come in and answers go out as lines of JSON. Where its input ends, however that came about, the board is
switched off and its places are given back.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import tty
from collections.abc import Callable
from typing import Any

import grpc
import pexpect
from labgrid import Environment, target_factory
from labgrid.binding import BindingState, StateError
from labgrid.driver.exception import ExecutionError
from labgrid.protocol import ConsoleProtocol, PowerProtocol
from labgrid.remote.client import start_session
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages
from labgrid.resource.remote import RemotePlaceManager
from labgrid.step import Steps, steps
from labgrid.strategy import Strategy

PROTOCOL = 1
_MAX_REQUEST = 1 << 20
_TAIL = 64 << 10
_READ_S = 0.1
_CONNECT_WITHIN_S = 15
_OFF = "off"


class RefusedError(Exception):
    """What cannot be done, as the answer names it: `busy`, `environment` or `board`."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


class _Stacks(threading.local):
    def __init__(self) -> None:
        self.stack: list[Any] = []


_stacks = _Stacks()


class _StepsOfThreads(Steps):  # type: ignore[misc]
    """labgrid's stack of what goes on, one for each thread: a console is read while the power is switched."""

    @property
    def _stack(self) -> list[Any]:
        return _stacks.stack


class Places:
    """Places of a coordinator, held until `release`.

    Args:
        environment: labgrid's, which may name the coordinator.
        names: Of the places.
        owner: Who holds them, beside this machine's name. A place that this owner holds was left by a run of theirs
            that is gone: the caller sees to it that there is one run of an owner's at a time.
    """

    def __init__(self, environment: Any, names: list[str], owner: str) -> None:
        os.environ["LG_USERNAME"] = owner
        address = environment.config.get_option(
            "coordinator_address", os.environ.get("LG_COORDINATOR", "127.0.0.1:20408")
        )
        self._session = start_session(address, extra={"env": environment})
        self._me = f"{self._session.gethostname()}/{self._session.getuser()}"
        self._held: list[str] = []
        manager = RemotePlaceManager.get()
        manager.session, manager.loop, manager.env = self._session, self._session.loop, environment
        try:
            for name in names:
                self._acquire(name)
        except BaseException:
            self.release()
            raise

    def _acquire(self, name: str) -> None:
        place = self._session.places.get(name)
        if place is None:
            raise RefusedError("environment", f"the coordinator has no place {name!r}")
        if place.acquired == self._me:
            self._do(self._session.stub.ReleasePlace(messages.ReleasePlaceRequest(placename=name, fromuser=self._me)))
        elif place.acquired:
            raise RefusedError("busy", f"place {name} is held by {place.acquired}")
        try:
            self._do(self._session.stub.AcquirePlace(messages.AcquirePlaceRequest(placename=name)))
        except grpc.RpcError as error:
            raise RefusedError("busy", f"place {name}: {error.details()}") from error
        self._held.append(name)
        self._do(self._session.sync_with_coordinator())

    def release(self) -> None:
        """Give all back, and leave the coordinator."""
        try:
            while self._held:
                request = messages.ReleasePlaceRequest(placename=self._held.pop(), fromuser=self._me)
                self._do(self._session.stub.ReleasePlace(request))
        finally:
            self._do(self._session.stop())
            self._do(self._session.close())
            RemotePlaceManager.get().session = None

    def _do(self, what: Any) -> Any:
        return self._session.loop.run_until_complete(what)


class Console:
    """What the board prints, read all the time; and its line for programs of this machine, if one is wanted.

    Args:
        driver: A driver of labgrid's with ConsoleProtocol.
        wants_line: Whether to bring the console to a pseudo terminal.
    """

    def __init__(self, driver: Any, *, wants_line: bool) -> None:
        self._driver = driver
        self.switching = threading.Lock()
        self._ended = threading.Event()
        self._tail = bytearray()
        self.line = ""
        self._ends: tuple[int, int] | None = None
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        if wants_line:
            self._ends = os.openpty()
            for end in self._ends:
                tty.setraw(end)
            os.set_blocking(self._ends[0], False)
            self.line = os.ttyname(self._ends[1])
            self._threads.append(threading.Thread(target=self._speak, daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def text(self) -> str:
        """The end of what came."""
        return bytes(self._tail).decode(errors="replace")

    def close(self) -> None:
        """End reading."""
        self._ended.set()
        for thread in self._threads:
            thread.join(5)
        for end in self._ends or ():
            os.close(end)

    def _listen(self) -> None:
        while not self._ended.is_set():
            with self.switching:
                data = self._read()
            if not data:
                self._ended.wait(0.02)
                continue
            if self._ends is None:
                self._tail += data
                del self._tail[:-_TAIL]
            else:
                with contextlib.suppress(BlockingIOError):  # nobody listens: a line loses what nobody takes
                    os.write(self._ends[0], data)

    def _read(self) -> bytes:
        if self._driver.state is not BindingState.active:
            return b""
        try:
            return bytes(self._driver.read(size=1, timeout=_READ_S, max_size=4096))
        except (pexpect.TIMEOUT, OSError, ValueError, TypeError, AttributeError, ExecutionError, StateError):
            return b""  # a board without power has no line

    def _speak(self) -> None:
        assert self._ends is not None
        while not self._ended.is_set():
            try:
                data = os.read(self._ends[0], 4096)
            except BlockingIOError:
                time.sleep(0.005)
                continue
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, ExecutionError, StateError):
                while data:
                    data = data[self._driver.write(data) :]


class Bench:
    """One target of an environment file: each method answers one request, with what its answer says."""

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()
        self._target: Any = None
        self._power: Any = None
        self._strategy: Any = None
        self._console: Console | None = None
        self._console_driver: Any = None
        self._state = self._known_hosts = ""

    def open(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Read an environment, acquire its places, and make its target; nothing is switched."""
        with contextlib.ExitStack() as undo:
            environment = Environment(str(asked["environment"]), interact=_nobody)
            config = environment.config.get_targets().get(asked["target"])
            if not config:
                known = ", ".join(sorted(environment.config.get_targets()))
                raise RefusedError("environment", f"no target {asked['target']!r}; there are {known}")
            places = sorted(filter(None, target_factory.normalize_config(config)[0].get("RemotePlace", {})))
            if places:
                undo.callback(Places(environment, places, str(asked["owner"])).release)
            self._target = environment.get_target(asked["target"])
            undo.callback(self._target.cleanup)
            self._power = self._one(PowerProtocol)
            self._console_driver = self._one(ConsoleProtocol)
            self._known_hosts = str(asked["known_hosts"])
            self._state = str(asked["state"])
            self._strategy = self._one(Strategy) if self._state else None
            if self._state and (self._strategy is None or self._power is None):
                raise RefusedError("environment", "a state needs a strategy and a power driver")
            if asked["line"] and self._console_driver is None:
                raise RefusedError("environment", "no driver has ConsoleProtocol")
            if not asked["line"] and self._one("SSHDriver") is None:
                raise RefusedError("environment", "no SSHDriver")
            if self._console_driver is not None:
                self._console = Console(self._console_driver, wants_line=bool(asked["line"]))
                undo.callback(self._console.close)
            undo.callback(self._take_power)
            self._undo = undo.pop_all()
        return {
            "protocol": PROTOCOL,
            "power": type(self._power).__name__ if self._power is not None else "",
            "places": places,
            "line": self._console.line if self._console is not None else "",
        }

    def on(self, _asked: dict[str, Any]) -> dict[str, Any]:
        """Give it power; with a strategy, bring it into its state."""
        with self._quiet():
            if self._strategy is not None:
                self._strategy.transition(self._state)
            elif self._power is not None:
                self._target.activate(self._power)
                self._power.on()
            if self._console_driver is not None and self._console_driver.state is not BindingState.active:
                self._target.activate(self._console_driver)
        return {}

    def off(self, _asked: dict[str, Any]) -> dict[str, Any]:
        """Take its power."""
        self.disconnect({})
        self._take_power()
        return {}

    def connect(self, _asked: dict[str, Any]) -> dict[str, Any]:
        """Open one shared connection by SSH, and say where others find it."""
        ssh = self._one("SSHDriver")
        if ssh.state is BindingState.active and not ssh._check_keepalive():
            self._target.deactivate(ssh)
        if ssh.state is not BindingState.active:
            ssh._start_own_master = lambda: self._start_verified(ssh)
            self._target.activate(ssh)
        service = ssh.networkservice
        return {"control": ssh.control, "host": service.address, "port": service.port, "user": ssh._get_username()}

    def disconnect(self, _asked: dict[str, Any]) -> dict[str, Any]:
        """Close that connection."""
        ssh = self._one("SSHDriver")
        if ssh is not None and ssh.state is BindingState.active:
            self._target.deactivate(ssh)
        return {}

    def console(self, _asked: dict[str, Any]) -> dict[str, Any]:
        """Return the end of what the board printed."""
        return {"text": self._console.text if self._console is not None else ""}

    def close(self, _asked: dict[str, Any]) -> dict[str, Any]:
        """Switch off, and give everything back."""
        self._undo.close()
        return {}

    def _one(self, kind: Any) -> Any:
        """Return the target's driver of a kind, not activated; None: it has none."""
        wanted = target_factory.class_from_string(kind) if isinstance(kind, str) else kind
        if not any(isinstance(driver, wanted) for driver in self._target.drivers):
            return None
        return self._target.get_driver(wanted, activate=False)

    def _quiet(self) -> contextlib.AbstractContextManager[Any]:
        return self._console.switching if self._console is not None else contextlib.nullcontext()

    def _take_power(self) -> None:
        if self._power is None:
            return
        with self._quiet():
            try:
                if self._strategy is not None:
                    self._strategy.broken = None  # a boot that failed; the board is switched off all the same
                    self._strategy.transition(_OFF)
            finally:
                self._target.activate(self._power)
                self._power.off()

    def _start_verified(self, ssh: Any) -> Any:
        """Connect once, to a board whose host key is known. labgrid takes any; the first of two options counts."""
        verified = [f'UserKnownHostsFile="{self._known_hosts}"', "StrictHostKeyChecking=yes"]
        ssh.ssh_prefix += [word for option in verified for word in ("-o", option)]
        return ssh._start_own_master_once(_CONNECT_WITHIN_S)


def _nobody(message: str) -> None:
    raise RefusedError("board", f"a person is asked ({message}); a rig needs drivers that need nobody")


def answer_to(line: bytes, bench: Bench) -> dict[str, Any]:
    """Do what a line asks, and return the answer: `ok`, or `error` with what went wrong and whose matter it is."""
    asked = json.loads(line)
    number, what = asked.pop("id"), asked.pop("do")
    does: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "open": bench.open, "on": bench.on, "off": bench.off, "connect": bench.connect,
        "disconnect": bench.disconnect, "console": bench.console, "close": bench.close,
    }  # fmt: skip
    try:
        return {"id": number, "ok": does[what](asked)}
    except RefusedError as error:
        return {"id": number, "error": {"kind": error.kind, "what": str(error)}}
    except Exception as error:  # noqa: BLE001  drivers raise anything; the answer carries it to who decides
        kind = "environment" if what == "open" and type(error).__module__ == "labgrid.exceptions" else "board"
        return {"id": number, "error": {"kind": kind, "what": _chain(error)}}


def _chain(error: BaseException) -> str:
    said: list[str] = []
    link: BaseException | None = error
    while link is not None and len(said) < 3:
        printed = getattr(link, "stdout", None) or []
        lines = [text.decode(errors="replace").strip() if isinstance(text, bytes) else str(text) for text in printed]
        said.append(" ".join(filter(None, [f"{type(link).__name__}: {link}"[:500], *lines[-4:]])))
        link = link.__cause__
    return "; ".join(said)


def main() -> None:
    """Answer until the input ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What drivers and their programs print goes to the log, and none of them takes requests away.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    steps.__class__ = _StepsOfThreads
    bench = Bench()
    try:
        while line := requests.readline(_MAX_REQUEST):
            answers.write(json.dumps(answer_to(line, bench)).encode() + b"\n")
            answers.flush()
    except BrokenPipeError:
        pass  # nobody waits for the answer: as if the input had ended
    finally:
        bench.close({})


if __name__ == "__main__":
    main()
