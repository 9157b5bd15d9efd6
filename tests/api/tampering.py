"""Records that are changed behind the ledger's back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import update

from service.ledger.tables import explanations, log

if TYPE_CHECKING:
    from tests.conftest import Service

Change = Callable[[dict[str, Any]], None]


def changed_record(service: Service, explanation: str, change: Change, tenant: str = "default") -> None:
    """Rewrites a stored record, what is sealed of it included, behind the ledger's back."""
    ledger = service.with_ledger.ledger
    stored = service.call(ledger.get(tenant, explanation))
    assert stored is not None
    content, personal = orjson.loads(stored.record), orjson.loads(stored.personal)
    record = {**content, **personal["answer"]}
    change(record)
    personal["answer"] = {name: value for name, value in record.items() if name not in content}
    logged = orjson.loads(stored.logged) | {"content": {name: record[name] for name in content}}
    opened = {"subject": None, "decision_id": None, "content": personal}
    sealed = service.services.vault.seal(orjson.dumps(opened), explanation, None, None)
    with service.database.begin() as connection:
        connection.execute(update(log).where(log.c.seq == stored.seq).values(record=orjson.dumps(logged)))
        connection.execute(update(explanations).where(explanations.c.seq == stored.seq).values(personal=sealed))


def tampered(name: str, value: Any) -> Change:
    """Puts the value at a place in a record, whose names are separated by dots."""

    def change(record: dict[str, Any]) -> None:
        *path, last = name.split(".")
        part = record
        for step in path:
            part = part[step]
        part[last] = value

    return change
