"""Rigs: connections of a kind of their own, what they say of themselves, and what rollouts asked them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    for table in ("devices", "enrolment_tokens"):
        op.add_column(table, sa.Column("kind", sa.String(16), nullable=False, server_default="device"))
    op.create_index("ix_devices_kind", "devices", ["kind"])
    op.create_table(
        "rigs",
        sa.Column("connection", sa.String(63), sa.ForeignKey("devices.connection"), primary_key=True),
        sa.Column("boot_id", sa.String(64), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("ended_boots", sa.JSON(), nullable=False),
        sa.Column("report", sa.LargeBinary(), nullable=True),
        sa.Column("reported_at_s", sa.Double(), nullable=True),
        sa.Column("gone_since_s", sa.Double(), nullable=True),
    )
    op.create_table(
        "rig_runs",
        sa.Column("id", sa.String(63), primary_key=True),
        sa.Column(
            "rollout_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.ForeignKey("rollouts.id"),
            nullable=False,
        ),
        sa.Column("connection", sa.String(63), sa.ForeignKey("devices.connection"), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("bundles", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_s", sa.Double(), nullable=False),
        sa.Column("expires_at_s", sa.Double(), nullable=False),
        sa.Column("sent_at_s", sa.Double(), nullable=True),
        sa.Column("given_up_at_s", sa.Double(), nullable=True),
        sa.Column("answered_at_s", sa.Double(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.Column("certificate_pem", sa.Text(), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=True),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.UniqueConstraint("rollout_id", "connection", "attempt"),
    )
    op.create_index("ix_rig_runs_connection", "rig_runs", ["connection"])
