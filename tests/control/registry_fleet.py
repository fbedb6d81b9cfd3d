"""A registry with devices in it, and what those devices say; for tests that need no broker."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from sqlalchemy import select

from edgeops.contracts.deployment import (
    SHADOW_FEATURE,
    Component,
    ComponentKind,
    ComponentReport,
    DeploymentState,
    Failure,
    Presence,
    Reported,
    Slot,
)
from edgeops.contracts.enrolment import ConnectionKind
from edgeops.contracts.release import Release, ReleaseTarget, target_path
from edgeops.contracts.rig_runs import ROLLOUT_FEATURE, RigAnswer, RigBoard, RigReport
from edgeops.contracts.rigs import BoardResult, CheckResult, RigResult, Verdict
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import DeviceWindow, ModelWindow, Telemetry
from edgeops.control.assignment import components_of, new_unit
from edgeops.control.database import Database
from edgeops.control.ingest.apply import Batch
from edgeops.control.models import Device, RigRow, RigRun, Rollout, Unit
from edgeops.control.rigs import runs

FLEET = "f1"
MODEL = "lines"
PROFILES = ("raspberry-pi-4", "intel-nuc", "jetson-orin-nano")


def open_registry(where: Path | str) -> Database:
    """Open a registry with its tables: a file (or the folder for it), or a URL."""
    database = Database(where / "control.sqlite" if isinstance(where, Path) and where.is_dir() else where)
    database.migrate()
    return database


def add_devices(
    database: Database,
    count: int,
    *,
    profiles: tuple[str, ...] = PROFILES,
    online: bool = True,
    prefix: str = "dev",
    enrolled_at_s: float = 0.0,
) -> list[str]:
    names = [f"{prefix}-{number:03d}" for number in range(count)]
    with database.write() as session:
        for name, profile in zip(names, itertools.cycle(profiles), strict=False):
            session.add(
                Device(
                    connection=name,
                    profile=profile,
                    labels={"site": "a" if int(name[-1]) % 2 else "b"},
                    certificate_pem="",
                    enrolled_at_s=enrolled_at_s,
                    revoked_at_s=None,
                    agent_version="",
                    online=online,
                    presence_at_s=None,
                    last_seen_s=None,
                    rejected_messages=0,
                    rejected_last="",
                )
            )
            session.flush()
            session.add(new_unit(name, "self", profile=profile, now_s=enrolled_at_s))
    return names


def add_rig(database: Database, name: str, profiles: tuple[str, ...] = PROFILES) -> None:
    """Let a rig be there that has said that it has a board of each of these profiles."""
    boards = tuple(RigBoard(name=f"b-{profile}", kind="local", profile=profile) for profile in profiles)
    report = RigReport(
        fleet=FLEET, connection=name, unit="self", boot_id="b1", seq=1, at_s=0.0, version="0.1.0", boards=boards,
        features=(ROLLOUT_FEATURE,),
    )  # fmt: skip
    with database.write() as session:
        session.add(
            Device(
                connection=name, profile="", labels={}, certificate_pem="", enrolled_at_s=0.0, agent_version="",
                online=True, rejected_messages=0, rejected_last="", kind=ConnectionKind.RIG,
            )
        )  # fmt: skip
        session.flush()
        session.add(RigRow(connection=name))
        session.flush()
        runs.take_report(session, report, 0.0)


def rigs_pass(database: Database, now_s: float) -> int:
    """Every rig that was asked and has not answered passes what it was asked for; return how many did."""
    with database.read() as session:
        waiting = session.scalars(select(RigRun).where(RigRun.answered_at_s.is_(None))).all()
        commands = [runs.command_of(run, session.get_one(Rollout, run.rollout_id), FLEET) for run in waiting]
    for command in commands:
        check = CheckResult(check="golden", verdict=Verdict.PASSED, said="they hold")
        result = RigResult(
            rig=command.connection, run="r", at_s=now_s, duration_s=1.0, edgeops="0.1.0", host="h", fleet=FLEET,
            command=command.id,
            boards=tuple(
                BoardResult(
                    board=f"b-{bundle.profile}", kind="local", profile=bundle.profile, model=command.model,
                    release=command.version, digest=bundle.digest, checks=(check,),
                )
                for bundle in command.bundles
            ),
        )  # fmt: skip
        answer = RigAnswer(fleet=FLEET, connection=command.connection, unit="self", id=command.id, statement="{}")
        with database.write() as session:
            runs.take(session, command.connection, runs.SignedRigAnswer(answer, result, b"{}", ""), now_s)
    return len(commands)


def release(version: str, number: int = 1, profiles: tuple[str, ...] = PROFILES) -> Release:
    targets = tuple(
        ReleaseTarget(
            profile=profile,
            digest=f"sha256:{version}-{profile}",
            path=target_path(MODEL, version, profile),
            length=1,
            sha256="0" * 64,
        )
        for profile in profiles
    )
    return Release(model=MODEL, version=version, number=number, created_at_s=0.0, targets=targets)


class SpeakingDevice:
    """A device, or a unit behind it, whose words go straight to the registry: it has one boot, counts its messages."""

    def __init__(
        self, database: Database, name: str, *, boot_id: str = "boot-1", unit: str = "self", profile: str = "any"
    ) -> None:
        self._database, self.name, self.boot_id, self.unit, self.profile = database, name, boot_id, unit, profile
        self.seq = 0
        self.features: tuple[str, ...] = (SHADOW_FEATURE,)
        self.attributes: dict[str, str] = {}
        self.capabilities: dict[str, str] = {}

    def desired(self) -> tuple[int, tuple[Component, ...]]:
        with self._database.read() as session:
            unit = session.get_one(Unit, (self.name, self.unit))
            return unit.desired_generation, components_of(unit)

    def report(self, components: tuple[ComponentReport, ...], *, observed: int, now_s: float) -> Reported:
        self.seq += 1
        statement = Reported(
            fleet=FLEET,
            connection=self.name,
            unit=self.unit,
            boot_id=self.boot_id,
            seq=self.seq,
            at_s=now_s,
            agent_version="0.1.0",
            profile=self.profile,
            observed_generation=observed,
            components=components,
            features=self.features,
            attributes=self.attributes,
            capabilities=self.capabilities,
        )
        self.say(statement, now_s)
        return statement

    def say(self, statement: Reported | Presence | Telemetry, now_s: float) -> None:
        with self._database.write() as session:
            batch = Batch(session, [self.name], now_s)
            batch.look_for_repeated([statement])
            batch.apply(batch.devices[self.name], statement)
            batch.finish()

    def served(
        self,
        release: str,
        latencies_ms: list[float],
        *,
        now_s: float,
        errors: dict[str, int],
        temperature_c: float | None = None,
        **seen: Any,
    ) -> None:
        """Tell of a window in which the model answered so fast, failed so often, and saw such values."""
        self.seq += 1
        window = ModelWindow(
            model=MODEL,
            release=release,
            digest="sha256:0",
            latency_ms=QuantileSketch.of(latencies_ms),
            requests=len(latencies_ms),
            errors=errors,
            **seen,
        )
        telemetry = Telemetry(
            fleet=FLEET, connection=self.name, unit=self.unit, boot_id=self.boot_id, seq=self.seq,
            start_s=now_s - 1, end_s=now_s, models=(window,),
            device=DeviceWindow(uptime_s=1.0, temperature_c=temperature_c),
        )  # fmt: skip
        self.say(telemetry, now_s)

    def obey_or_shadow(self, now_s: float) -> None:
        """Do what is desired: let it serve, or run it beside what serves."""
        _, wanted = self.desired()
        shadows = any(component.shadow is not None for component in wanted)
        self.obey(now_s, state=DeploymentState.SHADOW if shadows else DeploymentState.CONFIRMED)

    def obey(self, now_s: float, *, state: DeploymentState = DeploymentState.CONFIRMED, code: str = "E-TRIAL") -> None:
        """Report that all that is desired ended in `state`."""
        generation, wanted = self.desired()
        self.report(
            tuple(report_of(component, generation, state, code=code, now_s=now_s) for component in wanted),
            observed=generation,
            now_s=now_s,
        )


def report_of(
    component: Component, generation: int, state: DeploymentState, *, code: str = "E-TRIAL", now_s: float = 0.0
) -> ComponentReport:
    good = state is DeploymentState.CONFIRMED
    told = None
    if not good and state is not DeploymentState.SHADOW:
        told = Failure(code=code, what="refused", release=component.release, at_s=now_s)
    return ComponentReport(
        name=component.name,
        kind=ComponentKind.MODEL,
        state=state,
        generation=generation,
        active=Slot(release=component.release, digest=component.digest, number=1) if good else None,
        failure=told,
    )


def obey_all(database: Database, now_s: float) -> int:
    """Every device that has a desired state above what it reported confirms it; return how many did."""
    with database.read() as session:
        names = list(session.scalars(select(Unit.connection).where(Unit.desired_generation > Unit.observed_generation)))
    for name in names:
        with database.read() as session:
            unit = session.get_one(Unit, (name, "self"))
            boot_id, seq = unit.boot_id or "boot-1", unit.seq
        device = SpeakingDevice(database, name, boot_id=boot_id)
        device.seq = seq
        device.obey(now_s)
    return len(names)
