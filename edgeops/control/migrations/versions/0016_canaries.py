"""Canaries with a control arm, members that went back, and an audit log to which rows are only ever added."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.add_column("rollouts", sa.Column("controlled", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("rollout_members", sa.Column("returned_generation", sa.BigInteger(), nullable=True))
    op.add_column("rollout_members", sa.Column("arm", sa.String(16), nullable=False, server_default=""))
    op.create_table(
        "arm_rollups",
        sa.Column(
            "rollout_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.ForeignKey("rollouts.id"),
            primary_key=True,
        ),
        sa.Column("profile", sa.String(63), primary_key=True),
        sa.Column("arm", sa.String(16), primary_key=True),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.JSON(), nullable=False),
        sa.Column("latency_ms", sa.LargeBinary(), nullable=False),
        sa.Column("histograms", sa.JSON(), nullable=False),
        sa.Column("temperature_max_c", sa.Double(), nullable=True),
        sa.Column("shadow", sa.LargeBinary(), nullable=True),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION audit_is_kept() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the audit log is only added to'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_is_kept()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_is_kept_{change.lower()} BEFORE {change} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END"
        )
