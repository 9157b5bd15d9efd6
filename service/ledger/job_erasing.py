"""What the erasure of a person does to jobs: rows that hold their input end, exports asked for by their name forget it.

The functions that change something are for a transaction that holds the write lock. The ledger takes no explanation of
a row that has ended, under the same lock, so what was being computed at that moment is not recorded.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson
from sqlalchemy import Connection, and_, func, select, update

from service.ledger.clock import machine_time
from service.ledger.jobs import record_end
from service.ledger.sealing import CannotBeOpened, Vault
from service.ledger.stored_jobs import EMPTIED, EXPORT, FAILED, UNFINISHED, State
from service.ledger.tables import job_rows, jobs

ERASED = "the person whose input this was has been erased"
ERASED_SEARCH = "the person whose records this was to hold has been erased"


def count_rows_of(connection: Connection, lookups: Collection[str]) -> int:
    """The number of unfinished rows that hold input of a person, known by pseudonyms."""
    is_theirs = and_(job_rows.c.subject.in_(lookups), job_rows.c.outcome.is_(None))
    return connection.execute(select(func.count()).select_from(job_rows).where(is_theirs)).scalar_one()


def end_rows_of(connection: Connection, lookups: Collection[str]) -> int:
    """Ends the rows that hold input of a person, known by pseudonyms, and drops it; returns their number."""
    is_theirs = and_(job_rows.c.subject.in_(lookups), job_rows.c.outcome.is_(None))
    in_order = select(job_rows.c.number).where(is_theirs).order_by(job_rows.c.job_id, job_rows.c.number)
    connection.execute(in_order.with_for_update())  # in the order of `Jobs.finish_rows`, so that neither deadlocks
    ended = {"outcome": FAILED, "detail": ERASED, **EMPTIED}
    return connection.execute(update(job_rows).where(is_theirs).values(ended)).rowcount


def end_all_rows_of(connection: Connection, tenant: str) -> int:
    """Ends all rows of a tenant's that hold input of any person; returns their number."""
    of_tenant = select(jobs.c.id).where(jobs.c.tenant == tenant)
    lookups = select(job_rows.c.subject).where(job_rows.c.job_id.in_(of_tenant), job_rows.c.subject.is_not(None))
    return sum(end_rows_of(connection, [lookup]) for lookup in connection.scalars(lookups.distinct()).all())


def forget_in_specs(connection: Connection, vault: Vault, tenant: str, subject: str, decisions: Collection[str]) -> int:
    """Drops the search from the exports asked for by the person's name, or by one of these decisions of theirs, known
    by pseudonyms; those that are not finished end. Returns the number of exports."""
    lookups, pseudonyms = set(vault.lookups(tenant, subject)), set(decisions)
    count = 0
    is_export = and_(jobs.c.tenant == tenant, jobs.c.kind == EXPORT)
    for export in connection.execute(select(jobs.c.id, jobs.c.spec).where(is_export)).all():
        try:
            spec = orjson.loads(vault.open(export.spec, export.id, None))
        except CannotBeOpened:  # then it cannot name anybody either
            continue
        if not _names_person(spec.get("search") or {}, vault, tenant, lookups, pseudonyms):
            continue
        count += 1
        del spec["search"]
        is_this = jobs.c.id == export.id
        sealed = vault.seal(orjson.dumps(spec), export.id, None, None)
        connection.execute(update(jobs).where(is_this).values(spec=sealed))
        ended = {
            "state": State.FAILED,
            "ended": machine_time(),
            "detail": ERASED_SEARCH,
            "owner": None,
            "leased_until": None,
        }
        if connection.execute(update(jobs).where(is_this, jobs.c.state.in_(UNFINISHED)).values(ended)).rowcount:
            record_end(connection, export.id)
    return count


def _names_person(
    search: dict[str, Any], vault: Vault, tenant: str, lookups: set[str], decisions: Collection[str]
) -> bool:
    """Whether the search of an export asks for a person of these pseudonyms, or for one of these decisions."""
    name, decision = search.get("subject"), search.get("decision_id")
    if name is not None and not lookups.isdisjoint(vault.lookups(tenant, name)):
        return True
    return decision is not None and vault.decision(tenant, decision) in decisions
