"""What a component's deployment and what serves it say to each other."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edgeops.agent.channel import Load
from edgeops.contracts.deployment import SelfTestFigures, Shadowing
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.telemetry import ModelWindow


class ServingEvents(Protocol):
    """Who hears of it."""

    def building(self, for_s: float) -> None:
        """A worker's runtime builds an engine for this device, for so long by now."""

    def arriving(self, share: float) -> None:
        """So much of the candidate, 0 to 1, has come to the microcontroller that is to run it."""

    def tested(self, figures: SelfTestFigures | None) -> None:
        """The candidate passed its self-test."""

    def test_failed(self, error: EdgeopsError) -> None:
        """The candidate did not load, did not pass, or died."""

    def serves(self) -> None:
        """The current bundle accepts connections."""

    def damaged(self, error: EdgeopsError) -> None:
        """The current bundle is not whole any more."""

    def crashed(self, how: str) -> None:
        """The current worker died; it is started again after a wait."""

    def alive(self) -> None:
        """The current worker gave a sign of life."""

    def counted(self, window: ModelWindow) -> None:
        """A worker tells what it served."""

    def busy(self, for_s: float) -> None:
        """The application told a worker that it does not want to be disturbed for so long."""

    def drawn(self, id: str, sample: bytes) -> None:
        """A worker drew a request for a command; empty: the next one is too large for the command's bounds."""


class ComponentServing(Protocol):
    """What serves a component: workers, the agent's own life, or a microcontroller."""

    @property
    def port(self) -> int | None:
        """Port of its endpoint; None: it has none."""

    @property
    def endpoint(self) -> str:
        """The local address for clients; empty: it has none."""

    @property
    def socket_path(self) -> Path:
        """Where it listens for frames."""

    @property
    def is_serving(self) -> bool:
        """Whether what should serve does."""

    @property
    def is_alone(self) -> bool:
        """Whether nobody answers but what should."""

    @property
    def has_tested_candidate(self) -> bool:
        """Whether `promote` can be called."""

    @property
    def ended(self) -> bool:
        """Whether nothing is left to wait for."""

    def serve(self, load: Load, *, alone: bool = False, on_trial: bool = False) -> None:
        """Let a bundle serve that proved itself before, or is `on_trial`; with `alone` there is no room for two."""

    def try_out(self, load: Load, *, alone: bool = False) -> None:
        """Load and self-test a candidate; with `alone` there is no room for two."""

    def shadow(self, wish: Shadowing) -> None:
        """Let the tested candidate run beside what serves."""

    def promote(self) -> None:
        """Let the tested candidate serve."""

    def keep(self) -> bool:
        """Keep what serves, which has proved itself; say whether it is kept. Until it is, this is to be asked again."""

    def drop_candidate(self) -> None:
        """Give up the candidate."""

    def stop(self) -> None:
        """Serve no more."""

    def close(self) -> None:
        """Give everything back."""

    def kill_all(self) -> None:
        """End at once what is left."""

    def probe(self, *, infer: bool) -> None:
        """Ask for a sign of life."""
