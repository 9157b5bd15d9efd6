"""Quotas and policies of keys, and the account that keys which replace one another have in common."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("keys", sa.Column("account", sa.String(36)))
    op.add_column("keys", sa.Column("quota", sa.Text))
    op.add_column("keys", sa.Column("policy", sa.Text))
