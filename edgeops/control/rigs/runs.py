"""What rollouts ask rigs: written with the decision to ask, sent until it is answered, answered once."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgeops.contracts.enrolment import ConnectionKind
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rig_runs import ROLLOUT_FEATURE, RigAnswer, RigBundle, RigCommand, RigReport
from edgeops.contracts.rigs import RigResult, Verdict
from edgeops.contracts.rollouts import ENDED_STATES
from edgeops.contracts.topics import SELF_UNIT
from edgeops.contracts.wire import decode
from edgeops.control import audit
from edgeops.control.database import Database
from edgeops.control.models import Device, RigRow, RigRun, Rollout, RolloutProfile
from edgeops.control.rigs.verdict import Asked, check_belongs, judge
from edgeops.control.sending import send
from edgeops.transport.mqtt import MqttLink

# A rig that has the command already ignores it, or says its answer again.
SEND_AGAIN_AFTER_S = 30.0
# Said in place of a verdict: the rig ran nothing, and says why.
REFUSED = "refused"
_BATCH = 100
_BOOTS_KEPT = 1000
_BUNDLES = msgspec.json.Decoder(tuple[RigBundle, ...])


class SignedRigAnswer(NamedTuple):
    """A rig's answer as it was verified.

    Args:
        answer: What it says.
        result: What its own key signed; None: it ran nothing.
        envelope: The answer as its connection's key signed it.
        certificate_pem: Of that key.
    """

    answer: RigAnswer
    result: RigResult | None
    envelope: bytes
    certificate_pem: str


class Known(NamedTuple):
    """A rig as the registry knows it. `report` None: it has not said anything yet."""

    name: str
    revoked: bool
    online: bool
    gone_since_s: float | None
    report: RigReport | None

    @property
    def profiles(self) -> frozenset[str]:
        """The profiles that it has boards of."""
        return frozenset(board.profile for board in self.report.boards) if self.report is not None else frozenset()

    def does(self, id: str) -> bool:
        """Whether it is connected and says that it is at a command."""
        doing = self.report.doing if self.report is not None else None
        return self.gone_since_s is None and doing is not None and doing.id == id

    def cannot(self, profiles: Collection[str]) -> str:
        """Return why it can run nothing for a release with bundles for these profiles; empty: it can."""
        if self.revoked:
            return "it is revoked"
        if self.report is None:
            return "it has not said yet what boards it has: start `edgeops hil serve` there"
        if ROLLOUT_FEATURE not in self.report.features:
            return f"edgeops {self.report.version[:40]} on it runs nothing for rollouts"
        if self.profiles.isdisjoint(profiles):
            return (
                f"it has boards of {', '.join(sorted(self.profiles)) or 'no profile'}, and the release none for those"
            )
        return ""


def known(session: Session, names: Collection[str]) -> dict[str, Known]:
    """Return those of these rigs that are enrolled, or were and are revoked, by name."""
    rows = session.execute(
        select(Device, RigRow)
        .join(RigRow, RigRow.connection == Device.connection)
        .where(Device.connection.in_(names), Device.kind == ConnectionKind.RIG)
    )
    return {
        device.connection: Known(
            device.connection,
            device.revoked_at_s is not None,
            device.online,
            rig.gone_since_s,
            None if rig.report is None else decode(rig.report, RigReport, what="stored report of a rig"),
        )
        for device, rig in rows
    }


def find(session: Session, names: Sequence[str], profiles: Collection[str], trusted: Collection[str]) -> list[Known]:
    """Return rigs that may stand before a rollout of a release with bundles for these profiles.

    Args:
        session: A transaction that reads.
        names: Which.
        profiles: What the release has bundles for.
        trusted: The rigs whose keys the fleet trusts.

    Raises:
        EdgeopsError: E-RIG-UNKNOWN; not enrolled, or a device. E-RIG-UNFIT; its key is not trusted, it is revoked or
            too old, or has no board for any of these profiles.
    """
    enrolled = known(session, names)
    for name in names:
        if name not in enrolled:
            device = session.get(Device, name)
            what = f"{name} is a device, no rig" if device is not None else f"there is no rig {name[:80]!r}"
            raise EdgeopsError("E-RIG-UNKNOWN", what, "See `edgeops fleet rigs`.")
        why = enrolled[name].cannot(profiles)
        if not why and name not in trusted:
            why = f"its key is not trusted: `edgeops hil key {name}` there, then `edgeops release trust-rig` here"
        if why:
            raise EdgeopsError("E-RIG-UNFIT", f"rig {name}: {why}", "See `edgeops fleet rigs`.")
    return [enrolled[name] for name in names]


def newest(session: Session, rollout_id: int) -> dict[str, RigRun]:
    """Return the newest run of each rig that a rollout has asked, by the rig's name."""
    rows = session.scalars(select(RigRun).where(RigRun.rollout_id == rollout_id).order_by(RigRun.attempt))
    return {row.connection: row for row in rows}


def ask(session: Session, rollout: Rollout, names: Iterable[str], valid_s: float, now_s: float) -> list[str]:
    """Ask rigs to run a rollout's release, in the transaction that decides so; return those that were asked.

    A rig is asked for the bundles that it has boards for.
    """
    bundles = [
        RigBundle(profile=row.profile, target=row.target, digest=row.digest)
        for row in session.scalars(
            select(RolloutProfile).where(RolloutProfile.rollout_id == rollout.id).order_by(RolloutProfile.profile)
        )
    ]
    asked = []
    for name, rig in sorted(known(session, list(names)).items()):
        mine = tuple(bundle for bundle in bundles if bundle.profile in rig.profiles)
        if rig.cannot({bundle.profile for bundle in bundles}):
            continue
        before = session.scalar(
            select(func.max(RigRun.attempt)).where(RigRun.rollout_id == rollout.id, RigRun.connection == name)
        )
        session.add(
            RigRun(
                id=secrets.token_hex(16),
                rollout_id=rollout.id,
                connection=name,
                attempt=(before or 0) + 1,
                bundles=msgspec.json.encode(mine, order="sorted"),
                created_at_s=now_s,
                expires_at_s=now_s + valid_s,
            )
        )
        asked.append(name)
    session.flush()
    return asked


def give_up(session: Session, rollout_id: int, now_s: float, *, only_expired: bool = False) -> None:
    """Have a rollout ask anew, once it goes on: the rigs that have not passed the release and do not run it now.

    Args:
        session: A transaction that writes.
        rollout_id: Which rollout.
        now_s: The control plane's clock.
        only_expired: Only where the time was over before an answer came.
    """
    runs = newest(session, rollout_id)
    rigs = known(session, list(runs))
    for name, run in runs.items():
        open_yet = run.answered_at_s is None
        over = open_yet and run.expires_at_s <= now_s
        idle = open_yet and not (name in rigs and rigs[name].does(run.id))
        answered_otherwise = not open_yet and run.verdict != Verdict.PASSED.value
        if run.given_up_at_s is None and (over or (not only_expired and (idle or answered_otherwise))):
            run.given_up_at_s = now_s


def send_waiting(
    database: Database, fleet: str, sign: Callable[[RigCommand], bytes], link: MqttLink, now_s: float
) -> None:
    """Send what is not answered to the rigs that are there.

    Raises:
        EdgeopsError: The database cannot be used; what was sent will be sent again.
    """
    with database.read() as session:
        rows = session.execute(
            select(RigRun, Rollout)
            .join(Rollout, Rollout.id == RigRun.rollout_id)
            .join(Device, Device.connection == RigRun.connection)
            .where(
                RigRun.answered_at_s.is_(None),
                RigRun.given_up_at_s.is_(None),
                RigRun.expires_at_s > now_s,
                Rollout.state.not_in(ENDED_STATES),
                Device.revoked_at_s.is_(None),
                Device.online,
                RigRun.sent_at_s.is_(None) | (RigRun.sent_at_s < now_s - SEND_AGAIN_AFTER_S),
            )
            .order_by(RigRun.created_at_s)
            .limit(_BATCH)
        ).all()
        commands = [command_of(run, rollout, fleet) for run, rollout in rows]
    sent = send(link, fleet, commands, sign)
    if sent:
        with database.write() as session:
            for row in session.scalars(select(RigRun).where(RigRun.id.in_(sent))):
                row.sent_at_s = now_s


def command_of(run: RigRun, rollout: Rollout, fleet: str) -> RigCommand:
    """Return what a rig is sent."""
    return RigCommand(
        fleet=fleet,
        connection=run.connection,
        unit=SELF_UNIT,
        id=run.id,
        issued_at_s=run.created_at_s,
        expires_at_s=run.expires_at_s,
        rollout=run.rollout_id,
        attempt=run.attempt,
        model=rollout.model,
        version=rollout.version,
        bundles=bundles_of(run),
    )


def bundles_of(run: RigRun) -> tuple[RigBundle, ...]:
    """Return the bundles that a rig was asked to run."""
    return _BUNDLES.decode(run.bundles)


def take(session: Session, connection: str, signed: SignedRigAnswer, now_s: float) -> None:
    """Keep a rig's answer as evidence, if it was asked for it and has not answered yet.

    Raises:
        EdgeopsError: E-COMMAND-UNKNOWN; it was not asked. E-RIG-VERDICT; the answer came when it was not waited for
            any more, or is about something else. Nothing was kept.
    """
    answer = signed.answer
    run = session.get(RigRun, answer.id, with_for_update=True)
    if run is None or run.connection != connection:
        raise EdgeopsError("E-COMMAND-UNKNOWN", f"{connection} was not asked for {answer.id}")
    if run.answered_at_s is not None:
        return  # told again: the broker or the rig did not know that it had arrived
    if run.given_up_at_s is not None or run.expires_at_s <= now_s:
        raise EdgeopsError("E-RIG-VERDICT", f"an answer to {answer.id}, which is not waited for any more")
    rollout = session.get_one(Rollout, run.rollout_id)
    if signed.result is None:
        run.verdict, run.reason = REFUSED, f"{answer.code}: {answer.what}".replace("\0", "")[:500]
    else:
        asked = Asked(
            answer.fleet, connection, run.id, run.created_at_s, rollout.model, rollout.version, bundles_of(run)
        )
        check_belongs(signed.result, asked, now_s)
        judged = judge(signed.result, asked)
        run.verdict, run.reason = judged.verdict.value, judged.reason.replace("\0", "")
        run.statement = answer.statement.encode()
    run.answered_at_s, run.answer, run.certificate_pem = now_s, signed.envelope, signed.certificate_pem
    audit.record(
        session,
        at_s=now_s,
        actor=f"rig/{connection}",
        action="rollout.rig-verdict",
        subject=f"rollout/{rollout.id}",
        id=run.id,
        attempt=run.attempt,
        verdict=run.verdict,
        reason=run.reason,
        statement_sha256=hashlib.sha256(run.statement or b"").hexdigest() if run.statement else "",
    )


def take_report(session: Session, report: RigReport, now_s: float) -> None:
    """Take what a rig says of itself, if it is newer than what is known.

    Raises:
        EdgeopsError: E-REPORT-STALE; of a life of its daemon that has ended.
    """
    row = session.get_one(RigRow, report.connection, with_for_update=True)
    if report.boot_id == row.boot_id:
        if report.seq <= row.seq:
            return
    elif report.boot_id in row.ended_boots:
        raise EdgeopsError("E-REPORT-STALE", f"a report of boot {report.boot_id}, which has ended")
    elif row.boot_id:
        row.ended_boots = [*row.ended_boots, row.boot_id][-_BOOTS_KEPT:]
    row.boot_id, row.seq = report.boot_id, report.seq
    row.report, row.reported_at_s = msgspec.json.encode(report, order="sorted"), now_s


def take_presence(session: Session, connection: str, *, online: bool, now_s: float) -> None:
    """Take whether a rig is connected."""
    row = session.get_one(RigRow, connection, with_for_update=True)
    if online:
        row.gone_since_s = None
    elif row.gone_since_s is None:
        row.gone_since_s = now_s
