"""Desired, reported and progress: what a device should run, what it says it runs, and the way between."""

from __future__ import annotations

import msgspec

from edgeops.contracts.evidence import Latency
from edgeops.contracts.wire import Wire, WireEnum

# What an agent says in `Reported.features` if it knows `Component.shadow`.
SHADOW_FEATURE = "shadow"
# And if it measures what a signed command names: `contracts.measurement.MeasureCommand`.
MEASURE_FEATURE = "measure"

# DSSE payload types: a signature over one kind of statement is never valid for another.
DESIRED_TYPE = "application/vnd.edgeops.desired+json"
REPORTED_TYPE = "application/vnd.edgeops.reported+json"
PROGRESS_TYPE = "application/vnd.edgeops.progress+json"
TELEMETRY_TYPE = "application/vnd.edgeops.telemetry+json"
TELEMETRY_BATCH_TYPE = "application/vnd.edgeops.telemetry-batch+json"
RENEWAL_TYPE = "application/vnd.edgeops.renewal+json"
EVIDENCE_TYPE = "application/vnd.edgeops.evidence+json"
MEASURE_TYPE = "application/vnd.edgeops.measure+json"
MEASUREMENT_TYPE = "application/vnd.edgeops.measurement+json"


class ComponentKind(WireEnum):
    """What a component is."""

    MODEL = "model"
    AGENT = "agent"
    FIRMWARE = "firmware"
    UNKNOWN = "unknown"


# The one component of kind agent; no model may have this name.
AGENT_COMPONENT = "edgeops-agent"
# Components of one unit, and characters of a release: what fits into a report.
MAX_COMPONENTS = 64
MAX_RELEASE_CHARACTERS = 128


def kind_of(name: str) -> ComponentKind:
    """Return what a released component of this name is."""
    return ComponentKind.AGENT if name == AGENT_COMPONENT else ComponentKind.MODEL


class DeploymentState(WireEnum):
    """Where a component of a device stands on its way to the desired release."""

    IDLE = "idle"
    HELD = "held"
    DOWNLOADING = "downloading"
    STAGED = "staged"
    SELF_TEST = "self-test"
    SHADOW = "shadow"
    TRIAL = "trial"
    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    ROLLING_BACK = "rolling-back"
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    UNKNOWN = "unknown"


TERMINAL_STATES = frozenset(
    {
        DeploymentState.CONFIRMED,
        DeploymentState.REJECTED,
        DeploymentState.FAILED,
        DeploymentState.TIMED_OUT,
    }
)


class Shadowing(Wire, frozen=True, kw_only=True):
    """A component that is to run beside what serves, and to answer nobody, until it is wanted without this.

    Args:
        share: Share of the live requests that it sees, in (0, 1].
        cpu: How much of one processor it may take for them, in (0, 1].
    """

    share: float
    cpu: float


class Component(Wire, frozen=True, kw_only=True):
    """One thing a unit should hold.

    Args:
        name: The component's name: the model's name for models.
        kind: What it is.
        release: Version.
        target: TUF target path.
        digest: Digest of the bundle.
        allow_downgrade: The release may be older than what the device accepted before.
        set_name: Components of one desired state with the same set name switch together or not at all, and return
            together; empty: it goes its own way.
        shadow: It is only to run beside what serves; None: it is to serve. A component of a set serves at once.
    """

    name: str
    kind: ComponentKind
    release: str
    target: str
    digest: str
    allow_downgrade: bool = False
    set_name: str = ""
    shadow: Shadowing | None = None


class Desired(Wire, frozen=True, kw_only=True):
    """What one unit of one connection should run. Order is by `generation`, never by a clock.

    Args:
        fleet: The fleet.
        connection: MQTT identity that this is meant for, and no other.
        unit: `self` or a child.
        generation: Grows with each change.
        issued_at_s: Control plane's clock.
        expires_at_s: After this the statement changes nothing.
        components: All components that the unit should hold.
        override_holds: Do not wait for the device's maintenance window, application, temperature and the like.
        renew_issued_before_s: A device whose certificate was issued before this renews it now; None: when it is due.
    """

    fleet: str
    connection: str
    unit: str
    generation: int
    issued_at_s: float
    expires_at_s: float
    components: tuple[Component, ...]
    override_holds: bool = False
    renew_issued_before_s: float | None = None
    schema_version: int = msgspec.field(default=1, name="schema")


class Slot(Wire, frozen=True, kw_only=True, omit_defaults=True):
    """A bundle in a slot: release, digest and the release's number.

    `trailer` is there for a microcontroller's model, in base64: what makes its blob installable. It is not reported.
    """

    release: str
    digest: str
    number: int
    trailer: str = ""

    def public(self) -> Slot:
        """Return what is told of it."""
        return msgspec.structs.replace(self, trailer="")


class Failure(Wire, frozen=True, kw_only=True):
    """Why a component failed or was rejected: a stable code and what happened; `release` is what was refused."""

    code: str
    what: str
    release: str
    at_s: float


class SelfTestFigures(Wire, frozen=True, kw_only=True):
    """What the self-test measured on this device.

    Args:
        vectors: Golden vectors replayed.
        worst_output: Output with the largest share of its tolerance used.
        max_abs_diff: Largest difference from the artifact's golden outputs.
        min_cosine: Smallest mean cosine to the float source.
        load_ms: Time to load the artifact.
        latency: Latency of one inference.
        peak_memory_mib: Peak resident memory of the worker.
        provider: Execution provider that really runs it, with the reason where it is not the first choice.
    """

    vectors: int
    worst_output: str
    max_abs_diff: float
    min_cosine: float
    load_ms: float
    latency: Latency
    peak_memory_mib: float
    provider: str


class ComponentReport(Wire, frozen=True, kw_only=True):
    """How one component stands on the device."""

    name: str
    kind: ComponentKind
    state: DeploymentState
    generation: int
    active: Slot | None = None
    fallback: Slot | None = None
    failure: Failure | None = None
    self_test: SelfTestFigures | None = None
    held_reason: str | None = None
    held_until_s: float | None = None
    endpoint: str | None = None


class Reported(Wire, frozen=True, kw_only=True):
    """What a unit says of itself, signed by the device's key.

    Args:
        boot_id: Random at each start of the agent.
        seq: Grows within a boot.
        observed_generation: Newest generation that was accepted; a control plane restored from a backup takes its
            floor from here.
        at_s: Device time by the time rule; for people, never for order.
        capabilities: Runtimes present: name → version.
        stale_s: Seconds since trusted metadata was last fresh; None: fresh.
        features: What this agent knows that older ones do not.
        attributes: What the machine is: operating system, kernel, processor, memory and the like, for people and for
            queries; no secret, and nothing that changes from hour to hour.
    """

    fleet: str
    connection: str
    unit: str
    boot_id: str
    seq: int
    at_s: float
    agent_version: str
    profile: str
    observed_generation: int
    components: tuple[ComponentReport, ...]
    capabilities: dict[str, str] = {}
    stale_s: float | None = None
    refused: Failure | None = None
    features: tuple[str, ...] = ()
    attributes: dict[str, str] = {}
    schema_version: int = msgspec.field(default=1, name="schema")


class Progress(Wire, frozen=True, kw_only=True):
    """One step of one component towards a generation. `step` is monotonic per generation and component."""

    fleet: str
    connection: str
    unit: str
    boot_id: str
    seq: int
    at_s: float
    component: str
    generation: int
    step: int
    state: DeploymentState
    release: str
    percent: float | None = None
    code: str | None = None
    detail: str = ""
    schema_version: int = msgspec.field(default=1, name="schema")


class Presence(Wire, frozen=True, kw_only=True):
    """Online or gone; the last will says gone."""

    online: bool
    boot_id: str
    schema_version: int = msgspec.field(default=1, name="schema")
