"""How often a unit was given the release of a rollout."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.add_column("rollout_members", sa.Column("first_generation", sa.BigInteger(), nullable=True))
    op.add_column("rollout_members", sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"))
    op.execute("UPDATE rollout_members SET first_generation = generation")
    op.execute("UPDATE rollout_members SET attempts = 1 WHERE generation IS NOT NULL")
