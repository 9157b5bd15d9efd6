"""Personal parts that lie open are sealed. Their records, and so their leaves, stay as they are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

from service.ledger.sealing import Subject, Vault, owner_of

revision = "0004"
down_revision = "0003"

_TOGETHER = 1000

_explanations = sa.table(
    "explanations",
    *map(sa.column, ("seq", "id", "tenant", "subject", "decision_id", "personal")),
)
_subjects = sa.table("subjects", *map(sa.column, ("token", "lookup", "key")))


def upgrade() -> None:
    vault: Vault | None = context.config.attributes.get("vault")
    connection = op.get_bind()
    columns = _explanations.c
    last = 0
    while rows := connection.execute(
        sa.select(_explanations).where(columns.seq > last).order_by(columns.seq).limit(_TOGETHER)
    ).all():
        if vault is None:
            raise ValueError("what is recorded already is sealed with a master key; give one")
        for row in rows:
            subject = None if row.subject is None else _subject(connection, vault, row.tenant, row.subject)
            decision = None if row.decision_id is None else vault.decision(row.tenant, row.decision_id)
            connection.execute(
                sa.update(_explanations)
                .where(columns.seq == row.seq)
                .values(
                    personal=vault.seal(row.personal, row.id, subject, decision),
                    subject=None if subject is None else subject.token,
                    decision_id=decision,
                )
            )
        last = rows[-1].seq


def _subject(connection: sa.Connection, vault: Vault, tenant: str, name: str) -> Subject:
    lookup = vault.lookup(tenant, name)
    row = connection.execute(sa.select(_subjects).where(_subjects.c.lookup == lookup)).one_or_none()
    if row is not None:
        return Subject(row.token, vault.unwrap(row.key, owner_of(row.token, lookup)))
    subject = vault.new_subject()
    wrapped = vault.wrap(subject.key, owner_of(subject.token, lookup))
    connection.execute(sa.insert(_subjects).values(token=subject.token, lookup=lookup, key=wrapped))
    return subject
