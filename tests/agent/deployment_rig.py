"""A deployment without processes and network: its files are real, so that the power can be cut at each of them.

What stands in for a worker opens the bundle and checks every byte of it, as a worker does before it serves.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from edgeops.agent import deployment as deployment_module
from edgeops.agent import trial_watch
from edgeops.agent.cgroups import Groups
from edgeops.agent.channel import Load
from edgeops.agent.deployment import Deployment
from edgeops.agent.fetching import FetchJob, FetchRequest, Staged
from edgeops.agent.holds import Conditions, HoldRules
from edgeops.agent.house import House
from edgeops.agent.loop import Loop
from edgeops.agent.plan import Wish
from edgeops.agent.sets import Sets
from edgeops.agent.settings import Settings, TrialRules
from edgeops.agent.slots import Slots
from edgeops.agent.store import StateDirectory, UnitRecord
from edgeops.contracts.deployment import Component, DeploymentState, Desired, SelfTestFigures, Shadowing, Slot
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Latency
from edgeops.contracts.profile import Serving
from edgeops.contracts.telemetry import ModelWindow
from edgeops.releases.bundles import open_bundle

FIGURES = SelfTestFigures(
    vectors=1, worst_output="y", max_abs_diff=0, min_cosine=1, load_ms=1, latency=Latency(p50_ms=1, p95_ms=1, runs=1),
    peak_memory_mib=1, provider="none",
)  # fmt: skip
MAX_ACTIONS = 500
TRIAL_LOOK_EVERY_S = 0.0005
NO_HOLDS = HoldRules()


class StandInServing:
    """Stands in for `ModelServing`: serves a bundle if, and only if, every byte of it is right."""

    port = 1
    endpoint = "http://127.0.0.1:1"
    is_serving = is_alone = True
    ended = True

    def __init__(
        self, loop: Loop, events: Deployment, ports: list[int], socket_path: Path, rules: object, groups: Groups | None
    ) -> None:
        self._loop, self._events = loop, events
        self.current: Load | None = None
        self._candidate: Load | None = None
        self.bad_digests: frozenset[str] = frozenset()
        self.alone: list[bool] = []

    @property
    def has_tested_candidate(self) -> bool:
        return self._candidate is not None

    def serve(self, load: Load, *, alone: bool = False, on_trial: bool = False) -> None:
        try:
            open_bundle(Path(load.directory), expect_digest=load.digest)
        except EdgeopsError as error:
            self.current = None
            self._loop.post(lambda error=error: self._events.damaged(error))
            return
        self.current = load
        self._loop.post(self._events.serves)

    def try_out(self, load: Load, *, alone: bool = False) -> None:
        self.alone.append(alone)
        open_bundle(Path(load.directory), expect_digest=load.digest)
        if load.digest in self.bad_digests:
            error = EdgeopsError("E-SELFTEST-GOLDEN", "as told")
            self._loop.post(lambda: self._events.test_failed(error))
            return
        self._candidate = load
        self._loop.post(lambda: self._events.tested(FIGURES))

    def promote(self) -> None:
        assert self._candidate is not None
        candidate, self._candidate = self._candidate, None
        self.serve(candidate)

    def keep(self) -> bool:
        """It has proved itself; nothing here waits for that."""
        return True

    def shadow(self, wish: Shadowing) -> None:
        """Stay where it is: beside what serves."""

    def probe(self, *, infer: bool) -> None:
        if infer:
            self._events.alive()

    def drop_candidate(self) -> None:
        self._candidate = None

    def stop(self) -> None:
        self.current = self._candidate = None

    close = kill_all = stop


class LocalFetcher:
    """Stands in for `Fetcher`: the bundle's file lies on another disk already."""

    def __init__(self, files: dict[str, tuple[Path, Slot]]) -> None:
        self._files = files
        self.requests: list[FetchRequest] = []

    def fetch(
        self, request: FetchRequest, slots: Slots, *, on_progress: Callable[[float], None], cancelled: threading.Event
    ) -> Staged:
        self.requests.append(request)
        file, slot = self._files[request.want.digest]
        if slots.holds_whole(slot):
            return Staged(slot, None)
        return Staged(slot, slots.unpack(file, slot))


class InlineJob(FetchJob):
    """A fetch that is done at once, on the loop's own thread."""

    def __init__(self, loop: Loop, work, *, before, on_progress, on_done) -> None:  # type: ignore[no-untyped-def]
        self._cancelled = threading.Event()

        def run() -> None:
            if not self._cancelled.is_set():
                try:
                    outcome = work(self._cancelled, on_progress)
                except EdgeopsError as error:
                    outcome = error
                on_done(outcome)

        loop.post(run)

    @property
    def running(self) -> bool:
        return False


class Rig:
    """Components on a state directory, and the loop that runs them; `settle_all` runs it until nothing more happens.

    Args:
        root: The state directory.
        names: The components.
        files: Digest → the bundle's file and what its slot says.
        bad: Digests of bundles that fail their self-test.
        holds: What the site allows.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        files: dict[str, tuple[Path, Slot]],
        bad: frozenset[str] = frozenset(),
        holds: HoldRules = NO_HOLDS,
    ) -> None:
        self.seen = Conditions(now_s=0.0)
        self.state = StateDirectory(root)
        self.loop = Loop()
        self.confirmed_numbers: list[int] = []
        self.fetcher = LocalFetcher(files)
        house = House(
            loop=self.loop,
            state=self.state,
            settings=Settings(trial=TrialRules(confirm_after_s=0, probes=1), holds=holds),
            serving=Serving(),
            ram_mib=512,
            connection="device-1",
            fetcher=self.fetcher,  # type: ignore[arg-type]
            now=time.time,
            observer=self,
            conditions=self.conditions,
        )
        self.deployments: dict[str, Deployment] = {}
        self.sets = Sets(self.loop, self.deployments)
        unit = self.state.read_unit()
        self._patches = contextlib.ExitStack()
        for module, what, stand_in in (
            (deployment_module, "ModelServing", StandInServing),
            (deployment_module, "FetchJob", InlineJob),
            (trial_watch, "TRIAL_LOOK_EVERY_S", TRIAL_LOOK_EVERY_S),
        ):
            self._patches.enter_context(mock.patch.object(module, what, stand_in))
        for name in names:
            self.deployments[name] = Deployment(name, house, floor_number=unit.numbers.get(name, 0), ports=[0])
            self.serving_of(name).bad_digests = bad

    def conditions(self) -> Conditions:
        """What the device is like: as `seen` says."""
        return self.seen

    def serving_of(self, name: str) -> StandInServing:
        serving: StandInServing = self.deployments[name].serving  # type: ignore[assignment]
        return serving

    def start(self) -> None:
        self.sets.start()

    def settle_all(self) -> dict[str, DeploymentState]:
        """Run until all components rest; return their states."""
        for _ in range(MAX_ACTIONS):
            self.loop.post(self.loop.stop)
            self.loop.run()
            timers = [timer for timer in self.loop._timers if timer[0] <= time.monotonic()]
            states = {name: deployment.record.state for name, deployment in self.deployments.items()}
            if self.loop._actions.empty() and not timers:
                if not UNDER_WAY & set(states.values()):
                    return states
                time.sleep(TRIAL_LOOK_EVERY_S)
        raise AssertionError(f"it never rests: {[deployment.record for deployment in self.deployments.values()]}")

    def close(self) -> None:
        self._patches.close()
        self.state.close()

    def changed(self, deployment: Deployment) -> None:
        self.sets.look()

    def stepped(self, deployment: Deployment, percent: float | None, doing: str = "") -> None:
        pass

    def busy(self, for_s: float) -> None:
        """Not told here."""

    def counted(self, window: ModelWindow) -> None:
        pass

    def confirmed(self, name: str, number: int) -> None:
        self.confirmed_numbers.append(number)

    def settled(self) -> None:
        pass


class DeploymentRig(Rig):
    """One model component on a state directory."""

    def __init__(
        self,
        root: Path,
        name: str,
        files: dict[str, tuple[Path, Slot]],
        bad: frozenset[str] = frozenset(),
        holds: HoldRules = NO_HOLDS,
    ) -> None:
        super().__init__(root, [name], files, bad, holds)
        self.deployment, self.serving = self.deployments[name], self.serving_of(name)

    def pursue(self, want: Component, generation: int) -> None:
        """Take in a desired state as the supervisor does: kept first."""
        self.state.write_unit(UnitRecord(generation=generation))
        self.deployment.pursue(Wish(want, generation))

    def settle(self) -> DeploymentState:
        """Run until the deployment rests; return its state."""
        (state,) = self.settle_all().values()
        return state


class SetRig(Rig):
    """Components that a desired state may declare as a set."""

    def pursue(self, generation: int, *wanted: Component, blocked: Sequence[str] = ()) -> None:
        """Take in a desired state as the supervisor does: kept first."""
        self.state.write_desired(desired(generation, *wanted))
        self.state.write_unit(UnitRecord(generation=generation))
        self.sets.pursue({want.name: want for want in wanted}, generation, blocked=blocked, override_holds=False)

    def pursue_kept(self) -> None:
        """As the supervisor does at its start."""
        kept = self.state.read_desired()
        if kept is not None:
            self.pursue(kept.generation, *kept.components)

    def serves(self) -> dict[str, str | None]:
        """Component → digest of what serves."""
        loads = {name: self.serving_of(name).current for name in self.deployments}
        return {name: load.digest if load is not None else None for name, load in loads.items()}


def desired(generation: int, *components: Component) -> Desired:
    return Desired(
        fleet="f", connection="device-1", unit="self", generation=generation, issued_at_s=0, expires_at_s=1e12,
        components=components,
    )  # fmt: skip


UNDER_WAY = {
    DeploymentState.DOWNLOADING, DeploymentState.STAGED, DeploymentState.SELF_TEST, DeploymentState.TRIAL,
    DeploymentState.ROLLING_BACK, DeploymentState.HELD,
}  # fmt: skip
