"""The log holds what becomes of jobs: those that are there are entered as they stand."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from service.ledger.entries import JOB_KEPT, Event
from service.ledger.events import insert_event
from service.ledger.job_history import CREATION_COLUMNS, END_COLUMNS, RowsDigest, add_identity, add_outcome

revision = "0011"
down_revision = "0010"

_SCHEMA = "schema"
"""Who keeps the jobs: the change of the schema."""

_jobs = sa.table("jobs", *map(sa.column, dict.fromkeys(("id", "tenant", "key_id", *CREATION_COLUMNS, *END_COLUMNS))))
_rows = sa.table("job_rows", *map(sa.column, ("job_id", "number", "explanation_id", "source", "outcome", "detail")))


def upgrade() -> None:
    connection = op.get_bind()
    for job in connection.execute(sa.select(_jobs).order_by(_jobs.c.created, _jobs.c.id)).all():
        made, became = RowsDigest(), RowsDigest()
        for row in connection.execute(sa.select(_rows).where(_rows.c.job_id == job.id).order_by(_rows.c.number)):
            add_identity(made, row)
            add_outcome(became, row)
        details = {
            "key_id": job.key_id,
            "rows": made.count_and_digest,
            **{name: getattr(job, name) for name in CREATION_COLUMNS},
        }
        if job.ended is not None:
            details |= {name: getattr(job, name) for name in END_COLUMNS} | {"outcomes": became.count_and_digest}
        insert_event(connection, Event(kind=JOB_KEPT, tenant=job.tenant, key_id=_SCHEMA, about=job.id, details=details))
