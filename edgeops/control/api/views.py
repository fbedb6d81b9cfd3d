"""Rows of the registry as REST resources."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from edgeops.contracts.deployment import Component, ComponentReport, Failure, Reported, SelfTestFigures
from edgeops.contracts.enrolment import ConnectionKind
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.release import Release
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.topics import SELF_UNIT
from edgeops.control.api import access_resources, resources, rollout_resources
from edgeops.control.api.rigs import rollout_rigs
from edgeops.control.assignment import components_in, components_of
from edgeops.control.groups import manage as groups
from edgeops.control.models import (
    ApiToken,
    AuditEntry,
    Device,
    DeviceGroup,
    EnrolmentTokenRow,
    Generation,
    ProgressEvent,
    Rollout,
    RolloutGroup,
    RolloutMember,
    RolloutProfile,
    Unit,
)
from edgeops.control.renewal import certificate_until_s
from edgeops.control.rollout.execute import read_view
from edgeops.control.rollout.freeze import frozen
from edgeops.control.rollout.plan import plan, uncovered
from edgeops.control.rollout.policy import Policy, read_policy
from edgeops.control.rollout.selection import Selection
from edgeops.control.telemetry_models import TelemetryTotal
from edgeops.control.units import Subject, split_name

PROGRESS_SHOWN = 50
_REPORTED = msgspec.json.Decoder(Reported)
_SKETCH = msgspec.json.Decoder(QuantileSketch)
_Totals = dict[tuple[str, str, str, str], TelemetryTotal]


def device_page(
    session: Session, *, after: str, limit: int, profile: str | None, online: bool | None, where: str, now_s: float
) -> resources.Devices:
    """Return the devices after a name, in order of names. `where` has to find the device, or a unit behind it.

    Raises:
        EdgeopsError: E-QUERY; `where` cannot be read.
    """
    query = select(Device).where(Device.connection > after, Device.kind == ConnectionKind.DEVICE)
    query = query.order_by(Device.connection).limit(limit + 1)
    if profile is not None:
        query = query.where(Device.profile == profile)
    if online is not None:
        query = query.where(Device.online.is_(online))
    if where:
        rows = session.execute(
            query.limit(None).join(Unit, Unit.connection == Device.connection).add_columns(Unit)
        ).all()
        subjects = [Subject(device, unit) for device, unit in rows]
        names = {split_name(name)[0] for name in groups.found(subjects, where, now_s)}
        everyone = {one.device.connection: one.device for one in subjects}
        found: Sequence[Device] = [device for name, device in everyone.items() if name in names]
    else:
        found = session.scalars(query).all()
    devices = found[:limit]
    return resources.Devices(
        items=_devices(session, devices), next=devices[-1].connection if len(found) > limit else None
    )


def device_detail(session: Session, connection: str) -> resources.DeviceDetail:
    """Return one device with its newest reports and steps.

    Raises:
        EdgeopsError: E-DEVICE-UNKNOWN.
    """
    device = session.get(Device, connection)
    if device is None:
        raise EdgeopsError("E-DEVICE-UNKNOWN", f"there is no device {connection[:80]!r}", "See `edgeops device list`.")
    units = session.scalars(select(Unit).where(Unit.connection == connection)).all()
    events = session.scalars(
        select(ProgressEvent)
        .where(ProgressEvent.connection == connection)
        .order_by(ProgressEvent.received_at_s.desc(), ProgressEvent.seq.desc())
        .limit(PROGRESS_SHOWN)
    )
    (summary,) = _devices(session, [device])
    return resources.DeviceDetail(
        **dict(summary),
        reported={unit.unit: msgspec.json.decode(unit.reported) for unit in units if unit.reported is not None},
        figures=None if device.figures is None else msgspec.json.decode(device.figures),
        figures_at_s=device.figures_at_s,
        dropped_windows=device.dropped_windows,
        progress=[_copy(resources.ProgressResource, event) for event in events],
    )


def history_page(session: Session, connection: str, unit: str, *, before: int, limit: int) -> resources.UnitHistory:
    """Return what a unit was to run before a generation, newest first.

    Raises:
        EdgeopsError: E-DEVICE-UNKNOWN.
    """
    if session.get(Unit, (connection, unit)) is None:
        raise EdgeopsError("E-DEVICE-UNKNOWN", f"there is no unit {unit[:63]!r} of {connection[:63]!r}")
    mine = (Generation.connection == connection, Generation.unit == unit)
    found = session.scalars(
        select(Generation)
        .where(*mine, Generation.generation < before)
        .order_by(Generation.generation.desc())
        .limit(limit + 1)
    ).all()
    page = found[:limit]
    members = session.scalars(
        select(RolloutMember).where(
            RolloutMember.connection == connection,
            RolloutMember.unit == unit,
            RolloutMember.generation.in_([row.generation for row in page]),
        )
    )
    outcomes: dict[int | None, dict[str, str]] = {}
    for member in members:
        said = member.state if member.code is None else f"{member.state} {member.code}"
        outcomes.setdefault(member.generation, {})[f"rollout {member.rollout_id}"] = said
    items = [
        resources.GenerationResource(
            generation=row.generation,
            at_s=row.created_at_s,
            cause=row.cause,
            components=[
                resources.PastComponent(name=part.name, kind=str(part.kind), release=part.release)
                for part in components_in(row.components)
            ],
            outcomes=outcomes.get(row.generation, {}),
        )
        for row in page
    ]
    return resources.UnitHistory(items=items, next=items[-1].generation if len(found) > limit else None)


def tokens(session: Session, *, after: str, limit: int) -> access_resources.Tokens:
    """Return the enrolment tokens after an id."""
    row = EnrolmentTokenRow
    found = session.scalars(select(row).where(row.id > after).order_by(row.id).limit(limit + 1)).all()
    items = [_copy(access_resources.Token, one) for one in found[:limit]]
    return access_resources.Tokens(items=items, next=items[-1].id if len(found) > limit else None)


def api_tokens(session: Session, *, after: str, limit: int) -> access_resources.ApiTokens:
    """Return the API tokens after a name."""
    row = ApiToken
    found = session.scalars(select(row).where(row.name > after).order_by(row.name).limit(limit + 1)).all()
    items = [_copy(access_resources.ApiTokenResource, one) for one in found[:limit]]
    return access_resources.ApiTokens(items=items, next=items[-1].name if len(found) > limit else None)


def device_groups(session: Session, now_s: float, *, after: str, limit: int) -> resources.DeviceGroups:
    """Return the groups after a name, with the devices that are in each now."""
    row = DeviceGroup
    found = session.scalars(select(row).where(row.name > after).order_by(row.name).limit(limit + 1)).all()
    items = [device_group(session, one.name, now_s) for one in found[:limit]]
    return resources.DeviceGroups(items=items, next=items[-1].name if len(found) > limit else None)


def device_group(session: Session, name: str, now_s: float) -> resources.DeviceGroupResource:
    """Return one group.

    Raises:
        EdgeopsError: E-GROUP.
    """
    row = groups.group(session, name)
    return resources.DeviceGroupResource(
        name=row.name,
        query=row.query,
        devices=groups.members(session, row, now_s),
        created_at_s=row.created_at_s,
        created_by=row.created_by,
    )


def rollout_list(session: Session, *, before: int = 1 << 53, limit: int = 100) -> rollout_resources.Rollouts:
    """Return the rollouts before a number, newest first."""
    found = session.scalars(
        select(Rollout).where(Rollout.id < before).order_by(Rollout.id.desc()).limit(limit + 1)
    ).all()
    items = [rollout_resource(session, row) for row in found[:limit]]
    return rollout_resources.Rollouts(items=items, next=items[-1].id if len(found) > limit else None)


def rollout_by_id(session: Session, rollout_id: int) -> rollout_resources.RolloutResource:
    """Return one rollout.

    Raises:
        EdgeopsError: E-ROLLOUT-UNKNOWN.
    """
    return rollout_resource(session, _rollout(session, rollout_id))


def rollout_resource(session: Session, rollout: Rollout) -> rollout_resources.RolloutResource:
    """Return a rollout with its groups' counts."""
    policy = _policy(rollout)
    gates = policy.gates if policy is not None else None
    view = read_view(session, rollout)
    rows = session.scalars(
        select(RolloutGroup).where(RolloutGroup.rollout_id == rollout.id).order_by(RolloutGroup.position)
    )
    groups = [
        rollout_resources.GroupResource(
            label=row.label,
            started_at_s=row.started_at_s,
            deadline_s=row.window_from_s + gates.timeout_s if row.window_from_s is not None and gates else None,
            promoted_at_s=row.promoted_at_s,
            finished_at_s=row.finished_at_s,
            profiles={
                name: rollout_resources.CountsResource(**counts._asdict())
                for name, counts in sorted(seen.profiles.items())
            },
        )
        for row, seen in zip(rows, view.groups, strict=True)
    ]
    stopped = session.scalars(
        select(RolloutProfile).where(RolloutProfile.rollout_id == rollout.id, RolloutProfile.stopped_at_s.is_not(None))
    )
    rigs = rollout_rigs(session, rollout, policy, view) if policy is not None else []
    return rollout_resources.RolloutResource(
        id=rollout.id,
        model=rollout.model,
        version=rollout.version,
        state=rollout.state,
        reason=rollout.reason,
        gates=rollout_resources.GatesResource(**msgspec.to_builtins(gates)) if gates else None,
        rigs=rigs,
        uncovered_profiles=list(uncovered([rig.profiles for rig in rigs], view.profiles)),
        groups=groups,
        figures=[rollout_resources.FigureResource(**figure) for figure in rollout.figures],
        stopped_profiles={row.profile: row.reason for row in stopped},
        created_at_s=rollout.created_at_s,
        created_by=rollout.created_by,
        on_failure=policy.on_failure if policy is not None else "stop",
        approval=policy is not None and policy.approval,
        approved_by=rollout.approved_by,
        started_at_s=rollout.started_at_s,
        ended_at_s=rollout.ended_at_s,
    )


def rollout_plan(
    session: Session,
    release: Release,
    policy: Policy,
    selection: Selection,
    *,
    now_s: float,
    trusted_rigs: Collection[str] = (),
) -> rollout_resources.RolloutPlan:
    """Return what a rollout would do.

    Raises:
        EdgeopsError: What creating it would raise.
    """
    made = plan(session, release, policy, selection, now_s, trusted_rigs)
    return rollout_resources.RolloutPlan(
        model=release.model,
        version=release.version,
        groups=[rollout_resources.PlannedGroupResource(**group._asdict()) for group in made.groups],
        devices=sum(sum(group.devices.values()) for group in made.groups),
        control=made.control,
        online=made.online,
        bytes=sum(group.bytes for group in made.groups),
        first_start_s=made.first_start_s,
        least_s=made.least_s,
        typical_s=made.typical_s,
        rigs=made.rigs,
        uncovered_profiles=list(made.uncovered),
    )


def member_page(session: Session, rollout_id: int, *, after: str, limit: int) -> rollout_resources.Members:
    """Return the members of a rollout after a unit's name.

    Raises:
        EdgeopsError: E-ROLLOUT-UNKNOWN.
    """
    _rollout(session, rollout_id)
    found = session.execute(
        select(RolloutMember, RolloutGroup.label)
        .join(
            RolloutGroup,
            (RolloutGroup.rollout_id == RolloutMember.rollout_id) & (RolloutGroup.position == RolloutMember.position),
        )
        .where(RolloutMember.rollout_id == rollout_id, _comes_after(after))
        .order_by(RolloutMember.connection, RolloutMember.unit)
        .limit(limit + 1)
    ).all()
    items = [
        rollout_resources.MemberResource(
            connection=row.connection,
            unit=row.unit,
            group=label,
            profile=row.profile,
            generation=row.generation,
            state=row.state,
            arm=row.arm,
            code=row.code,
            detail=row.detail,
            changed_at_s=row.changed_at_s,
        )
        for row, label in found[:limit]
    ]
    last = items[-1] if len(found) > limit else None
    return rollout_resources.Members(items=items, next=None if last is None else f"{last.connection}/{last.unit}")


def _comes_after(cursor: str) -> ColumnElement[bool]:
    connection, slash, unit = cursor.partition("/")
    later = RolloutMember.connection > connection
    return later | ((RolloutMember.connection == connection) & (RolloutMember.unit > unit)) if slash else later


def fleet(session: Session, name: str) -> resources.Fleet:
    """Return the fleet at a glance."""
    # By its label: PostgreSQL does not see that two comparisons with a parameter are one.
    itself_alone = (Unit.unit == SELF_UNIT).label("itself")
    rows = session.execute(
        select(Unit.profile, Device.online, itself_alone, func.count())
        .join(Device, Device.connection == Unit.connection)
        .where(Device.revoked_at_s.is_(None))
        .group_by(Unit.profile, Device.online, itself_alone)
    ).all()
    profiles: dict[str, int] = {}
    for profile, _, _, count in rows:
        profiles[profile] = profiles.get(profile, 0) + count
    now = frozen(session)
    return resources.Fleet(
        fleet=name,
        devices=sum(count for _, _, itself, count in rows if itself),
        online=sum(count for _, online, itself, count in rows if itself and online),
        units=sum(profiles.values()),
        profiles=dict(sorted(profiles.items())),
        frozen=None if now is None else resources.FreezeResource(**now._asdict()),
    )


def audit_page(session: Session, *, before: int, limit: int) -> resources.AuditLog:
    """Return the lines of the audit log before an id, newest first."""
    found = session.scalars(
        select(AuditEntry).where(AuditEntry.id < before).order_by(AuditEntry.id.desc()).limit(limit + 1)
    ).all()
    items = [_copy(resources.AuditResource, row) for row in found[:limit]]
    return resources.AuditLog(items=items, next=items[-1].id if len(found) > limit else None)


def _policy(rollout: Rollout) -> Policy | None:
    try:
        return read_policy(rollout.policy)
    except EdgeopsError:
        return None


def _rollout(session: Session, rollout_id: int) -> Rollout:
    rollout = session.get(Rollout, rollout_id)
    if rollout is None:
        raise EdgeopsError("E-ROLLOUT-UNKNOWN", f"there is no rollout {rollout_id}", "See `edgeops rollout status`.")
    return rollout


def _devices(session: Session, devices: Sequence[Device]) -> list[resources.DeviceResource]:
    names = [device.connection for device in devices]
    units: dict[str, list[Unit]] = {}
    for unit in session.scalars(
        select(Unit).where(Unit.connection.in_(names)).order_by(Unit.unit != SELF_UNIT, Unit.unit)
    ):
        units.setdefault(unit.connection, []).append(unit)
    totals: _Totals = {
        (row.connection, row.unit, row.model, row.release): row
        for row in session.scalars(select(TelemetryTotal).where(TelemetryTotal.connection.in_(names)))
    }
    return [
        resources.DeviceResource(
            connection=device.connection,
            profile=device.profile,
            labels=device.labels,
            agent_version=device.agent_version,
            online=device.online,
            enrolled_at_s=device.enrolled_at_s,
            revoked_at_s=device.revoked_at_s,
            certificate_until_s=certificate_until_s(device.certificate_pem),
            certificate_renewed_at_s=device.renewed_at_s,
            cloned_since_s=device.cloned_since_s,
            last_seen_s=device.last_seen_s,
            rejected_messages=device.rejected_messages,
            rejected_last=device.rejected_last,
            units=[_unit(unit, totals) for unit in units.get(device.connection, [])],
        )
        for device in devices
    ]


def _unit(unit: Unit, totals: _Totals) -> resources.UnitResource:
    report = _REPORTED.decode(unit.reported) if unit.reported is not None else None
    wanted = {component.name: component for component in components_of(unit)}
    said = {component.name: component for component in report.components} if report is not None else {}
    return resources.UnitResource(
        unit=unit.unit,
        profile=unit.profile,
        labels=unit.labels,
        attributes=report.attributes if report is not None else {},
        capabilities=report.capabilities if report is not None else {},
        agent_version=report.agent_version if report is not None else "",
        desired_generation=unit.desired_generation,
        observed_generation=unit.observed_generation,
        published=unit.publish_wanted == unit.publish_done,
        reported_at_s=unit.reported_at_s,
        stale_s=report.stale_s if report is not None else None,
        refused=_failure(report.refused) if report is not None else None,
        components=[
            _component(unit, name, wanted.get(name), said.get(name), totals) for name in sorted({*wanted, *said})
        ],
    )


def _component(
    unit: Unit, name: str, wanted: Component | None, said: ComponentReport | None, totals: _Totals
) -> resources.ComponentResource:
    active = said.active.release if said is not None and said.active is not None else None
    total = totals.get((unit.connection, unit.unit, name, active or ""))
    sketch = _SKETCH.decode(total.latency_ms) if total is not None else QuantileSketch()
    kind = wanted.kind if wanted is not None else said.kind if said is not None else "unknown"
    return resources.ComponentResource(
        name=name,
        kind=str(kind),
        desired_release=wanted.release if wanted is not None else None,
        active_release=active,
        state=str(said.state) if said is not None else "idle",
        failure=_failure(said.failure) if said is not None else None,
        requests=total.requests if total is not None else 0,
        errors=sum(total.errors.values()) if total is not None else 0,
        latency_p50_ms=sketch.quantile(0.5),
        latency_p95_ms=sketch.quantile(0.95),
        endpoint=said.endpoint if said is not None else None,
        self_test=None if said is None or said.self_test is None else _self_test(said.self_test),
    )


def _self_test(figures: SelfTestFigures) -> resources.SelfTestResource:
    return resources.SelfTestResource(
        vectors=figures.vectors,
        max_abs_diff=figures.max_abs_diff,
        min_cosine=figures.min_cosine,
        load_ms=figures.load_ms,
        latency_p50_ms=figures.latency.p50_ms,
        latency_p95_ms=figures.latency.p95_ms,
        peak_memory_mib=figures.peak_memory_mib,
        provider=figures.provider,
    )


def _failure(failure: Failure | None) -> resources.FailureResource | None:
    return None if failure is None else resources.FailureResource(**msgspec.to_builtins(failure))


def _copy(kind: Any, row: Any) -> Any:
    """Return a resource whose fields are the row's columns of the same names."""
    return kind(**{name: getattr(row, name) for name in _fields(kind)})


def _fields(kind: Any) -> Iterable[str]:
    return kind.model_fields.keys()  # type: ignore[no-any-return]
