"""A signed export: records with their proofs, in a zip that can be checked with nothing but a public key.

    records.ndjson     a line a record, in the order of the log:
                       {"seq", "record", "leaf", "personal", "tombstone", "path"}
    tombstones.ndjson  the same for the events by which records in it were erased, where they are not in it themselves
    checkpoint.json    {"body", "signature"}, in whose root every path ends
    keys.json          [{"statement", "signature", "endorsement"}, ...], the oldest first
    manifest.json      what was asked for, the number of records, and the sha256 and size of each file above
    manifest.sig.json  {"key", "signature"} over the bytes of manifest.json

`record` is the text that the leaf is the hash of, `personal` the text of what was sealed, null once erased. All is
written as it is read, in memory that does not grow with the number of records.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import IO, Any, Protocol

import orjson
from sqlalchemy import Engine, select

from service.ledger.checkpoints import Checkpoint, CheckpointSigner
from service.ledger.clock import machine_time
from service.ledger.database import database_in_reach
from service.ledger.entries import EXPLANATION, Stored
from service.ledger.moments import written_period
from service.ledger.sealing import Vault
from service.ledger.searches import Search
from service.ledger.searching import MAX_BYTES, fitting_places, read_in_log_order, read_places
from service.ledger.stored_tree import tree_in
from service.ledger.tables import log

FORMAT = 1
ROWS_AT_ONCE = 500
RECORDS, TOMBSTONES, CHECKPOINT, KEYS = "records.ndjson", "tombstones.ndjson", "checkpoint.json", "keys.json"
MANIFEST, MANIFEST_SIGNATURE = "manifest.json", "manifest.sig.json"


class Sink(Protocol):
    """Anything that bytes can be written to."""

    def write(self, data: bytes, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the log in an export. `record` is None where the record itself was erased."""

    seq: int
    record: bytes | None
    leaf: bytes
    personal: bytes | None = None
    tombstone: int | None = None


def asked_of(tenant: str | None, search: Search) -> dict[str, Any]:
    """What the manifest says was asked for. It holds the conditions, but never who a person is: only the records say
    that, until it is erased."""
    asked: dict[str, Any] = {"tenant": tenant}
    values = {field.name: getattr(search, field.name) for field in fields(Search)}
    conditions = {name: value for name, value in values.items() if value is not None and value != ()}
    if personal := [name for name in ("subject", "decision_id") if conditions.pop(name, None) is not None]:
        asked["named"] = personal
    if conditions:
        asked["conditions"] = conditions
    if period := written_period(search.created_from, search.created_to):
        asked["period"] = period
    return asked


def found_lines(engine: Engine, vault: Vault, tenant: str, search: Search, size: int) -> Iterator[Line]:
    """The tenant's explanations that `search` asks for, in the order of the log, up to its first `size` rows."""
    after = 0
    while True:
        with database_in_reach(), engine.connect() as connection:
            page = read_in_log_order(connection, vault, tenant, search, after, ROWS_AT_ONCE)
        if not page:
            return
        for stored in page:
            if stored.seq > size:
                return
            yield _line(stored)
        after = page[-1].seq


def all_lines(engine: Engine, vault: Vault, size: int) -> Iterator[Line]:
    """Every row of the log up to `size`, of all tenants, events included."""
    after = 0
    while after < size:
        last = min(after + ROWS_AT_ONCE, size)
        with database_in_reach(), engine.connect() as connection:
            places = fitting_places(connection, after, last)
            after = places[-1] if places else last
            rows = connection.execute(select(log).where(log.c.seq.in_(places)).order_by(log.c.seq)).all()
            explanation_places = [row.seq for row in rows if row.kind == EXPLANATION]
            lines = {stored.seq: _line(stored) for stored in read_places(connection, vault, explanation_places)}
        for row in rows:
            yield lines.get(row.seq) or Line(row.seq, row.record, row.leaf)


def write_export(
    file: IO[bytes],
    engine: Engine,
    signer: CheckpointSigner,
    checkpoint: Checkpoint,
    lines: Iterable[Line],
    asked: Mapping[str, Any],
    complete: bool = False,
) -> int:
    """Writes the export to `file`, which need not be seekable; returns the number of records.

    `lines` are in the order of the log, and the checkpoint covers all of them. `asked` goes into the manifest: whose
    records these are, and which. A `complete` export claims to hold the whole log.
    """
    digests: dict[str, dict[str, Any]] = {}
    erased: set[int] = set()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with _member(archive, RECORDS, digests) as sink:
            count = sum(_write_page(sink, engine, checkpoint, page, erased) for page in _pages(lines))
        tombstones = [] if complete else sorted(erased)
        with _member(archive, TOMBSTONES, digests) as sink:
            for page in _pages(_events_at(engine, tombstones)):
                _write_page(sink, engine, checkpoint, page, set())
        with _member(archive, CHECKPOINT, digests) as sink:
            sink.write(orjson.dumps(checkpoint.line))
        with _member(archive, KEYS, digests) as sink:
            sink.write(orjson.dumps([key.line for key in signer.chain()]))
        manifest = orjson.dumps(
            {
                "schema": FORMAT,
                "type": "export",
                "log": checkpoint.log,
                "size": checkpoint.size,
                "records": count,
                "complete": complete,
                "asked": dict(asked),
                "created": max(machine_time(), checkpoint.created),
                "files": digests,
            }
        )
        key, signature = signer.sign_content(manifest)
        archive.writestr(MANIFEST, manifest)
        archive.writestr(MANIFEST_SIGNATURE, orjson.dumps({"key": key, "signature": signature.hex()}))
    return count


def _line(stored: Stored) -> Line:
    erased = stored.tombstone is not None
    return Line(stored.seq, stored.logged or None, stored.leaf, None if erased else stored.opened, stored.tombstone)


def _events_at(engine: Engine, places: list[int]) -> Iterator[Line]:
    for start in range(0, len(places), ROWS_AT_ONCE):
        some = places[start : start + ROWS_AT_ONCE]
        with database_in_reach(), engine.connect() as connection:
            rows = connection.execute(select(log).where(log.c.seq.in_(some)).order_by(log.c.seq)).all()
        for row in rows:
            yield Line(row.seq, row.record, row.leaf)


def _pages(lines: Iterable[Line]) -> Iterator[list[Line]]:
    page: list[Line] = []
    size = 0
    for line in lines:
        page.append(line)
        size += len(line.record or b"") + len(line.personal or b"")
        if len(page) == ROWS_AT_ONCE or size >= MAX_BYTES:
            yield page
            page, size = [], 0
    if page:
        yield page


def _write_page(sink: Sink, engine: Engine, checkpoint: Checkpoint, page: list[Line], erased: set[int]) -> int:
    """Writes the lines, each with its path; adds the places of their tombstones to `erased`.

    Each page has its own tree, so that memory does not grow.
    """
    with database_in_reach(), engine.connect() as connection:
        tree = tree_in(connection)
        for line in page:
            if line.tombstone is not None:
                erased.add(line.tombstone)
            row = {
                "seq": line.seq,
                "record": None if line.record is None else line.record.decode(),
                "leaf": line.leaf.hex(),
                "personal": None if line.personal is None else line.personal.decode(),
                "tombstone": line.tombstone,
                "path": [node.hex() for node in tree.inclusion(line.seq - 1, checkpoint.size)],
            }
            sink.write(orjson.dumps(row) + b"\n")
    return len(page)


class _DigestedSink:
    """A sink that computes the digest and the size of what is written through it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes, /) -> None:
        self._sink.write(data)
        self._digest.update(data)
        self._bytes += len(data)

    @property
    def digest(self) -> dict[str, Any]:
        """The digest and the size as the manifest holds them."""
        return {"sha256": self._digest.hexdigest(), "bytes": self._bytes}


@contextmanager
def _member(archive: zipfile.ZipFile, name: str, digests: dict[str, dict[str, Any]]) -> Iterator[_DigestedSink]:
    with archive.open(name, "w", force_zip64=True) as member:
        digested = _DigestedSink(member)
        yield digested
    digests[name] = digested.digest
