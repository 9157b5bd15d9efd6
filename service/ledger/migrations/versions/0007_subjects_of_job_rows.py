"""Rows of jobs that wait name their subject by its pseudonym, so that an erasure finds them."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import context, op

from service.ledger.sealing import Vault

revision = "0007"
down_revision = "0006"

_TOGETHER = 500

_jobs = sa.table("jobs", *map(sa.column, ("id", "tenant")))
_rows = sa.table(
    "job_rows", *map(sa.column, ("job_id", "number", "explanation_id", "source", "payload", "outcome", "subject"))
)
_explanations = sa.table("explanations", *map(sa.column, ("id", "subject")))
_subjects = sa.table("subjects", *map(sa.column, ("token", "lookup")))


def upgrade() -> None:
    op.add_column("job_rows", sa.Column("subject", sa.String(64)))
    op.create_index(
        "job_rows_subject",
        "job_rows",
        ["subject"],
        sqlite_where=sa.text("subject IS NOT NULL"),
        postgresql_where=sa.text("subject IS NOT NULL"),
    )
    _name_subjects_of_sources()
    _name_subjects_of_payloads(context.config.attributes.get("vault"))


def _name_subjects_of_sources() -> None:
    lookup = (
        sa.select(_subjects.c.lookup)
        .join_from(_explanations, _subjects, _subjects.c.token == _explanations.c.subject)
        .where(_explanations.c.id == _rows.c.source)
        .scalar_subquery()
    )
    waiting = (_rows.c.source.is_not(None), _rows.c.outcome.is_(None))
    op.get_bind().execute(sa.update(_rows).where(*waiting).values(subject=lookup))


def _name_subjects_of_payloads(vault: Vault | None) -> None:
    connection, columns = op.get_bind(), _rows.c
    order = sa.tuple_(columns.job_id, columns.number)
    query = sa.select(columns.job_id, columns.number, columns.explanation_id, columns.payload, _jobs.c.tenant)
    query = query.join_from(_rows, _jobs, _jobs.c.id == columns.job_id).where(columns.payload.is_not(None))
    query = query.order_by(columns.job_id, columns.number).limit(_TOGETHER)
    after = ("", -1)
    while rows := connection.execute(query.where(order > sa.tuple_(*map(sa.literal, after)))).all():
        if vault is None:
            raise ValueError("what waits in jobs is sealed with a master key; give one")
        for row in rows:
            subject = json.loads(vault.open(row.payload, row.explanation_id, None))["context"]["subject"]
            if subject is not None:
                this = (columns.job_id == row.job_id, columns.number == row.number)
                named = sa.update(_rows).where(*this).values(subject=vault.lookup(row.tenant, subject))
                connection.execute(named)
        after = (rows[-1].job_id, rows[-1].number)
