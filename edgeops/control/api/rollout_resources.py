"""The REST resources of rollouts: what is wished for, what it would do, where it stands and why."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from edgeops.contracts.rig_runs import MAX_VALID_S as MAX_RIG_S
from edgeops.control.api.request import Request
from edgeops.control.api.resources import Labels, Name, UnitName
from edgeops.control.rollout.policy import MAX_GROUPS, MAX_PER_MINUTE, MAX_RETRIES, MAX_RIGS
from edgeops.control.rollout.schedule import LATEST_S


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

    per_minute: Annotated[int, Field(ge=1, le=MAX_PER_MINUTE)]
    factor: Annotated[float, Field(ge=1, le=100)] = 1.0


class ShadowResource(Request):
    """The release first runs beside what serves: which share of the requests it sees, at how much of a processor."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    cpu: Annotated[float, Field(gt=0, le=1)] = 0.25


class ScheduleResource(Request):
    """When groups may start: from a time on, and in a daily window of wall time."""

    not_before_s: Annotated[float, Field(ge=0, le=LATEST_S)] | None = None
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
