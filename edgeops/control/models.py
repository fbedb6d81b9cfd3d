"""The registry's tables, except those of telemetry; `schema` knows them all.

Times are seconds since 1970 by the control plane's clock unless a name says otherwise.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from edgeops.contracts.enrolment import ConnectionKind

# SQLite numbers rows by itself only in INTEGER columns; PostgreSQL should have eight bytes.
_ROW_ID = BigInteger().with_variant(Integer(), "sqlite")
NAME = String(63)


class Word(TypeDecorator[str]):
    """A value of a wire enum as its text: what another edgeops wrote is read back as it is."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Return the text of an enum's value."""
        return None if value is None else str(value)


class Base(DeclarativeBase):
    """Base of all tables."""


class Device(Base):
    """One MQTT identity: who it is, and when it was last heard.

    `kind`: a device, or a rig, which has neither profile nor units: nothing is ever assigned to it.
    `figures` is the newest `DeviceWindow`, by the time that the device gave it (`figures_at_s`, its own clock).
    `dropped_windows`: telemetry that its queue had to give up.
    """

    __tablename__ = "devices"

    connection: Mapped[str] = mapped_column(NAME, primary_key=True)
    profile: Mapped[str] = mapped_column(NAME, index=True)
    labels: Mapped[dict[str, str]] = mapped_column(JSON)
    certificate_pem: Mapped[str] = mapped_column(Text)
    previous_certificate_pem: Mapped[str] = mapped_column(Text, default="")
    older_certificates: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    renewed_at_s: Mapped[float | None]
    renew_wanted_at_s: Mapped[float | None]
    clone_signs: Mapped[int] = mapped_column(default=0)
    cloned_since_s: Mapped[float | None]
    enrolled_at_s: Mapped[float]
    revoked_at_s: Mapped[float | None]
    agent_version: Mapped[str] = mapped_column(String(64))
    online: Mapped[bool]
    presence_at_s: Mapped[float | None]
    last_seen_s: Mapped[float | None]
    rejected_messages: Mapped[int] = mapped_column(BigInteger)
    rejected_last: Mapped[str] = mapped_column(String(512))
    figures: Mapped[bytes | None] = mapped_column(LargeBinary)
    figures_at_s: Mapped[float | None]
    dropped_windows: Mapped[int] = mapped_column(BigInteger, default=0)
    kind: Mapped[str] = mapped_column(Word(16), default=ConnectionKind.DEVICE, index=True)


class Unit(Base):
    """What one unit of a connection reported last, and what it should run.

    `profile` of a connection itself is what it joined with; of a unit behind it what was reported last, "" before that.
    `labels` are those beside the connection's. Desired state waits for publication while `publish_wanted` differs from
    `publish_done`.
    """

    __tablename__ = "units"

    connection: Mapped[str] = mapped_column(ForeignKey("devices.connection"), primary_key=True)
    unit: Mapped[str] = mapped_column(NAME, primary_key=True)
    profile: Mapped[str] = mapped_column(NAME, index=True)
    labels: Mapped[dict[str, str]] = mapped_column(JSON)
    added_at_s: Mapped[float]
    boot_id: Mapped[str] = mapped_column(String(64))
    seq: Mapped[int] = mapped_column(BigInteger)
    observed_generation: Mapped[int] = mapped_column(BigInteger)
    reported: Mapped[bytes | None] = mapped_column(LargeBinary)
    reported_at_s: Mapped[float | None]
    desired_generation: Mapped[int] = mapped_column(BigInteger)
    desired_components: Mapped[bytes] = mapped_column(LargeBinary)
    override_holds: Mapped[bool]
    publish_wanted: Mapped[int] = mapped_column(BigInteger)
    publish_done: Mapped[int] = mapped_column(BigInteger)
    published_at_s: Mapped[float | None]
    published_until_s: Mapped[float | None]

    __table_args__ = (Index("ix_units_published_until_s", "published_until_s"),)


class Boot(Base):
    """A boot of a unit that was heard, and the last sequence number that was taken of it once another came.

    A report of an earlier boot than the newest is a replay, or comes from a second machine with the same identity.
    """

    __tablename__ = "boots"

    connection: Mapped[str] = mapped_column(NAME, primary_key=True)
    unit: Mapped[str] = mapped_column(NAME, primary_key=True)
    boot_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    first_seen_s: Mapped[float]
    seq: Mapped[int] = mapped_column(BigInteger, default=0)

    __table_args__ = (ForeignKeyConstraint(["connection", "unit"], ["units.connection", "units.unit"]),)


class Generation(Base):
    """Every desired state that was ever given out. The key makes it impossible to use a generation twice."""

    __tablename__ = "generations"

    connection: Mapped[str] = mapped_column(NAME, primary_key=True)
    unit: Mapped[str] = mapped_column(NAME, primary_key=True)
    generation: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    components: Mapped[bytes] = mapped_column(LargeBinary)
    cause: Mapped[str] = mapped_column(String(128))
    created_at_s: Mapped[float]

    __table_args__ = (ForeignKeyConstraint(["connection", "unit"], ["units.connection", "units.unit"]),)


class ProgressEvent(Base):
    """One step of one component towards a generation, as the device told it."""

    __tablename__ = "progress"

    connection: Mapped[str] = mapped_column(NAME, primary_key=True)
    unit: Mapped[str] = mapped_column(NAME, primary_key=True)
    boot_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    component: Mapped[str] = mapped_column(NAME)
    generation: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(Word(32))
    release: Mapped[str] = mapped_column(String(64))
    percent: Mapped[float | None]
    code: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[str] = mapped_column(String(512))
    device_at_s: Mapped[float]
    received_at_s: Mapped[float] = mapped_column(index=True)


class EnrolmentTokenRow(Base):
    """A one-time token: only the hash of its secret is kept."""

    __tablename__ = "enrolment_tokens"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    secret_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    profile: Mapped[str | None] = mapped_column(NAME)
    name: Mapped[str | None] = mapped_column(NAME)
    labels: Mapped[dict[str, str]] = mapped_column(JSON)
    created_at_s: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(64))
    expires_at_s: Mapped[float]
    used_at_s: Mapped[float | None]
    used_by: Mapped[str | None] = mapped_column(NAME)
    kind: Mapped[str] = mapped_column(Word(16), default=ConnectionKind.DEVICE)


class ApiToken(Base):
    """An API token: only the hash of its secret is kept."""

    __tablename__ = "api_tokens"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    secret_sha256: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(NAME, unique=True)
    role: Mapped[str] = mapped_column(Word(32))
    created_at_s: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(64))
    expires_at_s: Mapped[float]
    revoked_at_s: Mapped[float | None]
    used_at_s: Mapped[float | None]


class DeviceGroup(Base):
    """A named group: all that the query finds, or the named devices where there is none."""

    __tablename__ = "device_groups"

    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    query: Mapped[str] = mapped_column(Text)
    devices: Mapped[list[str]] = mapped_column(JSON)
    created_at_s: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(64))


class Rollout(Base):
    """A release on its way through groups of devices. `policy` is the text that `decide` reads."""

    __tablename__ = "rollouts"

    id: Mapped[int] = mapped_column(_ROW_ID, primary_key=True)
    model: Mapped[str] = mapped_column(NAME, index=True)
    version: Mapped[str] = mapped_column(String(64))
    release_number: Mapped[int] = mapped_column(BigInteger)
    policy: Mapped[bytes] = mapped_column(LargeBinary)
    selection: Mapped[bytes] = mapped_column(LargeBinary)
    state: Mapped[str] = mapped_column(Word(32), index=True)
    reason: Mapped[str] = mapped_column(Text)
    figures: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    controlled: Mapped[bool] = mapped_column(default=False)
    created_at_s: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(64))
    approved_by: Mapped[str | None] = mapped_column(String(64))
    started_at_s: Mapped[float | None]
    ended_at_s: Mapped[float | None]


class RolloutGroup(Base):
    """One group of a rollout, by its order from 0. `promoted_at_s`: since when its shadows are to serve."""

    __tablename__ = "rollout_groups"

    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    label: Mapped[str] = mapped_column(String(64))
    started_at_s: Mapped[float | None]
    window_from_s: Mapped[float | None]
    promoted_at_s: Mapped[float | None]
    finished_at_s: Mapped[float | None]


class RolloutProfile(Base):
    """The bundle that devices of one profile get, and whether a gate stopped this profile.

    `reference` has the histograms that the bundle was compiled with, by the name that telemetry gives them;
    `reference_samples` says of how many samples, `calibration` from where on their distance is no chance.
    """

    __tablename__ = "rollout_profiles"

    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    profile: Mapped[str] = mapped_column(NAME, primary_key=True)
    target: Mapped[str] = mapped_column(String(255))
    digest: Mapped[str] = mapped_column(String(80))
    reference: Mapped[dict[str, list[int]]] = mapped_column(JSON)
    reference_samples: Mapped[int] = mapped_column(default=0)
    calibration: Mapped[bytes | None] = mapped_column(LargeBinary)
    stopped_at_s: Mapped[float | None]
    reason: Mapped[str] = mapped_column(Text)


class RolloutMember(Base):
    """One unit in a rollout. `generation` is None until its group started; `reached`: heard of since then.

    After a retry `generation` is the newest one that the rollout gave it, `first_generation` the first. From
    `returned_generation` on it has gone back to what it had. `arm`: `canary`, `control`, or of neither.
    """

    __tablename__ = "rollout_members"

    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    connection: Mapped[str] = mapped_column(NAME, primary_key=True)
    unit: Mapped[str] = mapped_column(NAME, primary_key=True)
    position: Mapped[int]
    profile: Mapped[str] = mapped_column(NAME)
    component: Mapped[str] = mapped_column(NAME)
    generation: Mapped[int | None] = mapped_column(BigInteger)
    first_generation: Mapped[int | None] = mapped_column(BigInteger)
    attempts: Mapped[int]
    returned_generation: Mapped[int | None] = mapped_column(BigInteger)
    arm: Mapped[str] = mapped_column(String(16), default="")
    reached: Mapped[bool]
    state: Mapped[str] = mapped_column(Word(32))
    step: Mapped[int] = mapped_column(BigInteger)
    code: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[str] = mapped_column(String(512))
    changed_at_s: Mapped[float | None]

    __table_args__ = (
        ForeignKeyConstraint(["connection", "unit"], ["units.connection", "units.unit"]),
        ForeignKeyConstraint(["rollout_id", "position"], ["rollout_groups.rollout_id", "rollout_groups.position"]),
        Index("ix_rollout_members_unit", "connection", "unit", "component", "generation"),
    )


class CommandRow(Base):
    """Something that a device was asked to do once, and how far that has come."""

    __tablename__ = "commands"

    id: Mapped[str] = mapped_column(NAME, primary_key=True)
    connection: Mapped[str] = mapped_column(NAME, index=True)
    unit: Mapped[str] = mapped_column(NAME)
    kind: Mapped[str] = mapped_column(String(32))
    wish: Mapped[bytes] = mapped_column(LargeBinary)
    created_at_s: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(64))
    expires_at_s: Mapped[float]
    published_at_s: Mapped[float | None]
    answered_at_s: Mapped[float | None]
    state: Mapped[str] = mapped_column(Word(32), index=True)
    code: Mapped[str] = mapped_column(String(64))
    detail: Mapped[str] = mapped_column(String(512))
    total: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))


class CommandPart(Base):
    """A part of an answer; the key drops what comes twice."""

    __tablename__ = "command_parts"

    command_id: Mapped[str] = mapped_column(ForeignKey("commands.id"), primary_key=True)
    offset: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class Freeze(Base):
    """The fleet's kill switch: while there is a row, no rollout starts or goes on."""

    __tablename__ = "freezes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    since_s: Mapped[float]
    actor: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(String(512))


class RequestKey(Base):
    """An idempotency key, written with the change of its request. `status` is None until its answer is known."""

    __tablename__ = "request_keys"

    principal: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    method: Mapped[str] = mapped_column(String(8))
    path: Mapped[str] = mapped_column(Text)
    body_sha256: Mapped[str] = mapped_column(String(64))
    at_s: Mapped[float] = mapped_column(index=True)
    status: Mapped[int | None]
    content_type: Mapped[str] = mapped_column(String(128))
    answer: Mapped[bytes | None] = mapped_column(LargeBinary)


class AskedMeasurement(Base):
    """A device was asked to measure candidates. `command` is sent again until `answer`, its signed envelope, is here.

    `certificate_pem` is the device's certificate whose key signed the answer.
    """

    __tablename__ = "measurements"

    id: Mapped[str] = mapped_column(NAME, primary_key=True)
    connection: Mapped[str] = mapped_column(ForeignKey("devices.connection"))
    command: Mapped[bytes] = mapped_column(LargeBinary)
    created_at_s: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(64))
    expires_at_s: Mapped[float]
    sent_at_s: Mapped[float | None]
    answered_at_s: Mapped[float | None]
    answer: Mapped[bytes | None] = mapped_column(LargeBinary)
    certificate_pem: Mapped[str] = mapped_column(Text, default="")

    __table_args__ = (
        Index("ix_measurements_connection", "connection", "created_at_s"),
        Index("ix_measurements_expires_at_s", "expires_at_s"),
    )


class RigRow(Base):
    """What a rig said of itself last. `gone_since_s`: since when it is known not to be connected; None: it is.

    `ended_boots` are lives of its daemon before the newest: a report of one is a replay.
    """

    __tablename__ = "rigs"

    connection: Mapped[str] = mapped_column(ForeignKey("devices.connection"), primary_key=True)
    boot_id: Mapped[str] = mapped_column(String(64), default="")
    seq: Mapped[int] = mapped_column(BigInteger, default=0)
    ended_boots: Mapped[list[str]] = mapped_column(JSON, default=list)
    report: Mapped[bytes | None] = mapped_column(LargeBinary)
    reported_at_s: Mapped[float | None]
    gone_since_s: Mapped[float | None]


class RigRun(Base):
    """A rig was asked to run a rollout's release, for the `attempt`-th time. It is asked again until it has answered.

    `answer` is its signed envelope, `certificate_pem` vouches for that, and `statement` in it is what the rig's own key
    signed. From `given_up_at_s` on no answer counts any more: the rollout asks anew.
    """

    __tablename__ = "rig_runs"

    id: Mapped[str] = mapped_column(NAME, primary_key=True)
    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.id"))
    connection: Mapped[str] = mapped_column(ForeignKey("devices.connection"), index=True)
    attempt: Mapped[int]
    bundles: Mapped[bytes] = mapped_column(LargeBinary)
    created_at_s: Mapped[float]
    expires_at_s: Mapped[float]
    sent_at_s: Mapped[float | None]
    given_up_at_s: Mapped[float | None]
    answered_at_s: Mapped[float | None]
    answer: Mapped[bytes | None] = mapped_column(LargeBinary)
    certificate_pem: Mapped[str] = mapped_column(Text, default="")
    statement: Mapped[bytes | None] = mapped_column(LargeBinary)
    verdict: Mapped[str] = mapped_column(Word(16), default="")
    reason: Mapped[str] = mapped_column(Text, default="")

    # Two workers that decide at once cannot both ask.
    __table_args__ = (UniqueConstraint("rollout_id", "connection", "attempt"),)


class AuditEntry(Base):
    """Who did what, when. Rows are only ever added."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(_ROW_ID, primary_key=True)
    at_s: Mapped[float]
    actor: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(128))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
