"""What the deployments of an agent share, and who hears of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from edgeops.agent.cgroups import Groups
from edgeops.agent.fetching import Fetcher
from edgeops.agent.holds import Conditions
from edgeops.agent.loop import Loop
from edgeops.agent.self_update import AgentLife
from edgeops.agent.serving_words import ComponentServing, ServingEvents
from edgeops.agent.settings import Settings
from edgeops.agent.store import StateDirectory
from edgeops.contracts.profile import Serving
from edgeops.contracts.telemetry import ModelWindow

if TYPE_CHECKING:
    from edgeops.agent.deployment import Deployment


class DeploymentObserver(Protocol):
    """Who hears how a component fares."""

    def changed(self, deployment: Deployment) -> None:
        """Its report differs from before."""

    def stepped(self, deployment: Deployment, percent: float | None, doing: str = "") -> None:
        """It came a step further, or says what takes it so long."""

    def counted(self, window: ModelWindow) -> None:
        """It served."""

    def busy(self, for_s: float) -> None:
        """The application does not want to be disturbed for so long; 0: it may be."""

    def drawn(self, id: str, sample: bytes) -> None:
        """A request was drawn for a command; empty: the next one is too large for its bounds."""

    def confirmed(self, name: str, number: int) -> None:
        """A release of this number has proved itself."""

    def settled(self) -> None:
        """A deployment ended."""


class House(NamedTuple):
    """What every deployment of an agent works with.

    Args:
        loop: The supervisor's loop.
        state: The state directory.
        settings: The agent's settings.
        serving: How models run on this class of device.
        ram_mib: Its memory.
        connection: This device's identity.
        fetcher: Fetches bundles.
        now: The time rule, seconds.
        observer: Who hears of everything.
        conditions: What the device is like now.
        life: The agent itself, where it may be a component.
        groups: Where workers get control groups; None: nowhere.
        make_serving: Makes what serves a component of this name, and tells the deployment; None: workers here.
    """

    loop: Loop
    state: StateDirectory
    settings: Settings
    serving: Serving
    ram_mib: float
    connection: str
    fetcher: Fetcher
    now: Callable[[], float]
    observer: DeploymentObserver
    conditions: Callable[[], Conditions]
    life: AgentLife | None = None
    groups: Groups | None = None
    make_serving: Callable[[ServingEvents, str], ComponentServing] | None = None
