"""Whether a unit's desired state waits for what the site holds updates for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.add_column("units", sa.Column("override_holds", sa.Boolean(), nullable=False, server_default=sa.false()))
