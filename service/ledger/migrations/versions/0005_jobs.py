"""Jobs and their rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_text = sa.String(200)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("tenant", _text, nullable=False),
        sa.Column("key_id", _text, nullable=False),
        sa.Column("kind", _text, nullable=False),
        sa.Column("state", _text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.BigInteger),
        sa.Column("spec", sa.LargeBinary, nullable=False),
        sa.Column("total", sa.BigInteger),
        sa.Column("done", sa.BigInteger, nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("owner", sa.String(36)),
        sa.Column("leased_until", sa.BigInteger),
    )
    op.create_index("jobs_newest", "jobs", ["tenant", "created", "id"])
    op.create_index("jobs_state", "jobs", ["state", "leased_until"])
    op.create_table(
        "job_rows",
        sa.Column("job_id", sa.String(36), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("explanation_id", sa.String(36), nullable=False),
        sa.Column("source", sa.String(36)),
        sa.Column("payload", sa.LargeBinary),
        sa.Column("outcome", _text),
        sa.Column("detail", sa.Text),
        sqlite_with_rowid=False,
    )
