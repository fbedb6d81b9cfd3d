"""Telemetry of each device, summed up by the hour and by the day; and which windows are in such a sum."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.add_column("telemetry_windows", sa.Column("summed", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index("ix_telemetry_windows_summed", "telemetry_windows", ["summed", "received_at_s"])
    op.create_table(
        "device_rollups",
        sa.Column("connection", sa.String(length=63), nullable=False),
        sa.Column("unit", sa.String(length=63), nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("release", sa.String(length=64), nullable=False),
        sa.Column("span_s", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("start_s", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.JSON(), nullable=False),
        sa.Column("latency_ms", sa.LargeBinary(), nullable=False),
        sa.Column("histograms", sa.JSON(), nullable=False),
        sa.Column("temperature_max_c", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("connection", "unit", "model", "release", "span_s", "start_s"),
    )
    op.create_index("ix_device_rollups_start_s", "device_rollups", ["span_s", "start_s"])
