"""Rows of baseline sets can be a person's, and are erased with the rest that is kept of the person."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.create_table(
        "set_subjects",
        sa.Column("token", sa.String(32), primary_key=True),
        sa.Column("lookup", sa.String(64)),
    )
    is_there = sa.text("lookup IS NOT NULL")
    op.create_index("set_subjects_lookup", "set_subjects", ["lookup"], sqlite_where=is_there, postgresql_where=is_there)
