"""What devices are asked to do once, and the parts of their answers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.create_table(
        "commands",
        sa.Column("id", sa.String(63), primary_key=True),
        sa.Column("connection", sa.String(63), nullable=False),
        sa.Column("unit", sa.String(63), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("wish", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_s", sa.Double(), nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("expires_at_s", sa.Double(), nullable=False),
        sa.Column("published_at_s", sa.Double(), nullable=True),
        sa.Column("answered_at_s", sa.Double(), nullable=True),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("detail", sa.String(512), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )
    op.create_index("ix_commands_connection", "commands", ["connection"])
    op.create_index("ix_commands_state", "commands", ["state"])
    op.create_table(
        "command_parts",
        sa.Column("command_id", sa.String(63), sa.ForeignKey("commands.id"), primary_key=True),
        sa.Column("offset", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
    )
