"""How bundles that run beside what serves compare with it, and since when those of a rollout's group are to serve."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.add_column("telemetry_rollups", sa.Column("shadow", sa.LargeBinary(), nullable=True))
    op.add_column("device_rollups", sa.Column("shadow", sa.LargeBinary(), nullable=True))
    op.add_column("rollout_groups", sa.Column("promoted_at_s", sa.Double(), nullable=True))
