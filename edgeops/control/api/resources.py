"""The REST resources of devices and the fleet, and what all resources share.

Statements of devices and releases cross as contract types, with their own schemas.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, WithJsonSchema

from edgeops.contracts.samples import MAX_SAMPLES, MAX_SAMPLES_BYTES, MAX_SAMPLES_S
from edgeops.contracts.samples import MAX_VALID_S as MAX_VALID_SAMPLES_S
from edgeops.control.api.request import Request
from edgeops.control.commands import VALID_S as SAMPLES_VALID_S

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
UNIT_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}(/[a-z0-9][a-z0-9._-]{0,62})?$"
Name = Annotated[str, Field(pattern=NAME)]
UnitName = Annotated[str, Field(pattern=UNIT_NAME)]
Labels = Annotated[dict[str, str], Field(max_length=32)]


def contract(name: str) -> Any:
    """Return the type of a field that holds a contract type, by the name of its schema."""
    return Annotated[dict[str, Any], WithJsonSchema({"$ref": f"#/components/schemas/{name}"})]


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
