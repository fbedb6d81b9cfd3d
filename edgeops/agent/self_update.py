"""The agent itself as a component: its wheels installed beside it, tried out there, and taken up by a new start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeops import durable
from edgeops.agent import versions
from edgeops.agent.channel import Load
from edgeops.agent.loop import Loop
from edgeops.agent.versions import Running, SiteMark, environment_for, mark_of, site_of
from edgeops.contracts.deployment import Shadowing
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import encode
from edgeops.releases.bundles import open_agent_bundle

if TYPE_CHECKING:
    from edgeops.agent.serving_words import ServingEvents

_INSTALL_WITHIN_S = 900.0
_CHECK_WITHIN_S = 180.0
_LOOK_EVERY_S = 0.2
# What a version must be able to do before it is started: say who it is, import all of the agent, and see a runtime.
_WHO = "import edgeops, edgeops.agent.supervisor, edgeops.agent.worker.process; print(edgeops.__version__)"


class AgentLife(NamedTuple):
    """What the component of the agent needs to know of the agent.

    Args:
        running: What this process is.
        root: The state directory.
        heard: Whether the fleet has this start's first report.
        relaunch: Ends this process for the version that is then the active one.
    """

    running: Running
    root: Path
    heard: Callable[[], bool]
    relaunch: Callable[[], None]


class AgentServing:
    """Stands for the agent where `ModelServing` stands for the workers of a model: the same words, for other deeds.

    Args:
        loop: The supervisor's loop.
        events: Who hears of it.
        life: The agent.
    """

    port: int | None = None
    endpoint = ""
    socket_path = Path()
    ended = is_alone = True

    def __init__(self, loop: Loop, events: ServingEvents, life: AgentLife) -> None:
        self._loop, self._events, self._life = loop, events, life
        self._wanted: str | None = None
        self._trying: _Try | None = None
        self._last_try: _Try | None = None
        self.has_tested_candidate = False
        if life.running.digest:
            loop.after(versions.CALM_AFTER_S, lambda: versions.calm(life.root))

    @property
    def is_serving(self) -> bool:
        """Whether what should run is what runs, and the fleet has heard of it."""
        return self._wanted == self._life.running.digest and self._life.heard()

    def serve(self, load: Load, *, alone: bool = False, on_trial: bool = False) -> None:
        """Let a version run: nothing if it is this one, else a new start. One version runs at a time in any case."""
        self._wanted = load.digest
        if load.digest == self._life.running.broken:
            what = f"agent version {load.release} does not get up"
            self._loop.post(lambda: self._events.damaged(EdgeopsError("E-BUNDLE-DAMAGED", what)))
        elif load.digest != self._life.running.digest:
            self._relaunch()
        else:
            self._loop.post(self._events.serves)

    def try_out(self, load: Load, *, alone: bool = False) -> None:
        """Install a version beside its wheels, and have it say who it is."""
        self.drop_candidate()
        self.has_tested_candidate = False
        self._trying = self._last_try = _Try(self._loop, load, self._life.root, self._tried, before=self._last_try)

    def shadow(self, wish: Shadowing) -> None:
        """Stay tried out: of two agents one alone can run."""

    def promote(self) -> None:
        """Let the version run that was tried out."""
        self._relaunch()

    def keep(self) -> bool:
        """Nothing is to be done: the slots know it."""
        return True

    def drop_candidate(self) -> None:
        """Give up what is tried out."""
        if self._trying is not None:
            self._trying.cancel()
            self._trying = None

    def stop(self) -> None:
        """Run none of the versions: the installed one."""
        self.drop_candidate()
        self._wanted = ""
        if self._life.running.digest:
            self._relaunch()

    def close(self) -> None:
        """Give up what is under way."""
        self.drop_candidate()

    def kill_all(self) -> None:
        """There is nothing to end."""

    def probe(self, *, infer: bool) -> None:
        """Give a sign of life if there is one: that the fleet has heard this version."""
        if self.is_serving:
            self._loop.post(self._events.alive)

    def _tried(self, outcome: EdgeopsError | None) -> None:
        if outcome is None:
            self.has_tested_candidate = True
            self._events.tested(None)
        else:
            self._events.test_failed(outcome)

    def _relaunch(self) -> None:
        # Posted: what was decided is on the disk first.
        self._loop.post(self._life.relaunch)


class _Try:
    """The installation and first words of a version, on a thread. It begins once the one before has ended: given up or
    not, that writes to the same slot until then."""

    def __init__(
        self,
        loop: Loop,
        load: Load,
        root: Path,
        on_done: Callable[[EdgeopsError | None], None],
        *,
        before: _Try | None,
    ) -> None:
        self._loop, self._load, self._root, self._on_done = loop, load, root, on_done
        self._slot = Path(load.directory).parent
        self._cancelled, self._before = threading.Event(), before
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name="self-update", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Give it up; no callback follows."""
        self._cancelled.set()
        if self._process is not None:
            self._process.kill()  # at once: what it writes to is about to be removed

    def _run(self) -> None:
        outcome: EdgeopsError | None = None
        if self._before is not None:
            self._before._thread.join()
            self._before = None
        if self._cancelled.is_set():
            return
        try:
            self._install()
            self._check()
        except EdgeopsError as error:
            outcome = error
        except OSError as error:
            outcome = durable.disk_error(error, self._slot)
        self._loop.post(lambda: None if self._cancelled.is_set() else self._on_done(outcome))

    def _install(self) -> None:
        """Install the wheels into the slot, and mark it once all of that is durable."""
        bundle = open_agent_bundle(Path(self._load.directory), expect_digest=self._load.digest)
        durable.remove_tree(mark_of(self._slot))
        durable.remove_tree(site_of(self._slot))
        wheels = [str(bundle.directory / name) for name in sorted(bundle.manifest.files)]
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
            "--no-index", "--no-deps", "--no-cache-dir", "--target", str(site_of(self._slot)), *wheels,
        ]  # fmt: skip
        self._call(command, None, _INSTALL_WITHIN_S, "its wheels cannot be installed")
        durable.fsync_tree(site_of(self._slot))
        durable.write_file(mark_of(self._slot), encode(SiteMark(digest=self._load.digest)))

    def _check(self) -> None:
        """Have the new version say who it is, import everything, find a runtime, and read this state directory."""
        environment = environment_for(self._slot, os.environ)
        said = self._call([sys.executable, "-c", _WHO], environment, _CHECK_WITHIN_S, "it cannot be imported")
        if said.strip() != self._load.release:
            raise EdgeopsError(
                "E-SELFTEST-AGENT", f"the wheels are edgeops {said.strip()[:80]}, not {self._load.release}"
            )
        worker = [sys.executable, "-m", "edgeops.agent.worker", "capabilities"]
        runtimes = _json(self._call(worker, environment, _CHECK_WITHIN_S, "its worker does not start"))
        if not runtimes:
            raise _unfit("with its wheels there is no runtime on this device")
        status = [sys.executable, "-m", "edgeops", "agent", "status", "--state", str(self._root), "--json"]
        if not _json(self._call(status, environment, _CHECK_WITHIN_S, "it cannot read the state directory")):
            raise _unfit("it cannot read the state directory")

    def _call(self, command: list[str], environment: dict[str, str] | None, within_s: float, what: str) -> str:
        self._process = process = subprocess.Popen(
            command, env=environment, cwd=self._slot, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        left_s = within_s
        while True:
            try:
                out, problem = process.communicate(timeout=_LOOK_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                left_s -= _LOOK_EVERY_S
                if self._cancelled.is_set() or left_s <= 0:
                    process.kill()
                    process.communicate()
                    raise _unfit(f"{what}: no end within {within_s:.0f} s") from None
        if process.returncode:
            raise EdgeopsError(
                "E-SELFTEST-AGENT", f"{what}: {problem.strip()[-300:] or f'status {process.returncode}'}"
            )
        return out


def _unfit(what: str) -> EdgeopsError:
    return EdgeopsError("E-SELFTEST-AGENT", what, "The version that runs goes on; release one that fits the device.")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
