"""Requests with a key of their own are remembered for a day, and what is spent of quotas outlasts a restart."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "remembered_requests",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite")),
        sa.Column("lookup", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=False),
    )
    op.create_index("remembered_requests_created", "remembered_requests", ["created"])
    op.create_table(
        "spent_quotas",
        sa.Column("account", sa.String(36), primary_key=True),
        sa.Column("seconds", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("period", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("member", sa.String(32), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("points", sa.BigInteger, nullable=False),
    )
