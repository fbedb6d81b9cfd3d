"""What the devices of a profile said, merged per span of time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.create_table(
        "telemetry_rollups",
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("release", sa.String(length=64), nullable=False),
        sa.Column("profile", sa.String(length=63), nullable=False),
        sa.Column("span_s", sa.Integer(), nullable=False),
        sa.Column("start_s", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.JSON(), nullable=False),
        sa.Column("latency_ms", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("model", "release", "profile", "span_s", "start_s"),
    )
    op.create_index("ix_telemetry_rollups_start_s", "telemetry_rollups", ["span_s", "start_s"])
