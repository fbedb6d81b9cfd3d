"""One component on its way: events into the table, the new state to the disk, and only then the effects."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from edgeops.agent.downloads import start_delay_s
from edgeops.agent.fetching import FetchJob, FetchRequest, Staged, discard
from edgeops.agent.house import House
from edgeops.agent.keeping import Keeping
from edgeops.agent.loads import Loads
from edgeops.agent.loop import Timer
from edgeops.agent.plan import ON_ITS_WAY, Wish, changes_for, event_at_start, event_for, repair_at_start
from edgeops.agent.self_update import AgentServing
from edgeops.agent.serving import ModelServing
from edgeops.agent.serving_words import ComponentServing
from edgeops.agent.slots import SlotName
from edgeops.agent.states import MAX_ATTEMPTS, Effect, Event, next_step
from edgeops.agent.store import ComponentRecord, report_of
from edgeops.agent.trial import Verdict
from edgeops.agent.trial_watch import TrialWatch
from edgeops.agent.waiting import Waiting
from edgeops.contracts.deployment import (
    ComponentKind,
    ComponentReport,
    DeploymentState,
    Failure,
    SelfTestFigures,
    Slot,
    kind_of,
)
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.telemetry import ModelWindow

log = logging.getLogger(__name__)

WATCHDOG_EVERY_S = 15.0
HOLD_LOOK_EVERY_S = 5.0
_WORKED_ON = (ON_ITS_WAY - {DeploymentState.HELD}) | {DeploymentState.ROLLING_BACK}


class Deployment:
    """One component of this device: a model, or the agent itself.

    Args:
        name: The component's name.
        house: What it works with.
        floor_number: Number of the release that was last confirmed.
        ports: Ports for its endpoint, in order of preference.

    Raises:
        EdgeopsError: E-DISK-WRITE or E-DISK-FULL; E-NAME; E-CONFIG if no port is free.
    """

    def __init__(self, name: str, house: House, *, floor_number: int, ports: list[int]) -> None:
        self._house, self._loop, self._observer = house, house.loop, house.observer
        self._keeping = Keeping(name, house.state, house.loop)
        self._slots = self._keeping.slots
        self._loads = Loads(name, self._slots, house)
        trial_rules = house.settings.trial
        self.serving: ComponentServing
        if house.make_serving is not None:
            self.serving = house.make_serving(self, name)
        elif house.life is not None and kind_of(name) is ComponentKind.AGENT:
            self._keeping.record = msgspec.structs.replace(self.record, kind=ComponentKind.AGENT)
            self.serving = AgentServing(house.loop, self, house.life)
            trial_rules = trial_rules._replace(confirm_within_s=house.settings.self_update.trial_s)
        else:
            kept = [self.record.port] if self.record.port is not None and not house.settings.http_port else []
            socket_path = (house.settings.socket_dir or house.state.sockets) / f"{name}.sock"
            self.serving = ModelServing(
                house.loop, self, [*kept, *ports], socket_path, house.settings.serving, house.groups
            )
        proved = self._slots.confirmed_slot
        # Where the file of the floors is damaged, or was refused by the disk, what has proved itself still says it.
        self.floor_number = max(floor_number, proved.number if proved is not None else 0)
        self._job: FetchJob | None = None
        self._hold: Timer | None = None
        self._waiting = Waiting(house.settings.holds, house.conditions, house.now, self.record.waited_s)
        self._trial = TrialWatch(house.loop, trial_rules, self.serving, self._judged)
        # What happened, but waits for the rest of its set.
        self.ready: Event | None = None
        self._loop.after(WATCHDOG_EVERY_S, self._watch)

    # What the supervisor asks

    @property
    def record(self) -> ComponentRecord:
        """How it stands, as it is kept."""
        return self._keeping.record

    def start(self) -> None:
        """Serve what is active, at once, without a network; then go on with what was under way."""
        self._keeping.durably(self._slots.collect)
        repair = repair_at_start(self.record, self._slots.active_slot if self._slots.in_trial else None)
        if repair is Effect.CONFIRM:
            self._confirm()
        elif repair is Effect.REVERT:
            self._keeping.durably(self._slots.revert)
        elif repair is Effect.GIVE_WAY:
            self._keeping.durably(self._slots.give_way)
        if self._slots.active is not None:
            self._serve(self._slots.active)
        event = event_at_start(self.record)
        if event is Event.RESTARTED:
            self.handle(event)
        else:
            what = f"the agent ended {self.record.attempts} times in {self.record.state}"
            self.handle(event, failure=self._failure(EdgeopsError("E-TRIAL", what)))

    def amend(self, record: ComponentRecord) -> None:
        """Take another record before the start: what its set had decided."""
        if record != self.record:
            self._keeping.keep(record)

    def begins(self, wish: Wish) -> bool:
        """Say whether a desired state would end what is under way, or begin something."""
        event = event_for(self.record, wish, self.confirmed)
        return event is Event.WANTED or (event is Event.SATISFIED and self.record.state in ON_ITS_WAY)

    def pursue(self, wish: Wish) -> None:
        """Take in what a desired state says of this component."""
        record = self.record
        event = event_for(record, wish, self.confirmed)
        if event is not None:
            self._waiting.begin(anew=event is not Event.RENEWED and record.generation != wish.generation)
            self.handle(event, **changes_for(record, wish, event))
        elif wish.together != record.together:
            self._keeping.keep(msgspec.structs.replace(record, together=wish.together))
        if not self.record.together:
            self.proceed()  # it may have waited for a set that is none any more
        if event is Event.RENEWED and wish.override_holds and self.record.state is DeploymentState.HELD:
            self._cancel()
            self.handle(Event.RELEASED)

    def report(self) -> ComponentReport:
        """Return how it stands."""
        return report_of(self.record, self._slots, self.serving.endpoint)

    def proceed(self) -> None:
        """Let happen what waited for the rest of the set."""
        if self.ready is not None and (self.ready is not Event.HEALTHY or self.serving.keep()):
            self.handle(self.ready)

    def abandon(self, why: str) -> None:
        """Give up what is on its way, for its set's sake."""
        if self.record.state in ON_ITS_WAY:
            self.handle(Event.ABANDONED, failure=self._failure(EdgeopsError("E-SET", why)))

    @property
    def confirmed(self) -> Slot | None:
        """The bundle that has proved itself here."""
        return self._slots.confirmed_slot

    @property
    def active(self) -> Slot | None:
        """What serves."""
        return self._slots.active_slot

    @property
    def fetching(self) -> bool:
        """Whether something of it is on its way, or a fetch that was given up still at work."""
        on_its_way = self.record.state in (DeploymentState.HELD, DeploymentState.DOWNLOADING)
        return on_its_way or (self._job is not None and self._job.running)

    @property
    def on_its_way(self) -> bool:
        """Whether something works to change it; one that is held waits."""
        return self.record.state in _WORKED_ON

    @property
    def gone(self) -> bool:
        """Whether nothing is left of it: it is not wanted, and nothing works for it."""
        unwanted = self.record.want is None and self.record.state is DeploymentState.IDLE
        return unwanted and self._slots.active is None and self.serving.ended and not self.fetching

    def close(self) -> None:
        """Give up what is under way, and let the workers finish what they answer."""
        self._cancel()
        self.serving.close()

    # The table

    def handle(self, event: Event, **changes: Any) -> None:
        """Take an event to its new state; state and `changes` of the record are kept as one, before the effects.

        Raises:
            EdgeopsError: E-AGENT-STATE; impossible in this state, and nothing was changed.
        """
        step = next_step(self.record.state, event)
        moved = step.state is not self.record.state
        if event is not Event.RENEWED:
            self.ready = None
        log.info("%s: %s, %s -> %s", self.record.name, event.value, self.record.state, step.state)
        record = msgspec.structs.replace(self.record, state=step.state, **changes)
        # The agent's own trial begins with a start; those are counted by what starts it.
        cut_off = event is Event.RESTARTED and record.kind is ComponentKind.MODEL
        begins = Effect.TEST in step.effects or (Effect.WATCH in step.effects and cut_off)
        self._keeping.keep(
            msgspec.structs.replace(
                record,
                attempts=record.attempts + 1 if begins else record.attempts,
                step=record.step + 1 if moved else record.step,
                port=self.serving.port,
            )
        )
        if moved:
            self._observer.stepped(self, None)
        self._observer.changed(self)
        for effect in step.effects:
            self._effects[effect](self)
        if moved and step.state in (DeploymentState.CONFIRMED, DeploymentState.FAILED):
            self._observer.settled()

    def _handle_in(self, state: DeploymentState, event: Event, **changes: Any) -> None:
        """Take an event that may come late: only in the state that it speaks of."""
        if self.record.state is state:
            self.handle(event, **changes)

    def _await_set(self, ready: Event | None) -> None:
        if ready is not self.ready:
            self.ready = ready
            self._observer.changed(self)

    def _failure(self, error: EdgeopsError) -> Failure:
        release = self.record.want.release if self.record.want is not None else ""
        return Failure(code=error.code, what=error.what[:500], release=release, at_s=self._house.now())

    # Effects

    def _cancel(self) -> None:
        if self._job is not None:
            self._job.cancel()
        if self._hold is not None:
            self._hold.cancel()
        self.serving.drop_candidate()
        self._trial.end()

    def _fetch(self) -> None:
        want = self.record.want
        if want is None:
            raise EdgeopsError("E-AGENT-STATE", f"{self.record.name}: nothing to fetch")
        hold = self._waiting.reason(self.record, downloading=True)
        if hold is not None:
            told = self._waiting.told(hold)
            self._loop.post(lambda: self._handle_in(DeploymentState.DOWNLOADING, Event.HOLD, **told))
            return
        settings, record = self._house.settings, self.record
        # A retry has waited already, and a person who overrides the holds does not want to.
        spread_s = 0.0 if self._waiting.retries or record.override_holds else settings.downloads.start_within_s
        delay_s = start_delay_s(self._house.connection, record.generation, spread_s)
        request = FetchRequest(want, self.floor_number, settings.reserve_mib << 20, delay_s)
        fetcher, slots = self._house.fetcher, self._slots
        self._job = FetchJob(
            self._loop,
            lambda cancelled, progress: fetcher.fetch(request, slots, on_progress=progress, cancelled=cancelled),
            before=self._job,
            on_progress=lambda share: self._observer.stepped(self, 100 * share),
            on_done=self._fetched,
        )

    def _fetched(self, outcome: Staged | EdgeopsError) -> None:
        if isinstance(outcome, Staged):
            try:
                if outcome.path is None:
                    self._slots.doubt()
                else:
                    self._slots.install(outcome.path, outcome.slot)
            except EdgeopsError as error:
                discard(outcome)
                outcome = error
        if isinstance(outcome, Staged):
            self.handle(Event.FETCHED)
        elif outcome.code == "E-DISK-FULL" and self._keeping.made_room(outcome):
            self._fetch()
        elif (hold := self._waiting.after(outcome)) is not None:
            self.handle(Event.HOLD, **self._waiting.told(hold))
        else:
            self.handle(Event.REFUSED, failure=self._failure(outcome))

    def _wait(self) -> None:
        wait_s = HOLD_LOOK_EVERY_S
        if self.record.held_until_s is not None:
            wait_s = min(wait_s, max(0.0, self.record.held_until_s - self._house.now()))
        self._hold = self._loop.after(wait_s, self._look_at_hold)

    def _look_at_hold(self) -> None:
        """Go on if the time has come and nothing else holds it; else say what holds it now."""
        hold = self._waiting.still(self.record)
        if hold is None:
            self.handle(Event.RELEASED)
            return
        if self._waiting.is_to_be_kept(self.record, hold):
            self._keeping.keep(msgspec.structs.replace(self.record, **self._waiting.told(hold)))
            self._observer.changed(self)
        self._wait()

    def _ask(self) -> None:
        hold = self._waiting.reason(self.record, downloading=False)
        if hold is None:
            self.handle(Event.PROCEED)
        else:
            self.handle(Event.HOLD, **self._waiting.told(hold))

    def _test(self) -> None:
        name, want = self._slots.candidate, self.record.want
        # A shadow is asked for to run beside what serves: that it does, or fails.
        shadows = want is not None and want.shadow is not None
        self.serving.try_out(self._loads.of(name), alone=not shadows and not self._loads.fits_beside(name))

    def _shadow(self) -> None:
        want = self.record.want
        if want is not None and want.shadow is not None:
            self.serving.shadow(want.shadow)

    def _switch(self) -> None:
        if self._slots.in_trial:
            return
        name = self._slots.candidate
        try:
            self._slots.switch(name)
        except EdgeopsError as error:
            failure = self._failure(error)
            self._loop.post(lambda: self._handle_in(DeploymentState.TRIAL, Event.UNHEALTHY, failure=failure))
            return
        if self.serving.has_tested_candidate:
            self.serving.promote()
        else:
            self._serve(name)

    def _begin_trial(self) -> None:
        self._trial.begin()

    def _confirm(self) -> None:
        self._trial.end()
        self._keeping.durably(self._slots.confirm)
        slot = self._slots.active_slot
        if slot is not None:
            self.floor_number = slot.number
            self._observer.confirmed(self.record.name, slot.number)
        self._observer.changed(self)

    def _revert(self) -> None:
        if not self._slots.in_trial:
            self._say_reverted()
            return
        self._keeping.durably(self._slots.revert)
        if self._slots.active is not None:
            self._serve(self._slots.active)  # it says when it serves
        else:
            self.serving.stop()
            self._say_reverted()

    def _give_way(self) -> None:
        before = self._slots.active
        self._keeping.durably(self._slots.give_way)
        if self._slots.active is not None and self._slots.active != before:
            self._serve(self._slots.active)

    def _say_reverted(self) -> None:
        self._loop.post(lambda: self._handle_in(DeploymentState.ROLLING_BACK, Event.REVERTED))

    def _discard(self) -> None:
        if not self._slots.in_trial:
            record = self._slots.records.get(self._slots.candidate)
            if record is not None and not record.keeps:
                self._keeping.durably(self._slots.discard)
        self._observer.changed(self)

    def _remove(self) -> None:
        self.serving.stop()
        self._keeping.durably(self._slots.clear)
        self._observer.changed(self)

    _effects: ClassVar[dict[Effect, Callable[[Deployment], None]]] = {
        Effect.CANCEL: _cancel,
        Effect.FETCH: _fetch,
        Effect.ASK: _ask,
        Effect.WAIT: _wait,
        Effect.TEST: _test,
        Effect.SHADOW: _shadow,
        Effect.SWITCH: _switch,
        Effect.WATCH: _begin_trial,
        Effect.CONFIRM: _confirm,
        Effect.REVERT: _revert,
        Effect.GIVE_WAY: _give_way,
        Effect.DISCARD: _discard,
        Effect.REMOVE: _remove,
    }

    # What the workers say: `serving_words.ServingEvents`

    def building(self, for_s: float) -> None:
        """A worker's runtime builds an engine for this device: once for each bundle, in the candidate's slot."""
        self._observer.stepped(self, None, f"the runtime builds an engine for this device, for {for_s:.0f} s by now")

    def arriving(self, share: float) -> None:
        """The candidate is on its way over a serial line."""
        self._observer.stepped(self, 100 * share, "on its way to the microcontroller")

    def tested(self, figures: SelfTestFigures | None) -> None:
        """The candidate passed its self-test."""
        want = self.record.want
        if not self.record.together and want is not None and want.shadow is not None:
            # It may stay a shadow for long, and restarts of the agent meanwhile are no attempts that failed.
            attempts = self.record.attempts - 1
            self._handle_in(DeploymentState.SELF_TEST, Event.SHADOWED, self_test=figures, attempts=attempts)
        elif not self.record.together:
            self._handle_in(DeploymentState.SELF_TEST, Event.TEST_PASSED, self_test=figures)
        elif self.record.state is DeploymentState.SELF_TEST:
            # A test that passed is no attempt that ended the agent, however long the rest of the set takes.
            attempts = self.record.attempts - 1
            self._keeping.keep(msgspec.structs.replace(self.record, self_test=figures, attempts=attempts))
            self._await_set(Event.TEST_PASSED)

    def test_failed(self, error: EdgeopsError) -> None:
        """The candidate did not load, did not pass, or died."""
        if self.record.state is DeploymentState.SHADOW:
            self.handle(Event.TEST_FAILED, failure=self._failure(error))
        else:
            self._handle_in(DeploymentState.SELF_TEST, Event.TEST_FAILED, failure=self._failure(error))

    def serves(self) -> None:
        """The current bundle accepts connections."""
        self._observer.changed(self)
        if not self._slots.in_trial:
            self._say_reverted()

    def damaged(self, error: EdgeopsError) -> None:
        """The active bundle's bytes are not whole any more: the other slot's serves, and it is fetched again."""
        log.error("%s: the active bundle is damaged: %s", self.record.name, error)
        failure = self._failure(error)
        if self.record.state is DeploymentState.TRIAL:
            self.handle(Event.UNHEALTHY, failure=failure)
            return
        self._keeping.durably(self._slots.abandon)
        if self._slots.active is not None:
            self._serve(self._slots.active)
        self._keeping.keep(msgspec.structs.replace(self.record, failure=failure))
        self._observer.changed(self)
        if self.record.state is DeploymentState.ROLLING_BACK:
            self._say_reverted()
        elif self.record.state in ON_ITS_WAY or (
            self.record.state is DeploymentState.CONFIRMED and self.record.attempts < MAX_ATTEMPTS
        ):
            # The slots have changed their parts: what is under way begins anew, what was lost is fetched again.
            self.handle(Event.WANTED)

    def crashed(self, how: str) -> None:
        """The current worker died; it is started again after a wait."""
        self._trial.crashed(how)

    def alive(self) -> None:
        """The current worker gave a sign of life."""
        self._trial.alive()

    def counted(self, window: ModelWindow) -> None:
        """A worker tells what it served."""
        active = self._slots.active_slot
        if active is not None and window.digest == active.digest:
            self._trial.counted(window)
        self._observer.counted(window)

    def busy(self, for_s: float) -> None:
        """The application does not want to be disturbed for so long."""
        self._observer.busy(for_s)

    def drawn(self, id: str, sample: bytes) -> None:
        """A worker drew a request for a command."""
        self._observer.drawn(id, sample)

    # Time

    def _judged(self, verdict: Verdict) -> bool:
        """Take in how a trial stands; say whether it goes on."""
        if self.record.state is not DeploymentState.TRIAL:
            return False
        if verdict.healthy is False:
            self.handle(Event.UNHEALTHY, failure=self._failure(EdgeopsError("E-TRIAL", verdict.reason)))
        elif verdict.healthy and not self.record.together and self.serving.keep():
            # What it runs on keeps it before anybody is told, so a cut between the two loses nothing.
            self.handle(Event.HEALTHY)
        else:
            self._await_set(Event.HEALTHY if verdict.healthy else None)
            return True
        return False

    def _watch(self) -> None:
        self.serving.probe(infer=False)
        if (hold := self._waiting.interrupts(self.record)) is not None:
            self.handle(Event.HOLD, **self._waiting.told(hold))
        self._loop.after(WATCHDOG_EVERY_S, self._watch)

    def _serve(self, name: SlotName) -> None:
        alone = not self._loads.fits_beside(name)
        self.serving.serve(self._loads.of(name), alone=alone, on_trial=self._slots.in_trial)
