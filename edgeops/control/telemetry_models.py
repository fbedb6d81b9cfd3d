"""The registry's tables of telemetry: windows as they came, and what they add up to."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from edgeops.control.models import NAME, Base


class TelemetryWindow(Base):
    """One telemetry window as received; the key drops repeated messages."""

    __tablename__ = "telemetry_windows"

    connection: Mapped[str] = mapped_column(NAME, primary_key=True)
    unit: Mapped[str] = mapped_column(NAME, primary_key=True)
    boot_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    received_at_s: Mapped[float] = mapped_column(index=True)
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    summed: Mapped[bool] = mapped_column(default=False)

    __table_args__ = (Index("ix_telemetry_windows_summed", "summed", "received_at_s"),)


class _Summed:
    """What windows come to: an exact merge. `sampled` is None where it is older than that figure: all were."""

    requests: Mapped[int] = mapped_column(BigInteger)
    sampled: Mapped[int | None] = mapped_column(BigInteger)
    errors: Mapped[dict[str, int]] = mapped_column(JSON)
    latency_ms: Mapped[bytes] = mapped_column(LargeBinary)
    histograms: Mapped[dict[str, list[int]]] = mapped_column(JSON)
    temperature_max_c: Mapped[float | None]
    shadow: Mapped[bytes | None] = mapped_column(LargeBinary)


class TelemetryTotal(Base):
    """The exact merge of a unit's windows of one model and release."""

    __tablename__ = "telemetry_totals"

    connection: Mapped[str] = mapped_column(NAME, primary_key=True)
    unit: Mapped[str] = mapped_column(NAME, primary_key=True)
    model: Mapped[str] = mapped_column(NAME, primary_key=True)
    release: Mapped[str] = mapped_column(String(64), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[dict[str, int]] = mapped_column(JSON)
    latency_ms: Mapped[bytes] = mapped_column(LargeBinary)
    updated_at_s: Mapped[float]


class TelemetryRollup(_Summed, Base):
    """The exact merge of what all devices of a profile said of a model and release within one span of time."""

    __tablename__ = "telemetry_rollups"

    model: Mapped[str] = mapped_column(NAME, primary_key=True)
    release: Mapped[str] = mapped_column(String(64), primary_key=True)
    profile: Mapped[str] = mapped_column(NAME, primary_key=True)
    span_s: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    start_s: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)

    __table_args__ = (Index("ix_telemetry_rollups_start_s", "span_s", "start_s"),)


class DeviceRollup(_Summed, Base):
    """The exact merge of what one device said of a model and release within one span of time."""

    __tablename__ = "device_rollups"

    connection: Mapped[str] = mapped_column(NAME, primary_key=True)
    unit: Mapped[str] = mapped_column(NAME, primary_key=True)
    model: Mapped[str] = mapped_column(NAME, primary_key=True)
    release: Mapped[str] = mapped_column(String(64), primary_key=True)
    span_s: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    start_s: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)

    __table_args__ = (Index("ix_device_rollups_start_s", "span_s", "start_s"),)


class ArmRollup(_Summed, Base):
    """The exact merge of what one arm of a canary said of its release while the canary's group was under way."""

    __tablename__ = "arm_rollups"

    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    profile: Mapped[str] = mapped_column(NAME, primary_key=True)
    arm: Mapped[str] = mapped_column(String(16), primary_key=True)
