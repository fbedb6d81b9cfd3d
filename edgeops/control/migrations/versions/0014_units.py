"""Units have a profile and labels of their own, and are known by when they came: there are some behind gateways."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form; a device itself has the profile that it joined with."""
    op.add_column("units", sa.Column("profile", sa.String(63), nullable=False, server_default=""))
    op.add_column("units", sa.Column("labels", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("units", sa.Column("added_at_s", sa.Double(), nullable=False, server_default="0"))
    mine = "FROM devices WHERE devices.connection = units.connection"
    op.execute(f"UPDATE units SET profile = (SELECT profile {mine}) WHERE unit = 'self'")  # noqa: S608  no input
    op.execute(f"UPDATE units SET added_at_s = (SELECT enrolled_at_s {mine})")  # noqa: S608
    op.create_index("ix_units_profile", "units", ["profile"])
