"""Serves what a device holds while its identity is damaged, so that nobody can be asked or told anything.

What proved itself last serves as it did before. No release is taken, no slot is changed, nothing is measured or told,
until the identity is whole again or the device is enrolled anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator

from edgeops.agent import cgroups
from edgeops.agent.cgroups import Groups
from edgeops.agent.channel import Load
from edgeops.agent.loop import Loop
from edgeops.agent.notify import ServiceManager
from edgeops.agent.serving import ModelServing
from edgeops.agent.settings import Settings
from edgeops.agent.slots import SlotName, Slots
from edgeops.agent.status import FACTS_FILE, write_facts
from edgeops.agent.store import StateDirectory
from edgeops.agent.versions import is_child
from edgeops.contracts.deployment import ComponentKind, SelfTestFigures, kind_of
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.telemetry import ModelWindow
from edgeops.profiles import registry
from edgeops.releases.bundles import open_bundle

log = logging.getLogger(__name__)

WATCHDOG_EVERY_S = 15.0
SAY_EVERY_S = 3600.0
STOP_WITHIN_S = 10.0


class Caretaker:
    """Serves the models of a state directory.

    Args:
        state: The state directory, locked.
        settings: The agent's settings.
        why: What is wrong with the identity.
    """

    def __init__(self, state: StateDirectory, settings: Settings, why: EdgeopsError) -> None:
        self._state, self._settings, self._why = state, settings, why
        self._loop, self._manager = Loop(), ServiceManager()
        self._models: dict[str, _Model] = {}

    def run(self) -> None:
        """Serve until a signal says to stop.

        Raises:
            EdgeopsError: What is wrong with the identity, if there is nothing to serve.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._loop.post(self._loop.stop))
        groups = cgroups.find(with_parent=is_child())
        for name in self._state.components():
            if kind_of(name) is ComponentKind.MODEL:
                self._open(name, groups)
        if not self._models:
            raise self._why
        self._say()
        self._watch()
        self._manager.ready(f"serves, but {self._why.code}")
        self._say_alive()
        try:
            self._loop.run()
        finally:
            self._manager.stopping()
            self._stop()

    def _open(self, name: str, groups: Groups | None) -> None:
        try:
            self._models[name] = _Model(name, self._state, self._settings, self._loop, groups)
        except EdgeopsError as error:
            log.error("%s cannot be served: %s", name, error)
            return
        self._models[name].start(self._write_facts)

    def _write_facts(self) -> None:
        served = {name: model.serving for name, model in self._models.items() if model.serving.is_serving}
        facts: dict[str, object] = {
            "pid": os.getpid(),
            "connection": None,
            "endpoints": {name: serving.endpoint for name, serving in served.items()},
            "sockets": {name: f"unix:{serving.socket_path}" for name, serving in served.items()},
        }
        write_facts(self._state.root, facts)

    def _say(self) -> None:
        log.error("only what is here is served, and nothing is updated: %s", self._why)
        self._loop.after(SAY_EVERY_S, self._say)

    def _watch(self) -> None:
        for model in self._models.values():
            model.serving.probe(infer=False)
        self._loop.after(WATCHDOG_EVERY_S, self._watch)

    def _say_alive(self) -> None:
        if self._manager.watchdog_s is not None:
            self._manager.alive()
            self._loop.after(self._manager.watchdog_s / 3, self._say_alive)

    def _stop(self) -> None:
        for model in self._models.values():
            model.serving.close()
        deadline = self._loop.after(STOP_WITHIN_S, self._loop.stop)
        self._loop.post(self._stop_when_ended)
        self._loop.run()
        deadline.cancel()
        for model in self._models.values():
            model.serving.kill_all()
        with contextlib.suppress(OSError):
            (self._state.root / FACTS_FILE).unlink(missing_ok=True)

    def _stop_when_ended(self) -> None:
        if all(model.serving.ended for model in self._models.values()):
            self._loop.stop()
        else:
            self._loop.after(0.05, self._stop_when_ended)


class _Model:
    """One model: what its workers say matters only where its bundle turns out to be damaged."""

    def __init__(self, name: str, state: StateDirectory, settings: Settings, loop: Loop, groups: Groups | None) -> None:
        self._name, self._slots = name, Slots(state.component_dir(name))
        self._left = self._loads()
        self._first = next(self._left, None)
        if self._first is None:
            raise EdgeopsError("E-BUNDLE-DAMAGED", f"{name} has no whole bundle", "Enrol the device anew.")
        first = settings.http_port
        kept = state.read_component(name, self._slots).port
        ports = [first + index for index in range(64)] if first else [0 if kept is None else kept, 0]
        socket_path = (settings.socket_dir or state.sockets) / f"{name}.sock"
        self.serving = ModelServing(loop, self, ports, socket_path, settings.serving, groups)
        self._changed: Callable[[], None] = lambda: None

    def start(self, changed: Callable[[], None]) -> None:
        """Serve; `changed` is told when it does."""
        self._changed = changed
        if self._first is not None:
            self.serving.serve(self._first)

    def _loads(self) -> Iterator[Load]:
        """Give what can be served: what has proved itself first."""
        slots = self._slots
        names = (slots.fallback, slots.active) if slots.in_trial else (slots.active, slots.fallback)
        for name in names:
            if name is not None:
                try:
                    yield self._load(name)
                except EdgeopsError as error:
                    log.error("%s: slot %s: %s", self._name, name, error)

    def _load(self, name: SlotName) -> Load:
        slot, directory = self._slots.records[name].slot, self._slots.bundle_path(name)
        profile = registry.load(open_bundle(directory, expect_digest=slot.digest).manifest.profile)
        return Load(
            directory=str(directory),
            release=slot.release,
            digest=slot.digest,
            ram_mib=profile.memory.ram_mib,
            threads=profile.serving.threads,
            affinity=profile.serving.affinity,
            cache_dir=str(self._slots.engines_path(name)),
        )

    # `serving_words.ServingEvents`

    def serves(self) -> None:
        """It accepts connections."""
        self._changed()

    def damaged(self, error: EdgeopsError) -> None:
        """Its bytes are not whole any more: the other slot's serve, if they are."""
        log.error("%s is damaged: %s", self._name, error)
        following = next(self._left, None)
        if following is not None:
            self.serving.serve(following)

    def crashed(self, how: str) -> None:
        """Its worker died; it is started again."""

    def alive(self) -> None:
        """It gave a sign of life."""

    def counted(self, window: ModelWindow) -> None:
        """It served; there is nobody to tell."""

    def busy(self, for_s: float) -> None:
        """The application is busy: nothing changes anyway."""

    def drawn(self, id: str, sample: bytes) -> None:
        """No command is heard."""

    def building(self, for_s: float) -> None:
        """Its runtime builds an engine."""

    def arriving(self, share: float) -> None:
        """Nothing arrives."""

    def tested(self, figures: SelfTestFigures | None) -> None:
        """Nothing is tried out."""

    def test_failed(self, error: EdgeopsError) -> None:
        """Nothing is tried out."""
