"""Rollouts in the control plane's REST API, as plain structs: what is wished for, what it would do, where it stands.

A field that a newer server adds is ignored.
"""

from __future__ import annotations

from edgeops.contracts.rigs import RigResult
from edgeops.contracts.wire import Wire


class GatesInfo(Wire, frozen=True, kw_only=True):
    """The gates of every group of a rollout."""

    success_min: float = 1.0
    failure_max: float = 0.0
    rejected_max: float | None = None
    timed_out_max: float | None = None
    held_max: float | None = None
    min_count: int = 1
    timeout_s: float = 3600.0
    error_rate_max: float | None = None
    error_rate_increase_max: float | None = None
    latency_p95_ms_max: float | None = None
    latency_p95_ratio_max: float | None = None
    drift_max: float | None = None
    temperature_c_max: float | None = None
    agreement_min: float | None = None
    false_alarm: float = 0.01


class Rate(Wire, frozen=True, kw_only=True):
    """A ramp instead of groups: devices a minute, growing by a factor after each minute that passed."""

    per_minute: int
    factor: float = 1.0


class Shadow(Wire, frozen=True, kw_only=True):
    """The release first runs beside what serves: which share of the requests it sees, at how much of a processor."""

    share: float = 0.1
    cpu: float = 0.25


class Schedule(Wire, frozen=True, kw_only=True):
    """When groups of a rollout may start: from a time on, and in a daily window of wall time."""

    not_before_s: float | None = None
    window: str = ""
    days: tuple[str, ...] = ()
    time_zone: str = "UTC"


class RolloutWish(Wire, frozen=True, kw_only=True):
    """What a rollout should be; see the reference of rollouts.

    Args:
        model: The model.
        version: A published release of it.
        groups: Each `30%`, `5` or `rest`; empty: all at once, or by `rate`.
        rate: A ramp instead of groups.
        bake_s: How long a group serves before it can pass.
        schedule: When groups may start.
        retries: How often a device that failed gets it again.
        on_failure: `stop`, `pause` or `revert`.
        control: The first group's control arm, `5%` or `20` devices that keep what they have meanwhile; empty: none.
        gates: The gates of every group.
        devices: Names; empty: all that the release has a bundle for.
        profiles: Only these; empty: all.
        labels: Only devices with all of these.
        where: Only devices that this query finds.
        group: Only devices of this group.
        approval: It starts only after somebody else has approved it.
        override_holds: Devices do not wait for maintenance window, application, temperature and the like.
        shadow: Each group runs it beside what serves first; None: it serves at once.
        rigs: No device gets it before each of these rigs has passed it.
        rig_timeout_s: How long a rig has for its verdict.
        rig_gone_s: How long a rig that is asked may be away.
        start: Start it at once.
    """

    model: str
    version: str
    groups: tuple[str, ...] = ()
    rate: Rate | None = None
    bake_s: float = 0.0
    schedule: Schedule = Schedule()
    retries: int = 0
    on_failure: str = "stop"
    control: str = ""
    gates: GatesInfo = GatesInfo()
    devices: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    where: str = ""
    group: str | None = None
    approval: bool = False
    override_holds: bool = False
    shadow: Shadow | None = None
    rigs: tuple[str, ...] = ()
    rig_timeout_s: float = 3600.0
    rig_gone_s: float = 300.0
    start: bool = False


class PlannedGroup(Wire, frozen=True, kw_only=True):
    """A group as it would be: profile → devices, and the bytes that they fetch at most."""

    label: str
    devices: dict[str, int]
    bytes: int


class RolloutPlan(Wire, frozen=True, kw_only=True):
    """What a rollout would do. `typical_s`: the median time that devices needed so far; None: there were none."""

    model: str
    version: str
    groups: tuple[PlannedGroup, ...]
    devices: int
    control: int = 0
    online: int
    bytes: int
    first_start_s: float
    least_s: float
    typical_s: float | None
    rigs: dict[str, tuple[str, ...]] = {}
    uncovered_profiles: tuple[str, ...] = ()


class CountsInfo(Wire, frozen=True, kw_only=True):
    """Devices of one profile in one group, by how they stand."""

    confirmed: int
    failed: int
    rejected: int
    timed_out: int
    running: int
    held: int
    silent: int
    retriable: int = 0
    shadowing: int = 0
    codes: dict[str, int]


class GroupInfo(Wire, frozen=True, kw_only=True):
    """One group of a rollout."""

    label: str
    started_at_s: float | None
    deadline_s: float | None
    finished_at_s: float | None
    profiles: dict[str, CountsInfo]
    promoted_at_s: float | None = None


class FigureInfo(Wire, frozen=True, kw_only=True):
    """A gate as it was evaluated last; `holds` None: not yet to be said."""

    group: str
    profile: str
    gate: str
    value: float | None
    limit: float
    reported: int
    holds: bool | None
    lower: float | None = None
    upper: float | None = None


class RolloutRigInfo(Wire, frozen=True, kw_only=True):
    """A rig of group 0, and where its newest run for the rollout stands."""

    rig: str
    online: bool
    state: str
    said: str
    profiles: tuple[str, ...]
    attempt: int
    id: str | None
    asked_at_s: float | None
    deadline_s: float | None
    answered_at_s: float | None


class RigRunInfo(Wire, frozen=True, kw_only=True):
    """What a rig was asked for a rollout, and its answer: `statement` as the rig's own key signed it."""

    id: str
    rig: str
    attempt: int
    profiles: tuple[str, ...]
    asked_at_s: float
    expires_at_s: float
    sent_at_s: float | None
    given_up_at_s: float | None
    answered_at_s: float | None
    verdict: str
    said: str
    result: RigResult | None
    statement: str | None
    envelope: str | None
    certificate_pem: str | None


class RolloutInfo(Wire, frozen=True, kw_only=True):
    """A rollout, where it stands and why."""

    id: int
    model: str
    version: str
    state: str
    reason: str
    gates: GatesInfo | None
    rigs: tuple[RolloutRigInfo, ...] = ()
    uncovered_profiles: tuple[str, ...] = ()
    groups: tuple[GroupInfo, ...]
    figures: tuple[FigureInfo, ...]
    stopped_profiles: dict[str, str]
    created_at_s: float
    created_by: str
    on_failure: str = "stop"
    approval: bool = False
    approved_by: str | None = None
    started_at_s: float | None
    ended_at_s: float | None


class MemberInfo(Wire, frozen=True, kw_only=True):
    """One unit in a rollout."""

    connection: str
    unit: str
    group: str
    profile: str
    generation: int | None
    state: str
    code: str | None
    detail: str
    changed_at_s: float | None
    arm: str = ""
