"""What shows that two machines have one identity: reports of a boot that had ended, and until where it had come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.add_column("devices", sa.Column("clone_signs", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("devices", sa.Column("cloned_since_s", sa.Double(), nullable=True))
    # How far boots of before had come is not known: nothing that they say is taken for a sign.
    op.add_column("boots", sa.Column("seq", sa.BigInteger(), nullable=False, server_default=str(1 << 53)))
