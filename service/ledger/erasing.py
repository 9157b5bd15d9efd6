"""Erasure of everything kept of a person, in one transaction with the event that says so, the tombstone.

It destroys the key under which everything of the person's is sealed, and the sealed parts with it; the rows of the log
stay, so that every proof still holds. What jobs hold of theirs is dropped and never explained, and their rows of
baseline sets are removed from the files once the transaction is committed (`set_subjects`). The pseudonym of the
decision stays with an erased explanation, so that somebody who knows the decision finds the tombstone; the tombstone
commits to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, false, func, select, update

from service.errors import NotFound
from service.ledger.database import database_in_reach, serialised
from service.ledger.entries import ERASURE, Event, RequestKey
from service.ledger.erasure_list import ListedErasure
from service.ledger.events import insert_event
from service.ledger.job_erasing import end_all_rows_of, end_rows_of, forget_in_specs
from service.ledger.legal_holds import refuse_if_held
from service.ledger.remembering import remember
from service.ledger.scrubbing import scrub
from service.ledger.sealing import Vault
from service.ledger.searching import read_places, subject_tokens
from service.ledger.tables import explanations, set_subjects, subjects
from service.ledger.tombstones import clear, decisions_at, tombstone_details

TOKENS_AT_ONCE = 1000
"""Tokens of rows of baseline sets in one statement."""


@dataclass(frozen=True, slots=True)
class Erased:
    """The numbers of records, of rows that jobs had still to explain and of rows of baseline sets that were erased, and
    the place of the event that did it, `tombstone`. `exports` is the number of exports that had been asked for by the
    person's name, which is gone from them.
    """

    records: int
    tombstone: int
    job_rows: int = 0
    exports: int = 0
    set_rows: int = 0


def erase(
    engine: Engine,
    vault: Vault,
    tenant: str,
    subject: str,
    key_id: str,
    reason: str = "",
    key: RequestKey | None = None,
) -> Erased:
    """Destroys everything of the subject's that was sealed, for good; what jobs hold of theirs is never explained.

    With a `key` of the request, the answer is remembered under it. Raises HeldByLaw, NotFound where nothing is kept of
    the subject, LedgerUnavailable.
    """
    with database_in_reach(), serialised(engine).begin() as connection:
        tokens = subject_tokens(connection, vault, tenant, subject)
        refuse_if_held(connection, tenant, tokens)
        lookups = vault.lookups(tenant, subject)
        job_rows = end_rows_of(connection, lookups)
        set_tokens = _disown_set_rows(connection, set_subjects.c.lookup.in_(lookups))
        is_in_tokens = explanations.c.subject.in_(tokens) if tokens else false()  # never the NULL of nobody's records
        is_theirs = and_(explanations.c.tenant == tenant, is_in_tokens)
        places = connection.scalars(select(explanations.c.seq).where(is_theirs).order_by(explanations.c.seq)).all()
        exports = forget_in_specs(connection, vault, tenant, subject, decisions_at(connection, places).values())
        if not tokens and not job_rows and not exports and not set_tokens:
            raise NotFound("nothing is kept of this subject")
        several = {"tokens": tokens} if len(tokens) > 1 else {}  # `about` names the only one
        counts = _counts(job_rows, exports, set_tokens)
        details = {**tombstone_details(connection, places), **several, **counts, "reason": reason}
        about = tokens[0] if tokens else None
        tombstone = insert_event(
            connection, Event(kind=ERASURE, tenant=tenant, key_id=key_id, about=about, details=details)
        )
        clear(connection, is_theirs, places, tombstone)
        connection.execute(delete(subjects).where(subjects.c.token.in_(tokens)))
        erased = Erased(len(places), tombstone, job_rows, exports, len(set_tokens))
        if key is not None:
            remember(connection, key.remembered(asdict(erased)), tombstone)
    scrub(engine)
    return erased


def erase_again(engine: Engine, vault: Vault, listed: ListedErasure, key_id: str) -> Erased | None:
    """Destroys what an older copy of the database brought back of a person who had been erased; None if it did not.

    A hold in that copy does not count: it had been released before the erasure. Where the person was only known by rows
    of jobs, nobody can tell which rows those are, so all waiting rows of the tenant's that name a person end. Raises
    LedgerUnavailable.
    """
    with database_in_reach(), serialised(engine).begin() as connection:
        rows = connection.execute(select(subjects).where(subjects.c.token.in_(listed.tokens))).all()
        tokens = [row.token for row in rows]
        names = _names_of(connection, vault, tokens)
        lookups = {lookup for name in names for lookup in vault.lookups(listed.tenant, name)}
        lookups |= {row.lookup for row in rows}
        job_rows = end_rows_of(connection, lookups)
        if listed.job_rows and not listed.tokens:
            job_rows += end_all_rows_of(connection, listed.tenant)
        set_tokens = _disown_set_rows(connection, set_subjects.c.lookup.in_(lookups))
        for start in range(0, len(listed.set_tokens), TOKENS_AT_ONCE):
            some = listed.set_tokens[start : start + TOKENS_AT_ONCE]
            is_back = and_(set_subjects.c.token.in_(some), set_subjects.c.lookup.is_not(None))
            set_tokens += _disown_set_rows(connection, is_back)
        if not rows and not job_rows and not set_tokens:
            return None
        is_theirs = and_(explanations.c.tenant == listed.tenant, explanations.c.subject.in_(tokens))
        places = connection.scalars(select(explanations.c.seq).where(is_theirs).order_by(explanations.c.seq)).all()
        decisions = decisions_at(connection, places).values()
        exports = sum(forget_in_specs(connection, vault, listed.tenant, name, decisions) for name in names)
        counts = {"job_rows": job_rows} | _counts(job_rows, exports, set_tokens)
        again = {"place": listed.place, "leaf": listed.leaf, "created": listed.created}
        details = {**tombstone_details(connection, places), "tokens": tokens, **counts, "again": again}
        about = tokens[0] if tokens else None
        event = Event(kind=ERASURE, tenant=listed.tenant, key_id=key_id, about=about, details=details)
        tombstone = insert_event(connection, event)
        clear(connection, is_theirs, places, tombstone)
        connection.execute(delete(subjects).where(subjects.c.token.in_(tokens)))
    scrub(engine)
    return Erased(len(places), tombstone, job_rows, exports, len(set_tokens))


def _disown_set_rows(connection: Connection, which: ColumnElement[bool]) -> list[str]:
    """Takes the person from rows of baseline sets, so that they are removed from the files; returns their tokens."""
    tokens = connection.scalars(select(set_subjects.c.token).where(which).order_by(set_subjects.c.token)).all()
    connection.execute(update(set_subjects).where(which).values(lookup=None))
    return list(tokens)


def _counts(job_rows: int, exports: int, set_tokens: Sequence[str]) -> dict[str, Any]:
    """What a tombstone says of what was erased beside records, where there was any."""
    counts = {"job_rows": job_rows, "exports": exports, "set_rows": len(set_tokens), "set_tokens": [*set_tokens]}
    return {name: count for name, count in counts.items() if count}


def _names_of(connection: Connection, vault: Vault, tokens: Sequence[str]) -> set[str]:
    """The names of the subjects of these tokens, from the newest explanation of each."""
    is_theirs = explanations.c.subject.in_(tokens)
    newest = select(func.max(explanations.c.seq)).where(is_theirs).group_by(explanations.c.subject)
    names: set[str] = set()
    for place in connection.scalars(newest).all():
        # a damaged record has no name to read; verification reports it
        names |= {stored.subject for stored in read_places(connection, vault, [place]) if stored.subject is not None}
    return names
