"""The list of erasures, kept beside the database: a copy of the database from before one brings the person back, and
only what was kept apart can tell.

A file of lines, `{"body", "mac"}`, one for each event of the kind `erasure`. The body is JSON:

    {"schema": 1, "type": "erasure", "place", "leaf", "tenant", "created", "tokens": [...], "job_rows",
     "set_tokens": [...], "previous"}

`place` and `leaf` are those of the event in the log, `tokens` the random tokens under which the ledger knew the person,
which lead to nobody once the rows of `subjects` are gone; `set_tokens` those of the person's rows of baseline sets, and
nothing where there were none. `previous` is the SHA-256 of the body before, `mac` the
HMAC-SHA-256 of the body under a key derived from the master key: no line can be made, changed or taken out by whoever
has not that. Ship the file together with that of the checkpoints.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from sqlalchemy import Engine, select

from service.ledger.database import database_in_reach
from service.ledger.entries import ERASURE
from service.ledger.events import stored_event
from service.ledger.growing_files import append_line, whole_lines
from service.ledger.sealing import Vault
from service.ledger.tables import events, log

NAME = "erasures.jsonl"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListedErasure:
    """An erasure that was made: the place and the leaf of its event, and the person's tokens.

    `job_rows` is how many rows of jobs ended with it, `set_tokens` which rows of baseline sets went with it, `created`
    its time in microseconds since the epoch, UTC.
    """

    place: int
    leaf: str
    tenant: str
    created: int
    tokens: tuple[str, ...]
    job_rows: int
    set_tokens: tuple[str, ...] = ()


class ErasureList:
    """The file. Every call blocks."""

    def __init__(self, path: Path, vault: Vault) -> None:
        self._path = path
        self._key = vault.derived("erasures")

    @property
    def path(self) -> Path:
        return self._path

    def read(self) -> tuple[list[ListedErasure], list[str]]:
        """What is listed, and what of the file is not as it was written."""
        if not self._path.exists():
            return [], []
        found, faults, before = [], [], None
        for number, line in enumerate(whole_lines(self._path), 1):
            try:
                said = orjson.loads(line)
                body = said["body"].encode()
                if not hmac.compare_digest(self._mac(body), said["mac"]):
                    raise ValueError("another key's")
                listed = orjson.loads(body)
                found.append(_listed(listed))
            except (ValueError, TypeError, KeyError, AttributeError):
                faults.append(f"line {number} of {self._path.name} is not what was written")
                continue
            if listed["previous"] != before:
                faults.append(f"line {number} of {self._path.name} does not follow the one before it")
            before = hashlib.sha256(body).hexdigest()
        return found, faults

    def add_from(self, engine: Engine, after: int = 0) -> None:
        """Adds the erasures behind that place of the log which are not listed yet.

        A file that cannot be written is told in the log: the erasures themselves stand. Raises LedgerUnavailable.
        """
        columns = select(events, log.c.record, log.c.leaf).join_from(events, log, log.c.seq == events.c.seq)
        query = columns.where(events.c.kind == ERASURE, events.c.seq > after).order_by(events.c.seq)
        with database_in_reach(), engine.connect() as connection:
            rows = connection.execute(query).all()
        if not rows:
            return
        try:
            listed = {one.leaf for one in self.read()[0]}
            for row in rows:
                if row.leaf.hex() not in listed:
                    event = stored_event(row)
                    known = event.details.get("tokens") or ([event.about] if event.about else [])
                    ended, in_sets = event.details.get("job_rows", 0), event.details.get("set_tokens", [])
                    where = (row.seq, row.leaf.hex(), row.tenant, row.created)
                    self._append(ListedErasure(*where, (*known,), ended, (*in_sets,)))
        except OSError as error:
            _log.error("the last erasures are not in %s: %s", self._path, error.strerror)

    def _append(self, one: ListedErasure) -> None:
        def line(before: bytes | None) -> bytes:
            previous = None if before is None else _digest_of_body(before)
            body = orjson.dumps(
                {
                    "schema": 1,
                    "type": "erasure",
                    "place": one.place,
                    "leaf": one.leaf,
                    "tenant": one.tenant,
                    "created": one.created,
                    "tokens": one.tokens,
                    "job_rows": one.job_rows,
                    **({"set_tokens": one.set_tokens} if one.set_tokens else {}),
                    "previous": previous,
                }
            )
            return orjson.dumps({"body": body.decode(), "mac": self._mac(body)})

        append_line(self._path, line)

    def _mac(self, body: bytes) -> str:
        return hmac.digest(self._key, body, hashlib.sha256).hex()


def _listed(said: dict[str, object]) -> ListedErasure:
    """Raises ValueError, TypeError or KeyError for a body of something else."""
    tokens: Sequence[object] = said["tokens"]  # type: ignore[assignment]
    set_tokens: Sequence[object] = said.get("set_tokens", ())  # type: ignore[assignment]
    if (said["schema"], said["type"]) != (1, "erasure"):
        raise ValueError("this is no erasure")
    return ListedErasure(
        int(str(said["place"])),
        str(said["leaf"]),
        str(said["tenant"]),
        int(str(said["created"])),
        tuple(map(str, tokens)),
        int(str(said["job_rows"])),
        tuple(map(str, set_tokens)),
    )


def _digest_of_body(line: bytes) -> str | None:
    """None of a line that was changed: the next one tells that it follows none."""
    try:
        return hashlib.sha256(orjson.loads(line)["body"].encode()).hexdigest()
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
