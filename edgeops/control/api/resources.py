"""The REST resources. Statements of devices and releases cross as contract types, with their own schemas."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from edgeops.contracts.rig_runs import MAX_VALID_S as MAX_RIG_S
from edgeops.contracts.samples import MAX_SAMPLES, MAX_SAMPLES_BYTES, MAX_SAMPLES_S
from edgeops.contracts.samples import MAX_VALID_S as MAX_VALID_SAMPLES_S
from edgeops.control.commands import VALID_S as SAMPLES_VALID_S
from edgeops.control.rollout.policy import MAX_GROUPS, MAX_RETRIES, MAX_RIGS

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
UNIT_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}(/[a-z0-9][a-z0-9._-]{0,62})?$"
Name = Annotated[str, Field(pattern=NAME)]
UnitName = Annotated[str, Field(pattern=UNIT_NAME)]
Labels = Annotated[dict[str, str], Field(max_length=32)]


def contract(name: str) -> Any:
    """Return the type of a field that holds a contract type, by the name of its schema."""
    return Annotated[dict[str, Any], WithJsonSchema({"$ref": f"#/components/schemas/{name}"})]


class Request(BaseModel):
    """What a client sends: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class FailureResource(BaseModel):
    """Why something failed or was refused."""

    code: str
    what: str
    release: str
    at_s: float


class SelfTestResource(BaseModel):
    """What the self-test measured on the device, with the golden vectors of the bundle."""

    vectors: int
    max_abs_diff: float
    min_cosine: float
    load_ms: float
    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_mib: float
    provider: str


class ComponentResource(BaseModel):
    """One component of a unit: what it should run, what it runs, and how that goes."""

    name: str
    kind: str
    desired_release: str | None
    active_release: str | None
    state: str
    failure: FailureResource | None
    requests: int
    errors: int
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    endpoint: str | None
    self_test: SelfTestResource | None


class UnitResource(BaseModel):
    """One unit of a device. `published`: the broker has its desired state. `labels` are those beside the device's."""

    unit: str
    profile: str
    labels: dict[str, str]
    attributes: dict[str, str]
    capabilities: dict[str, str]
    agent_version: str
    desired_generation: int
    observed_generation: int
    published: bool
    reported_at_s: float | None
    stale_s: float | None
    refused: FailureResource | None
    components: list[ComponentResource]


class DeviceResource(BaseModel):
    """A device and its units."""

    connection: str
    profile: str
    labels: dict[str, str]
    agent_version: str
    online: bool
    enrolled_at_s: float
    revoked_at_s: float | None
    certificate_until_s: float | None
    certificate_renewed_at_s: float | None
    cloned_since_s: float | None
    last_seen_s: float | None
    rejected_messages: int
    rejected_last: str
    units: list[UnitResource]


class Devices(BaseModel):
    """A page of devices by name; `next` is the cursor of the following page, null at the end."""

    items: list[DeviceResource]
    next: str | None


class LabelsRequest(Request):
    """Labels to set; null: the label goes. Those that are not named stay."""

    labels: Annotated[dict[str, str | None], Field(min_length=1, max_length=32)]


class PastComponent(BaseModel):
    """One component of a desired state of the past."""

    name: str
    kind: str
    release: str


class GenerationResource(BaseModel):
    """One desired state that a unit was given: since when and why, and how far each rollout's release got with it."""

    generation: int
    at_s: float
    cause: str
    components: list[PastComponent]
    outcomes: dict[str, str]


class UnitHistory(BaseModel):
    """A page of a unit's desired states, newest first; `next` is the cursor of the following page, null at the end."""

    items: list[GenerationResource]
    next: int | None


class ProgressResource(BaseModel):
    """One step of a component, as the device told it."""

    unit: str
    component: str
    generation: int
    step: int
    state: str
    release: str
    percent: float | None
    code: str | None
    detail: str
    device_at_s: float
    received_at_s: float


class DeviceDetail(DeviceResource):
    """A device with all it said: its newest report per unit, figures of itself by its own clock, and newest steps.

    `dropped_windows`: telemetry that it had to give up before it could tell it.
    """

    reported: dict[str, contract("Reported")]  # type: ignore[valid-type]
    figures: contract("DeviceWindow") | None = None  # type: ignore[valid-type]
    figures_at_s: float | None = None
    dropped_windows: int = 0
    progress: list[ProgressResource]


class SamplesRequest(Request):
    """A wish for raw inputs of a model: so many, so many bytes, for so long, whichever ends first."""

    model: Name
    count: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 16
    max_bytes: Annotated[int, Field(ge=1, le=MAX_SAMPLES_BYTES)] = 4 << 20
    within_s: Annotated[float, Field(gt=0, le=MAX_SAMPLES_S)] = 600.0
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    valid_s: Annotated[float, Field(gt=0, le=MAX_VALID_SAMPLES_S)] = SAMPLES_VALID_S


class SamplesResource(BaseModel):
    """A wish for raw inputs, and how far the device is with it: asked, accepted, done, refused or expired."""

    id: str
    model: str
    count: int
    max_bytes: int
    within_s: float
    share: float
    created_at_s: float
    created_by: str
    expires_at_s: float
    state: str
    code: str
    detail: str
    total_bytes: int
    answered_at_s: float | None


class SamplesList(BaseModel):
    """What a device was asked for, newest first."""

    items: list[SamplesResource]


class Releases(BaseModel):
    """The published releases."""

    items: list[contract("Release")]  # type: ignore[valid-type]


class GatesResource(Request):
    """The gates of every group; see the reference of rollouts."""

    success_min: Annotated[float, Field(ge=0, le=1)] = 1.0
    failure_max: Annotated[float, Field(ge=0, le=1)] = 0.0
    rejected_max: Annotated[float, Field(ge=0, le=1)] | None = None
    timed_out_max: Annotated[float, Field(ge=0, le=1)] | None = None
    held_max: Annotated[float, Field(ge=0, le=1)] | None = None
    min_count: Annotated[int, Field(ge=1)] = 1
    timeout_s: Annotated[float, Field(gt=0, le=366 * 86400)] = 3600.0
    error_rate_max: Annotated[float, Field(gt=0, le=1)] | None = None
    error_rate_increase_max: Annotated[float, Field(ge=0, le=1)] | None = None
    latency_p95_ms_max: Annotated[float, Field(gt=0, le=86_400_000)] | None = None
    latency_p95_ratio_max: Annotated[float, Field(gt=0, le=1000)] | None = None
    drift_max: Annotated[float, Field(gt=0, le=1)] | None = None
    temperature_c_max: Annotated[float, Field(gt=-90, le=250)] | None = None
    agreement_min: Annotated[float, Field(gt=0, lt=1)] | None = None
    false_alarm: Annotated[float, Field(gt=0, le=0.5)] = 0.01


class RateResource(Request):
    """A ramp instead of groups: devices a minute, growing by a factor after each minute that passed."""

    per_minute: Annotated[int, Field(ge=1)]
    factor: Annotated[float, Field(ge=1, le=100)] = 1.0


class ShadowResource(Request):
    """The release first runs beside what serves: which share of the requests it sees, at how much of a processor."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    cpu: Annotated[float, Field(gt=0, le=1)] = 0.25


class ScheduleResource(Request):
    """When groups may start: from a time on, and in a daily window of wall time."""

    not_before_s: float | None = None
    window: str = ""
    days: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] = []
    time_zone: str = "UTC"


class RolloutRequest(Request):
    """A wish for a rollout: release, groups, gates, devices (all that the release has a bundle for, if none named)."""

    model: Name
    version: str
    groups: Annotated[list[str], Field(max_length=MAX_GROUPS)] = []
    rate: RateResource | None = None
    bake_s: Annotated[float, Field(ge=0)] = 0.0
    schedule: ScheduleResource = ScheduleResource()
    retries: Annotated[int, Field(ge=0, le=MAX_RETRIES)] = 0
    on_failure: Literal["stop", "pause", "revert"] = "stop"
    control: Annotated[str, Field(max_length=16)] = ""
    gates: GatesResource = GatesResource()
    devices: Annotated[list[UnitName], Field(max_length=10_000)] = []
    profiles: Annotated[list[Name], Field(max_length=1000)] = []
    labels: Labels = {}
    where: Annotated[str, Field(max_length=2000)] = ""
    group: Name | None = None
    approval: bool = False
    override_holds: bool = False
    shadow: ShadowResource | None = None
    rigs: Annotated[list[Name], Field(max_length=MAX_RIGS)] = []
    rig_timeout_s: Annotated[float, Field(gt=0, le=MAX_RIG_S)] = 3600.0
    rig_gone_s: Annotated[float, Field(gt=0, le=MAX_RIG_S)] = 300.0
    start: bool = False


class ComparedResource(BaseModel):
    """How a release that ran as a shadow compares with what served: see `edgeops rollout create --shadow`."""

    compared: int
    agreed: int
    skipped: int
    errors: dict[str, int]
    distance: dict[str, float]
    latency_ms: dict[str, float]


class ShiftResource(BaseModel):
    """How far a tensor is from the bundle's reference; limits are null where there is nothing to tell by."""

    name: str
    psi: float
    psi_limit: float | None
    js: float
    js_limit: float | None
    alarms: bool


class TelemetryResource(BaseModel):
    """What devices said of a release, merged exactly. `start_s`: the span's; null: all of the time that was asked for.

    Quantiles of latency are within 1%. `histograms` are counts on the bins of the bundle's drift reference, of
    `sampled` requests; `drift` is their distance from it.
    """

    release: str
    profile: str
    start_s: int | None
    requests: int
    errors: dict[str, int]
    latency_ms: dict[str, float]
    temperature_max_c: float | None
    sampled: int
    histograms: dict[str, list[int]]
    drift: list[ShiftResource]
    shadow: ComparedResource | None


class TelemetryHistory(BaseModel):
    """Telemetry of a model by release, profile and time."""

    items: list[TelemetryResource]


class GroupRequest(Request):
    """A wish for a device group: by a query, or by names."""

    name: Name
    query: Annotated[str, Field(max_length=2000)] = ""
    devices: Annotated[list[UnitName], Field(max_length=10_000)] = []


class DeviceGroupResource(BaseModel):
    """A device group. `devices` are those who are in it now."""

    name: str
    query: str
    devices: list[str]
    created_at_s: float
    created_by: str


class DeviceGroups(BaseModel):
    """A page of device groups by name; `next` is the cursor of the following page, null at the end."""

    items: list[DeviceGroupResource]
    next: str | None


class PlannedGroupResource(BaseModel):
    """A group as it would be: how many devices of which profile, and how many bytes they would fetch at most."""

    label: str
    devices: dict[str, int]
    bytes: int


class RolloutPlan(BaseModel):
    """What a rollout would do. `typical_s`: median time that devices needed for this model so far; null: none did.

    `rigs`: the profiles that each rig runs it for first; `uncovered_profiles` of its devices no rig has a board of.
    """

    model: str
    version: str
    groups: list[PlannedGroupResource]
    devices: int
    control: int
    online: int
    bytes: int
    first_start_s: float
    least_s: float
    typical_s: float | None
    rigs: dict[str, list[str]]
    uncovered_profiles: list[str]


class CountsResource(BaseModel):
    """Devices of one profile in one group, by how they stand."""

    confirmed: int
    failed: int
    rejected: int
    timed_out: int
    running: int
    held: int
    silent: int
    retriable: int
    shadowing: int
    codes: dict[str, int]


class GroupResource(BaseModel):
    """One group of a rollout."""

    label: str
    started_at_s: float | None
    deadline_s: float | None
    promoted_at_s: float | None
    finished_at_s: float | None
    profiles: dict[str, CountsResource]


class FigureResource(BaseModel):
    """A gate as it was evaluated last; `holds` null: not yet to be said. `profile` empty: all profiles."""

    group: str
    profile: str
    gate: str
    value: float | None
    limit: float
    reported: int
    holds: bool | None
    lower: float | None = None
    upper: float | None = None


class RolloutRigResource(BaseModel):
    """A rig of group 0: where its newest run for the rollout stands.

    `state`: `unasked`, `waiting`, `passed`, `failed`, `broken` (it could not find out) or `refused` (it ran nothing).
    `said`: boards and checks behind that, or what it does now. `attempt`: how often it was asked.
    """

    rig: str
    online: bool
    state: Literal["unasked", "waiting", "passed", "failed", "broken", "refused"]
    said: str
    profiles: list[str]
    attempt: int
    id: str | None
    asked_at_s: float | None
    deadline_s: float | None
    answered_at_s: float | None


class RolloutResource(BaseModel):
    """A rollout, where it stands and why. `gates` null: they cannot be read; such a rollout stops.

    `uncovered_profiles` of its devices no rig has a board of: they get the release when the rigs have passed it for
    others.
    """

    id: int
    model: str
    version: str
    state: str
    reason: str
    gates: GatesResource | None
    rigs: list[RolloutRigResource]
    uncovered_profiles: list[str]
    groups: list[GroupResource]
    figures: list[FigureResource]
    stopped_profiles: dict[str, str]
    created_at_s: float
    created_by: str
    on_failure: str
    approval: bool
    approved_by: str | None
    started_at_s: float | None
    ended_at_s: float | None


class Rollouts(BaseModel):
    """A page of rollouts, newest first; `next` is the cursor of the following page, null at the end."""

    items: list[RolloutResource]
    next: int | None


class MemberResource(BaseModel):
    """One unit in a rollout; `generation` null: its group has not started. `arm`: `canary`, `control` or neither."""

    connection: str
    unit: str
    group: str
    profile: str
    generation: int | None
    state: str
    arm: str
    code: str | None
    detail: str
    changed_at_s: float | None


class Members(BaseModel):
    """A page of a rollout's members by name."""

    items: list[MemberResource]
    next: str | None


class FreezeRequest(Request):
    """Why the fleet is frozen."""

    reason: Annotated[str, Field(max_length=512)] = ""


class FreezeResource(BaseModel):
    """Since when the fleet is frozen, by whom and why."""

    since_s: float
    actor: str
    reason: str


class Fleet(BaseModel):
    """The fleet at a glance. `units` are devices and what is behind them, by profile. `frozen` null: rollouts go on."""

    fleet: str
    devices: int
    online: int
    units: int
    profiles: dict[str, int]
    frozen: FreezeResource | None


class AuditResource(BaseModel):
    """One line of the audit log."""

    id: int
    at_s: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


class AuditLog(BaseModel):
    """A page of the audit log, newest first; `next` is the cursor of the following page, null at the end."""

    items: list[AuditResource]
    next: int | None


class BrokerHealth(BaseModel):
    """The broker: its kind, and whether the control plane is connected."""

    kind: str
    connected: bool
    restarts: int


class Health(BaseModel):
    """Whether the control plane works."""

    status: str
    fleet: str
    version: str
    broker: BrokerHealth
    messages_accepted: int
    messages_refused: int
