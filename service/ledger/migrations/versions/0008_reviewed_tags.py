"""Explanations that somebody reviewed have a tag, so that they are searched for by index."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute(
        "INSERT INTO explanation_tags (seq, name, value, tenant, created)"
        " SELECT DISTINCT explanations.seq, 'reviewed', 'true', explanations.tenant, explanations.created"
        " FROM events JOIN explanations ON explanations.id = events.about AND explanations.tenant = events.tenant"
        " WHERE events.kind = 'review'"
    )
