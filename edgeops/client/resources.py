"""What the control plane's REST API answers, as plain structs: all but rollouts.

A field that a newer server adds is ignored.
"""

from __future__ import annotations

from typing import Any

from edgeops.contracts.access import Role
from edgeops.contracts.measurement import Measurements
from edgeops.contracts.telemetry import DeviceWindow
from edgeops.contracts.wire import Wire


class TokenCreated(Wire, frozen=True, kw_only=True):
    """A new enrolment token; its text is shown once."""

    id: str
    token: str
    expires_at_s: float


class Token(Wire, frozen=True, kw_only=True):
    """A token that was made earlier."""

    id: str
    profile: str | None
    name: str | None
    labels: dict[str, str]
    created_at_s: float
    created_by: str
    expires_at_s: float
    used_at_s: float | None
    used_by: str | None
    kind: str = "device"


class ApiTokenCreated(Wire, frozen=True, kw_only=True):
    """A new API token; its text is shown once."""

    id: str
    token: str
    expires_at_s: float


class ApiTokenInfo(Wire, frozen=True, kw_only=True):
    """An API token that was made earlier."""

    id: str
    name: str
    role: Role
    created_at_s: float
    created_by: str
    expires_at_s: float
    revoked_at_s: float | None
    used_at_s: float | None


class DeviceGroup(Wire, frozen=True, kw_only=True):
    """A device group; `devices` are those who are in it now."""

    name: str
    query: str
    devices: tuple[str, ...]
    created_at_s: float
    created_by: str


class DeviceGroups(Wire, frozen=True, kw_only=True):
    """Device groups by name."""

    items: tuple[DeviceGroup, ...]


class ApiTokens(Wire, frozen=True, kw_only=True):
    """API tokens by name."""

    items: tuple[ApiTokenInfo, ...]


class FailureInfo(Wire, frozen=True, kw_only=True):
    """Why something failed or was refused."""

    code: str
    what: str
    release: str
    at_s: float


class SelfTestInfo(Wire, frozen=True, kw_only=True):
    """What the self-test measured on the device, with the golden vectors of the bundle."""

    vectors: int
    max_abs_diff: float
    min_cosine: float
    load_ms: float
    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_mib: float
    provider: str


class ComponentInfo(Wire, frozen=True, kw_only=True):
    """One component of a unit; requests, errors and latency are those of the active release."""

    name: str
    kind: str
    desired_release: str | None
    active_release: str | None
    state: str
    failure: FailureInfo | None
    requests: int
    errors: int
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    endpoint: str | None
    self_test: SelfTestInfo | None = None


class UnitInfo(Wire, frozen=True, kw_only=True):
    """One unit of a device: `self`, or behind it. `labels` are those beside the device's."""

    unit: str
    profile: str = ""
    labels: dict[str, str] = {}
    attributes: dict[str, str] = {}
    capabilities: dict[str, str] = {}
    agent_version: str = ""
    desired_generation: int
    observed_generation: int
    published: bool
    reported_at_s: float | None
    stale_s: float | None
    refused: FailureInfo | None
    components: tuple[ComponentInfo, ...]


class DeviceInfo(Wire, frozen=True, kw_only=True):
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
    units: tuple[UnitInfo, ...]


class PastComponent(Wire, frozen=True, kw_only=True):
    """One component of a desired state of the past."""

    name: str
    kind: str
    release: str


class PastInfo(Wire, frozen=True, kw_only=True):
    """One desired state that a unit was given; `outcomes`: how far the release of each rollout got with it."""

    generation: int
    at_s: float
    cause: str
    components: tuple[PastComponent, ...]
    outcomes: dict[str, str]


class ProgressInfo(Wire, frozen=True, kw_only=True):
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


class DeviceDetail(DeviceInfo, frozen=True, kw_only=True):
    """A device with its newest reports (by unit, as JSON values), figures of itself, and steps (newest first)."""

    reported: dict[str, dict[str, object]]
    figures: DeviceWindow | None = None
    figures_at_s: float | None = None
    dropped_windows: int = 0
    progress: tuple[ProgressInfo, ...]


class SamplesInfo(Wire, frozen=True, kw_only=True):
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


class ComparedInfo(Wire, frozen=True, kw_only=True):
    """How a release that ran as a shadow compares with what served; distance and latency by p50, p95, p99 and max."""

    compared: int
    agreed: int
    skipped: int
    errors: dict[str, int]
    distance: dict[str, float]
    latency_ms: dict[str, float]


class ShiftInfo(Wire, frozen=True, kw_only=True):
    """How far a tensor is from the bundle's reference; limits are None where there is nothing to tell by."""

    name: str
    psi: float
    psi_limit: float | None
    js: float
    js_limit: float | None
    alarms: bool


class TelemetryInfo(Wire, frozen=True, kw_only=True):
    """What devices said of a release: one sum, or one span of it; latency in ms by p50, p95, p99 and max."""

    release: str
    profile: str
    start_s: int | None
    requests: int
    errors: dict[str, int]
    latency_ms: dict[str, float]
    temperature_max_c: float | None
    histograms: dict[str, tuple[int, ...]]
    sampled: int = 0
    drift: tuple[ShiftInfo, ...] = ()
    shadow: ComparedInfo | None = None


class RigBoardInfo(Wire, frozen=True, kw_only=True):
    """A board of a rig."""

    name: str
    kind: str
    profile: str


class RigInfo(Wire, frozen=True, kw_only=True):
    """A rig that is enrolled; `trusted`: the fleet has its key."""

    rig: str
    online: bool
    trusted: bool
    enrolled_at_s: float
    revoked_at_s: float | None
    last_seen_s: float | None
    version: str
    boards: tuple[RigBoardInfo, ...]
    doing: str
    rejected_messages: int
    rejected_last: str


class FreezeInfo(Wire, frozen=True, kw_only=True):
    """Since when the fleet is frozen, by whom and why."""

    since_s: float
    actor: str
    reason: str


class FleetInfo(Wire, frozen=True, kw_only=True):
    """The fleet at a glance; `units`: devices and what is behind them; `frozen` None: rollouts go on."""

    fleet: str
    devices: int
    online: int
    units: int = 0
    profiles: dict[str, int]
    frozen: FreezeInfo | None


class AuditInfo(Wire, frozen=True, kw_only=True):
    """One line of the audit log."""

    id: int
    at_s: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


class MeasurementInfo(Wire, frozen=True, kw_only=True):
    """What a device was asked to measure, and what it answered.

    `state` is waiting, measured, refused or expired; `envelope` is the answer as the device signed it,
    `certificate_pem` vouches for its key.
    """

    id: str
    device: str
    state: str
    created_at_s: float
    created_by: str
    expires_at_s: float
    answered_at_s: float | None = None
    code: str = ""
    what: str = ""
    measurements: Measurements | None = None
    envelope: str | None = None
    certificate_pem: str | None = None


class BrokerInfo(Wire, frozen=True, kw_only=True):
    """The broker as the control plane sees it."""

    kind: str
    connected: bool
    restarts: int


class HealthInfo(Wire, frozen=True, kw_only=True):
    """Whether the control plane works."""

    status: str
    fleet: str
    version: str
    broker: BrokerInfo
    messages_accepted: int
    messages_refused: int


class Problem(Wire, frozen=True, kw_only=True):
    """An error's answer (RFC 9457) with its stable code."""

    status: int
    detail: str
    code: str
    next_step: str = ""
