"""What devices were asked to measure for the compiler, and their signed answers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.create_table(
        "measurements",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("connection", sa.String(length=63), nullable=False),
        sa.Column("command", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_s", sa.Double(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("expires_at_s", sa.Double(), nullable=False),
        sa.Column("sent_at_s", sa.Double(), nullable=True),
        sa.Column("answered_at_s", sa.Double(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.Column("certificate_pem", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["connection"], ["devices.connection"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_measurements_connection", "measurements", ["connection", "created_at_s"])
    op.create_index("ix_measurements_expires_at_s", "measurements", ["expires_at_s"])
