"""What values looked like and how hot devices were, summed up; and what a rollout's bundles expect of values."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.add_column("telemetry_rollups", sa.Column("histograms", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("telemetry_rollups", sa.Column("temperature_max_c", sa.Double(), nullable=True))
    op.add_column("rollout_profiles", sa.Column("reference", sa.JSON(), nullable=False, server_default="{}"))
