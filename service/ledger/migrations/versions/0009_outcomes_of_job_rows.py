"""The rows of a job are counted by their outcomes."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_index("job_rows_outcome", "job_rows", ["job_id", "outcome"])
