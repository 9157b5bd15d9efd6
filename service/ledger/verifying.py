"""Verification of the whole ledger in its database: every column of every row, against the log and what was signed.

It reads the log from its beginning, a page at a time, in one snapshot, while the service goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, Row, Table, func, not_, or_, select

from service.ledger.checkpoints import Checkpoint, log_size, read_body, read_line
from service.ledger.database import database_in_reach
from service.ledger.entries import EXPLANATION, REVIEW, TOMBSTONE_KINDS
from service.ledger.erasure_list import NAME, ErasureList
from service.ledger.export_checking import MALFORMED, Verdict, checkpoint_faults
from service.ledger.job_history import JOB_KINDS, JobHistory
from service.ledger.key_history import KEY_KINDS, KeyHistory
from service.ledger.leaves import covers, decisions_digest, has_schema, read_head, read_opened
from service.ledger.merkle import STORED_HEIGHTS, GrowingTree, leaf_hash
from service.ledger.sealing import NO_TOKEN, CannotBeOpened, Sealed, Vault, owner_of, unpack
from service.ledger.signing import SigningKey, chain_faults, read_statement
from service.ledger.stored_types import type_faults
from service.ledger.tables import (
    REVIEWED,
    checkpoints,
    events,
    explanation_tags,
    explanations,
    keys,
    log,
    nodes,
    set_subjects,
    signing_keys,
    subjects,
)

TOGETHER = 500
SLACK = 10 * 60 * 1_000_000
"""Microseconds by which the clocks of hosts may differ, and a record may wait until it is appended."""

_COLUMNS = ("id", "tenant", "created", "key_id", "model", "version", "method", "label", "converged", "retention")


def verify_ledger(engine: Engine, vault: Vault, shipped: Path | None = None) -> Verdict:
    """Checks everything that is stored; `shipped` is a file of checkpoints that were kept elsewhere.

    Raises LedgerUnavailable when the database does not answer.
    """
    verdict = Verdict()
    isolation = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with (
        database_in_reach(),
        engine.connect().execution_options(**isolation) as connection,
        _texts_as_stored(connection),
    ):
        verdict.add(*_index_faults(connection))
        verdict.add(*(faults := type_faults(connection)))
        if faults:
            verdict.size = log_size(connection)
            verdict.add("what else is stored was not compared: values of other types than their columns' stand there")
        else:
            _Verification(connection, vault, verdict).run(shipped)
    return verdict


@contextmanager
def _texts_as_stored(connection: Connection) -> Iterator[None]:
    """Lets SQLite's texts be read whatever bytes they hold."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.driver_connection
    usual, driver.text_factory = driver.text_factory, _text
    try:
        yield
    finally:
        driver.text_factory = usual


def _text(stored: bytes) -> str:
    """The text; of bytes that are none, one with a NUL, which is never recorded."""
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return f"\0{stored.hex()}"


def _index_faults(connection: Connection) -> list[str]:
    """What SQLite finds wrong with its own file: rows that an index lacks, say, so that no search finds them."""
    if connection.dialect.name != "sqlite":
        return []
    found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    return [f"the database's file: {fault}" for fault in found if fault != "ok"]


def explanation_faults(
    connection: Connection,
    vault: Vault,
    row: Row[Any],
    tags: Sequence[Row[Any]],
    record: bytes | None,
    *,
    is_reviewed: bool,
) -> list[str]:
    """What of an explanation's row is not what its record in the log says, and whether a review is about it."""
    name = f"row {row.seq}"
    if record is None:
        return _erased_faults(connection, row, without_record=True)
    try:
        head = read_head(record)
    except MALFORMED:
        return [f"{name}: its record is none of an explanation"]
    faults = [
        f"{name}: the column {column} is not what was recorded"
        for column in _COLUMNS
        if getattr(row, column) != getattr(head, column)
    ]
    found = sorted((tag.name, tag.value) for tag in tags)
    expected = sorted([*head.tags, *([REVIEWED] if is_reviewed else [])])
    if found != expected or any((t.tenant, t.created) != (row.tenant, row.created) for t in tags):
        faults.append(f"{name}: its tags are not what was recorded")
    if row.tombstone is not None or row.personal is None:
        return faults + _erased_faults(connection, row, without_record=False)
    if head.sealed is not None and hashlib.sha256(row.personal).hexdigest() != head.sealed:
        faults.append(f"{name}: the sealed part is not what was recorded")
    try:
        sealed = unpack(row.personal)
        plaintext = vault.open(row.personal, row.id, _subject_key(connection, vault, sealed))
        opened = read_opened(record, plaintext)
    except (CannotBeOpened, *MALFORMED) as error:
        return [*faults, f"{name}: {error}"]
    if hashlib.sha256(plaintext).hexdigest() != head.personal_commitment:
        faults.append(f"{name}: the sealed part is not what the record is committed to")
    decision = None if opened.decision_id is None else vault.decision(row.tenant, opened.decision_id)
    if not row.decision_id == sealed.decision == decision:
        faults.append(f"{name}: the column decision_id is not what was recorded")
    lookups = (None,) if opened.subject is None else vault.lookups(row.tenant, opened.subject)
    if row.subject != sealed.token or _lookup_of(connection, sealed.token) not in lookups:
        faults.append(f"{name}: the column subject is not what was recorded")
    return faults


def event_faults(row: Row[Any], record: bytes | None) -> list[str]:
    """What of an event's row is not what its record in the log says."""
    try:
        said = orjson.loads(record or b"")
        wrong = [name for name in ("kind", "tenant", "created", "key_id", "about") if getattr(row, name) != said[name]]
    except MALFORMED:
        return [f"row {row.seq}: its record is none of an event"]
    return [f"row {row.seq}: the column {name} is not what was recorded" for name in wrong]


def _reviewed(connection: Connection, rows: Collection[Row[Any]]) -> set[int]:
    """The places of those of the explanations that a review of their tenant's is about."""
    about = events.c.about.in_([row.id for row in rows])
    found = {
        (row.tenant, row.about)
        for row in connection.execute(select(events.c.tenant, events.c.about).where(events.c.kind == REVIEW, about))
    }
    return {row.seq for row in rows if (row.tenant, row.id) in found}


def _erased_faults(connection: Connection, row: Row[Any], *, without_record: bool) -> list[str]:
    """An empty row needs a tombstone that names it, and holds nothing of what was erased."""
    if any(value is not None for value in (row.personal, row.subject)):
        return [f"row {row.seq}: a tombstone says that it was erased, and it was not"]
    record = None
    if row.tombstone is not None:
        record = connection.scalar(select(log.c.record).where(log.c.seq == row.tombstone))
    try:
        said = orjson.loads(record or b"")
        is_tombstone = said["kind"] in TOMBSTONE_KINDS
        is_named = is_tombstone and covers(said["details"], row.seq, without_record=without_record)
        is_committed = "decisions" in said["details"]
    except MALFORMED:
        is_named = is_committed = False
    if not is_named:
        return [f"row {row.seq}: its personal part is missing, and no tombstone says why"]
    if row.decision_id is not None and not is_committed:
        return [f"row {row.seq}: the column decision_id is not what was recorded"]
    return []


def _decision_faults(connection: Connection, place: int, details: Mapping[str, Any]) -> list[str]:
    """The decisions of what the tombstone at that place erased are those that it is committed to."""
    if "decisions" not in details:
        return []
    kept = select(explanations.c.seq, explanations.c.decision_id).where(explanations.c.decision_id.is_not(None))
    found: dict[int, str] = {}
    for first, last in details["records"]:
        within = (explanations.c.seq.between(first, last), explanations.c.tombstone == place)
        found |= {row.seq: row.decision_id for row in connection.execute(kept.where(*within))}
    if decisions_digest(found) == details["decisions"]:
        return []
    return [f"the decisions of what the tombstone at {place} erased are not what was recorded"]


def _subject_key(connection: Connection, vault: Vault, sealed: Sealed) -> bytes | None:
    if sealed.token is None:
        return None
    row = connection.execute(select(subjects).where(subjects.c.token == sealed.token)).one_or_none()
    return None if row is None else vault.unwrap(row.key, owner_of(row.token, row.lookup))


def _lookup_of(connection: Connection, token: str | None) -> str | None:
    return None if token is None else connection.scalar(select(subjects.c.lookup).where(subjects.c.token == token))


class _Verification:
    """One pass over the database."""

    def __init__(self, connection: Connection, vault: Vault, verdict: Verdict) -> None:
        self._connection = connection
        self._vault = vault
        self._verdict = verdict
        self._tree = GrowingTree()
        self._keys = KeyHistory()
        self._jobs = JobHistory()
        self._size = log_size(connection)

    def run(self, shipped: Path | None) -> None:
        chain = self._check_signing_keys()
        self._check_subjects()
        if shipped is not None:
            self._check_erased(ErasureList(shipped.with_name(NAME), self._vault))
        ends = _Checkpoints(self._connection, chain, shipped, self._verdict)
        last = 0
        while rows := self._behind(last):
            self._check_page(last + 1, rows, ends)
            last = rows[-1].seq
        self._check_strays()
        self._check_keys()
        self._verdict.add(*self._jobs.faults(self._connection, self._vault))
        ends.finish(self._size)
        self._verdict.size = self._size

    def _check_signing_keys(self) -> list[SigningKey]:
        chain = []
        for row in self._connection.execute(select(signing_keys).order_by(signing_keys.c.place)):
            try:
                chain.append(read_statement(row.statement, row.signature, row.endorsement))
            except MALFORMED:
                self._verdict.add(f"signing key {row.place} is not what was written")
                continue
            if chain[-1].place != row.place:
                self._verdict.add(f"signing key {row.place} stands at another place")
        self._verdict.add(*chain_faults(chain))
        return chain

    def _check_subjects(self) -> None:
        for row in self._connection.execute(select(subjects).execution_options(yield_per=TOGETHER)):
            try:
                self._vault.unwrap(row.key, owner_of(row.token, row.lookup))
            except CannotBeOpened:
                self._verdict.add(f"the key of subject {row.token} is not what was written")
        if self._connection.scalar(select(subjects.c.token).where(subjects.c.token == NO_TOKEN)) is None:
            self._verdict.add("the mark of the master key is gone")

    def _check_erased(self, erasures: ErasureList) -> None:
        """Nobody is there of whom a list that was kept apart says that they were erased."""
        listed, faults = erasures.read()
        self._verdict.add(*faults)
        for one in listed:
            for token in self._connection.scalars(select(subjects.c.token).where(subjects.c.token.in_(one.tokens))):
                self._verdict.add(
                    f"subject {token} was erased by row {one.place}, as {erasures.path.name} tells, and is there "
                    "again: the database is an older copy; the service erases them again when it starts"
                )
        places = {token: one.place for one in listed for token in one.set_tokens}
        if not places:
            return
        for token in self._connection.scalars(select(set_subjects.c.token).where(set_subjects.c.lookup.is_not(None))):
            if token in places:
                self._verdict.add(
                    f"row {token} of a baseline set was erased by row {places[token]}, as {erasures.path.name} tells, "
                    "and is somebody's again: the database is an older copy; the service erases it again when it starts"
                )

    def _check_page(self, first: int, rows: Sequence[Row[Any]], ends: _Checkpoints) -> None:
        last = rows[-1].seq
        explained = {row.seq: row for row in self._between(explanations, first, last)}
        happened = {row.seq: row for row in self._between(events, first, last)}
        tags: dict[int, list[Row[Any]]] = {}
        for tag in self._between(explanation_tags, first, last):
            tags.setdefault(tag.seq, []).append(tag)
        reviewed = _reviewed(self._connection, explained.values())
        nodes_here: dict[tuple[int, int], bytes] = {}
        for before, row in zip([first - 1, *(row.seq for row in rows)], rows, strict=False):
            if row.seq != before + 1:
                self._verdict.add(f"rows are missing between {before} and {row.seq}")
        for row in rows:
            self._verdict.records += 1
            if row.record is not None and leaf_hash(row.record) != row.leaf:
                self._verdict.add(f"row {row.seq} is not what was recorded")
            self._check_row(
                row,
                explained.pop(row.seq, None),
                happened.pop(row.seq, None),
                tags.pop(row.seq, []),
                is_reviewed=row.seq in reviewed,
            )
            for height, place, found in self._tree.add(row.leaf):
                if height % STORED_HEIGHTS == 0:
                    nodes_here[height, place] = found
            if self._tree.size == row.seq:
                ends.passed(row.seq, self._tree, _created(row.record))
        strays = {*explained, *happened, *tags}
        self._verdict.add(*(f"row {seq} has no place in the log" for seq in sorted(strays)))
        for (height, place), found in nodes_here.items():
            stored = self._connection.scalar(
                select(nodes.c.hash).where(nodes.c.height == height, nodes.c.place == place)
            )
            is_due = (place + 1) << height <= ends.largest
            if stored != found and (stored is not None or is_due):
                self._verdict.add(f"the stored node {height}/{place} is not that of the log")

    def _check_row(
        self,
        row: Row[Any],
        explained: Row[Any] | None,
        happened: Row[Any] | None,
        tags: Sequence[Row[Any]],
        *,
        is_reviewed: bool,
    ) -> None:
        if row.kind == EXPLANATION:
            if explained is None or happened is not None:
                self._verdict.add(f"row {row.seq}: the explanation is missing")
                return
            self._verdict.erased += explained.tombstone is not None
            if row.record is not None and has_schema(row.record) and _kind(row.record) != EXPLANATION:
                self._verdict.add(f"row {row.seq}: its kind is not what was recorded")
            self._verdict.add(
                *explanation_faults(self._connection, self._vault, explained, tags, row.record, is_reviewed=is_reviewed)
            )
            return
        if happened is None or explained is not None or tags:
            self._verdict.add(f"row {row.seq}: the event is missing")
            return
        faults = event_faults(happened, row.record)
        if row.kind != happened.kind:
            faults.append(f"row {row.seq}: its kind is not what was recorded")
        self._verdict.add(*faults)
        if row.kind in TOMBSTONE_KINDS and not faults:
            self._check_tombstone(row.seq, orjson.loads(row.record)["details"])
        if row.kind in KEY_KINDS and not faults:
            self._follow(self._keys, row)
        if row.kind in JOB_KINDS and not faults:
            self._follow(self._jobs, row)

    def _check_tombstone(self, place: int, details: Mapping[str, Any]) -> None:
        """Whatever a tombstone names has gone by it."""
        self._verdict.add(*_decision_faults(self._connection, place, details))
        for first, last in details["records"]:
            within = explanations.c.seq.between(first, last)
            other = or_(explanations.c.tombstone.is_(None), explanations.c.tombstone != place)
            for seq in self._connection.scalars(select(explanations.c.seq).where(within, other)):
                self._verdict.add(f"row {seq}: the tombstone at {place} says that it was erased, and it was not")

    def _follow(self, history: KeyHistory | JobHistory, row: Row[Any]) -> None:
        try:
            self._verdict.add(*history.follow(orjson.loads(row.record)))
        except MALFORMED:
            self._verdict.add(f"row {row.seq}: its record does not say what its kind must")

    def _check_keys(self) -> None:
        rows = self._connection.execute(select(keys).order_by(keys.c.id))
        self._verdict.add(*self._keys.faults(rows))
        self._verdict.kept_keys = len(self._keys.kept)
        self._verdict.kept_at = self._keys.kept_at

    def _check_strays(self) -> None:
        for table in (explanations, events, explanation_tags):
            outside = not_(table.c.seq.between(1, self._size))
            count = self._connection.scalar(select(func.count()).select_from(table).where(outside)) or 0
            if count:
                self._verdict.add(f"{count} rows of {table.name} have no place in the log")
        if self._connection.scalar(select(func.count()).select_from(log).where(log.c.seq < 1)):
            self._verdict.add("rows of the log stand before its beginning")
        due = sum(self._size >> height for height in range(STORED_HEIGHTS, 64, STORED_HEIGHTS))
        possible = or_(
            *(
                (nodes.c.height == height) & nodes.c.place.between(0, (self._size >> height) - 1)
                for height in range(STORED_HEIGHTS, 64, STORED_HEIGHTS)
            )
        )
        strange = self._connection.scalar(select(func.count()).select_from(nodes).where(not_(possible))) or 0
        if strange:
            self._verdict.add(f"{strange} stored nodes have no place among the {due} of this log")

    def _behind(self, seq: int) -> Sequence[Row[Any]]:
        return self._connection.execute(select(log).where(log.c.seq > seq).order_by(log.c.seq).limit(TOGETHER)).all()

    def _between(self, table: Table, first: int, last: int) -> Sequence[Row[Any]]:
        return self._connection.execute(
            select(table).where(table.c.seq.between(first, last)).order_by(table.c.seq)
        ).all()


class _Checkpoints:
    """The checkpoints in the database, and those of a file, met while the log is read."""

    def __init__(
        self, connection: Connection, chain: Sequence[SigningKey], shipped: Path | None, verdict: Verdict
    ) -> None:
        self._chain = chain
        self._verdict = verdict
        self._stored = _read_stored(connection, verdict)
        self._elsewhere = iter(()) if shipped is None else _read_shipped(shipped, verdict)
        self._next = next(self._stored, None)
        self._next_elsewhere = next(self._elsewhere, None)
        self._before: Checkpoint | None = None
        self._earliest: int | None = None
        self._latest: tuple[int, int] | None = None  # the latest time since the checkpoint before, and its row
        self.largest = connection.scalar(select(func.max(checkpoints.c.size))) or 0

    def passed(self, size: int, tree: GrowingTree, created: int | None) -> None:
        """The log was read up to there."""
        self._check_time(size, created)
        while self._next is not None and self._next.size <= size:
            if self._next.size == size:
                self._check(self._next, tree.root().hex())
            self._next = next(self._stored, None)
        while self._next_elsewhere is not None and self._next_elsewhere.size <= size:
            known = self._next_elsewhere
            if known.size == size:
                self._verdict.add(*checkpoint_faults(known, self._chain))
                if known.root != tree.root().hex():
                    self._verdict.add(f"the first {size} rows are not those of a checkpoint that was kept elsewhere")
            self._next_elsewhere = next(self._elsewhere, None)

    def finish(self, size: int) -> None:
        """The log ended there."""
        while self._next is not None:
            if self._next.size > size:
                self._verdict.add(f"the end of the log was cut off: {self._next.size} rows were signed")
            self._next = next(self._stored, None)
        while self._next_elsewhere is not None:
            if self._next_elsewhere.size > size:
                self._verdict.add(f"the end of the log was cut off: {self._next_elsewhere.size} rows were signed")
            self._next_elsewhere = next(self._elsewhere, None)
        if self._before is not None:
            self._verdict.signed = self._before.created

    def _check(self, checkpoint: Checkpoint, root: str) -> None:
        name = f"the checkpoint over {checkpoint.size} rows"
        self._verdict.add(*checkpoint_faults(checkpoint, self._chain))
        if checkpoint.root != root:
            self._verdict.add(f"{name} has not the root of the log")
        before = self._before
        if checkpoint.previous != (None if before is None else before.digest):
            self._verdict.add(f"{name} does not follow the one before it")
        if before is not None and checkpoint.created < before.created - SLACK:
            self._verdict.add(f"{name} is older than the one before it")
        if self._latest is not None and self._latest[0] > checkpoint.created + SLACK:
            self._verdict.add(f"row {self._latest[1]} is of a later time than {name}, which covers it")
        self._latest = None
        self._before = checkpoint
        self._earliest = checkpoint.created - SLACK

    def _check_time(self, seq: int, created: int | None) -> None:
        if created is None:
            return
        if self._earliest is not None and created < self._earliest:
            self._verdict.add(f"row {seq} is of an earlier time than a checkpoint that was signed without it")
        if self._latest is None or created > self._latest[0]:
            self._latest = created, seq


def _read_stored(connection: Connection, verdict: Verdict) -> Iterator[Checkpoint]:
    last = 0
    while True:
        query = select(checkpoints).where(checkpoints.c.size > last).order_by(checkpoints.c.size).limit(TOGETHER)
        rows = connection.execute(query).all()
        if not rows:
            break
        for row in rows:
            last = row.size
            try:
                checkpoint = read_body(row.body, row.signature)
            except MALFORMED:
                verdict.add(f"the checkpoint over {row.size} rows is not what was written")
                continue
            if checkpoint.size != row.size:
                verdict.add(f"the checkpoint over {row.size} rows says that it is of {checkpoint.size}")
                continue
            yield checkpoint
    if connection.scalar(select(func.count()).select_from(checkpoints).where(checkpoints.c.size < 1)):
        verdict.add("there is a checkpoint over no rows")


def _read_shipped(path: Path, verdict: Verdict) -> Iterator[Checkpoint]:
    last = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # torn while it was written; the next start cuts it off
            try:
                checkpoint = read_line(orjson.loads(_behind_what_was_torn(line)))
            except MALFORMED:
                verdict.add(f"line {number} of {path.name} is no checkpoint")
                continue
            if checkpoint.size >= last:
                last = checkpoint.size
                yield checkpoint


def _behind_what_was_torn(line: bytes) -> bytes:
    """The whole line that was once written behind the torn beginning of another."""
    return line[line.rfind(b'{"body":') :] if b'{"body":' in line else line


def _created(record: bytes | None) -> int | None:
    try:
        created = orjson.loads(record or b"null")["created"]
    except MALFORMED:
        return None
    return created if isinstance(created, int) else None


def _kind(record: bytes) -> object:
    try:
        return orjson.loads(record)["kind"]
    except MALFORMED:
        return None


def verify_explanation(engine: Engine, vault: Vault, seq: int) -> list[str]:
    """What of the explanation at that place is not as it was recorded; its place in the tree is proved apart.

    Raises LedgerUnavailable when the database does not answer.
    """
    with database_in_reach(), engine.connect() as connection, _texts_as_stored(connection):
        if faults := type_faults(connection, seq):
            return faults
        logged = connection.execute(select(log).where(log.c.seq == seq)).one_or_none()
        row = connection.execute(select(explanations).where(explanations.c.seq == seq)).one_or_none()
        tags = connection.execute(select(explanation_tags).where(explanation_tags.c.seq == seq)).all()
        if logged is None or row is None:
            return [f"row {seq} is missing"]
        is_reviewed = bool(_reviewed(connection, [row]))
        faults = explanation_faults(connection, vault, row, tags, logged.record, is_reviewed=is_reviewed)
        if row.tombstone is not None and not faults:
            tombstone = connection.scalar(select(log.c.record).where(log.c.seq == row.tombstone)) or b""
            faults += _decision_faults(connection, row.tombstone, orjson.loads(tombstone)["details"])
    if logged.record is not None and leaf_hash(logged.record) != logged.leaf:
        faults.append(f"row {seq} is not what was recorded")
    return faults
