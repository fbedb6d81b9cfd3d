"""From where on a bundle's drift is no chance, of how many requests it is, and what devices say of themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.add_column("telemetry_rollups", sa.Column("sampled", sa.BigInteger(), nullable=True))
    op.add_column("device_rollups", sa.Column("sampled", sa.BigInteger(), nullable=True))
    op.add_column("arm_rollups", sa.Column("sampled", sa.BigInteger(), nullable=True))
    op.add_column("rollout_profiles", sa.Column("reference_samples", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("rollout_profiles", sa.Column("calibration", sa.LargeBinary(), nullable=True))
    op.add_column("devices", sa.Column("figures", sa.LargeBinary(), nullable=True))
    op.add_column("devices", sa.Column("figures_at_s", sa.Double(), nullable=True))
    op.add_column("devices", sa.Column("dropped_windows", sa.BigInteger(), nullable=False, server_default="0"))
