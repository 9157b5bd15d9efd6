"""Jobs that have ended keep the counts of their rows. Those that ended before are counted as they were."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("failed", sa.BigInteger))
