"""The list of erasures, a file beside the database: a backup from before an erasure brings the person back, and only a
list outside the database shows it.

It consists of lines, `{"body", "mac"}`, one for each event of the kind `erasure`. The body is JSON:

    {"schema": 1, "type": "erasure", "place", "leaf", "tenant", "created", "tokens": [...], "job_rows",
     "set_tokens": [...], "previous"}

`place` and `leaf` are those of the event in the log. `tokens` are the random tokens under which the ledger knew the
person, which identify nobody once the rows of `subjects` are gone; `set_tokens` are those of the person's rows of
baseline sets, and left out where there were none. `previous` is the SHA-256 of the body before, `mac` the HMAC-SHA-256
of the body under a key derived from the master key: without that key no line can be added, changed or removed unseen.
Ship the file together with that of the checkpoints.
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
    """An erasure: the place and the leaf of its event, and the tokens of the person.

    `job_rows` is the number of rows of jobs that it ended, `set_tokens` are the rows of baseline sets that it erased,
    `created` is its time in microseconds since the epoch, UTC.
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
        """The erasures listed, and what in the file was changed or removed."""
        if not self._path.exists():
            return [], []
        erasures, faults, before = [], [], None
        for number, line in enumerate(whole_lines(self._path), 1):
            try:
                signed = orjson.loads(line)
                body = signed["body"].encode()
                if not hmac.compare_digest(self._mac(body), signed["mac"]):
                    raise ValueError("the code is not that of the master key")
                content = orjson.loads(body)
                erasures.append(_read_body(content))
            except (ValueError, TypeError, KeyError, AttributeError):
                faults.append(f"line {number} of {self._path.name} is not what was written")
                continue
            if content["previous"] != before:
                faults.append(f"line {number} of {self._path.name} does not follow the one before it")
            before = hashlib.sha256(body).hexdigest()
        return erasures, faults

    def add_from(self, engine: Engine, after: int = 0) -> None:
        """Adds the erasures after that place of the log that are not listed yet.

        A file that cannot be written is reported in the service's log; the erasures themselves are done. Raises
        LedgerUnavailable.
        """
        columns = select(events, log.c.record, log.c.leaf).join_from(events, log, log.c.seq == events.c.seq)
        query = columns.where(events.c.kind == ERASURE, events.c.seq > after).order_by(events.c.seq)
        with database_in_reach(), engine.connect() as connection:
            rows = connection.execute(query).all()
        if not rows:
            return
        try:
            listed = {erasure.leaf for erasure in self.read()[0]}
            for row in rows:
                if row.leaf.hex() not in listed:
                    event = stored_event(row)
                    tokens = event.details.get("tokens") or ([event.about] if event.about else [])
                    job_rows, set_tokens = event.details.get("job_rows", 0), event.details.get("set_tokens", [])
                    where = (row.seq, row.leaf.hex(), row.tenant, row.created)
                    self._append(ListedErasure(*where, (*tokens,), job_rows, (*set_tokens,)))
        except OSError as error:
            _log.error("the last erasures are not in %s: %s", self._path, error.strerror)

    def _append(self, erasure: ListedErasure) -> None:
        def line(before: bytes | None) -> bytes:
            previous = None if before is None else _digest_of_body(before)
            body = orjson.dumps(
                {
                    "schema": 1,
                    "type": "erasure",
                    "place": erasure.place,
                    "leaf": erasure.leaf,
                    "tenant": erasure.tenant,
                    "created": erasure.created,
                    "tokens": erasure.tokens,
                    "job_rows": erasure.job_rows,
                    **({"set_tokens": erasure.set_tokens} if erasure.set_tokens else {}),
                    "previous": previous,
                }
            )
            return orjson.dumps({"body": body.decode(), "mac": self._mac(body)})

        append_line(self._path, line)

    def _mac(self, body: bytes) -> str:
        return hmac.digest(self._key, body, hashlib.sha256).hex()


def _read_body(content: dict[str, object]) -> ListedErasure:
    """The erasure in a body. Raises ValueError, TypeError or KeyError for another body."""
    tokens: Sequence[object] = content["tokens"]  # type: ignore[assignment]
    set_tokens: Sequence[object] = content.get("set_tokens", ())  # type: ignore[assignment]
    if (content["schema"], content["type"]) != (1, "erasure"):
        raise ValueError("not an erasure")
    return ListedErasure(
        int(str(content["place"])),
        str(content["leaf"]),
        str(content["tenant"]),
        int(str(content["created"])),
        tuple(map(str, tokens)),
        int(str(content["job_rows"])),
        tuple(map(str, set_tokens)),
    )


def _digest_of_body(line: bytes) -> str | None:
    """The SHA-256 of the body of a line; None where the line was changed, which the next line then shows."""
    try:
        return hashlib.sha256(orjson.loads(line)["body"].encode()).hexdigest()
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
