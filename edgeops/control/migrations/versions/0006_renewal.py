"""Certificates that were renewed: the one before, the serial numbers of older ones, and who is asked to renew."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.add_column("devices", sa.Column("previous_certificate_pem", sa.Text(), nullable=False, server_default=""))
    op.add_column("devices", sa.Column("older_certificates", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("devices", sa.Column("renewed_at_s", sa.Double(), nullable=True))
    op.add_column("devices", sa.Column("renew_wanted_at_s", sa.Double(), nullable=True))
