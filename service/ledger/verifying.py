"""Verification of the whole ledger in its database: every column of every row, against the log and its signatures.

The log is read from its beginning, a page at a time, in one snapshot, while the service goes on recording.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, Row, Table, func, not_, or_, select

from service.ledger.checkpoint_checking import CheckpointCheck, read_shipped
from service.ledger.checkpoints import Checkpoint
from service.ledger.database import database_in_reach
from service.ledger.entries import EXPLANATION, TOMBSTONE_KINDS
from service.ledger.erasure_list import NAME, ErasureList, ListedErasure
from service.ledger.export_checking import MALFORMED, Verdict
from service.ledger.job_history import JOB_KINDS, JobHistory
from service.ledger.key_history import KEY_KINDS, KeyHistory
from service.ledger.leaves import has_schema
from service.ledger.merkle import STORED_HEIGHTS, GrowingTree, leaf_hash
from service.ledger.row_checking import (
    decision_faults,
    event_faults,
    explanation_faults,
    reviewed_places,
    tombstone_faults,
)
from service.ledger.sealing import Vault
from service.ledger.signing import SigningKey, chain_faults, read_statement
from service.ledger.sqlite_checking import index_faults, texts_as_stored, type_faults
from service.ledger.stored_tree import log_size
from service.ledger.subject_checking import subject_key_faults, undone_erasures
from service.ledger.tables import events, explanation_tags, explanations, keys, log, nodes, signing_keys

ROWS_AT_ONCE = 500


def verify_ledger(engine: Engine, vault: Vault, shipped: Path | None = None) -> Verdict:
    """Checks everything that is stored; `shipped` is a file of checkpoints that were kept elsewhere.

    Raises LedgerUnavailable when the database does not answer.
    """
    verdict = Verdict()
    kept_elsewhere = None if shipped is None else _KeptElsewhere.read(shipped, vault)
    isolation = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with (
        database_in_reach(),
        engine.connect().execution_options(**isolation) as connection,
        texts_as_stored(connection),
    ):
        verdict.add(*index_faults(connection))
        verdict.add(*(faults := type_faults(connection)))
        if faults:
            verdict.size = log_size(connection)
            verdict.add("nothing else was checked, because values of the wrong type cannot be read safely")
        else:
            _Verification(connection, vault, verdict).run(kept_elsewhere)
    return verdict


def verify_explanation(engine: Engine, vault: Vault, seq: int) -> list[str]:
    """Where the explanation at that place differs from what was recorded; whether the log contains it is for an
    inclusion proof to show.

    Raises LedgerUnavailable when the database does not answer.
    """
    with database_in_reach(), engine.connect() as connection, texts_as_stored(connection):
        if faults := type_faults(connection, seq):
            return faults
        log_row = connection.execute(select(log).where(log.c.seq == seq)).one_or_none()
        row = connection.execute(select(explanations).where(explanations.c.seq == seq)).one_or_none()
        tags = connection.execute(select(explanation_tags).where(explanation_tags.c.seq == seq)).all()
        if log_row is None or row is None:
            return [f"row {seq} is missing"]
        is_reviewed = bool(reviewed_places(connection, [row]))
        faults = explanation_faults(connection, vault, row, tags, log_row.record, is_reviewed=is_reviewed)
        if row.tombstone is not None and not faults:
            tombstone = connection.scalar(select(log.c.record).where(log.c.seq == row.tombstone)) or b""
            faults += decision_faults(connection, row.tombstone, orjson.loads(tombstone)["details"])
    if log_row.record is not None and leaf_hash(log_row.record) != log_row.leaf:
        faults.append(_leaf_fault(seq))
    return faults


@dataclass(frozen=True, slots=True)
class _KeptElsewhere:
    """The files beside the database: checkpoints, of whose file the first `size` bytes count, and erasures, with what
    is wrong with their list.

    They are as they were before the database was read. What a running service appends to them meanwhile is about rows
    that are not in this snapshot, and would pass for a log whose end was cut off, or for an erasure undone.
    """

    checkpoints: Path
    size: int
    erasures: Sequence[ListedErasure]
    faults: Sequence[str]

    @classmethod
    def read(cls, checkpoints: Path, vault: Vault) -> _KeptElsewhere:
        erasures, faults = ErasureList(checkpoints.with_name(NAME), vault).read()
        return cls(checkpoints, checkpoints.stat().st_size, erasures, faults)


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

    def run(self, kept: _KeptElsewhere | None) -> None:
        chain = self._check_signing_keys()
        self._verdict.add(*subject_key_faults(self._connection, self._vault))
        shipped: Iterator[Checkpoint] = iter(())
        if kept is not None:
            self._verdict.add(*kept.faults, *undone_erasures(self._connection, kept.erasures, NAME))
            shipped = read_shipped(kept.checkpoints, kept.size, self._verdict)
        checkpoint_check = CheckpointCheck(self._connection, chain, shipped, self._verdict)
        last = 0
        while rows := self._page_after(last):
            self._check_page(last + 1, rows, checkpoint_check)
            last = rows[-1].seq
        self._check_rows_outside_the_log()
        self._check_node_places()
        self._check_keys()
        self._verdict.add(*self._jobs.faults(self._connection, self._vault))
        checkpoint_check.finish(self._size)
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
                self._verdict.add(f"signing key {row.place} says that it is number {chain[-1].place}")
        self._verdict.add(*chain_faults(chain))
        return chain

    def _check_page(self, first: int, rows: Sequence[Row[Any]], checkpoint_check: CheckpointCheck) -> None:
        last = rows[-1].seq
        explanation_rows = {row.seq: row for row in self._between(explanations, first, last)}
        event_rows = {row.seq: row for row in self._between(events, first, last)}
        tags: dict[int, list[Row[Any]]] = {}
        for tag in self._between(explanation_tags, first, last):
            tags.setdefault(tag.seq, []).append(tag)
        reviewed = reviewed_places(self._connection, explanation_rows.values())
        page_nodes: dict[tuple[int, int], bytes] = {}
        for before, row in zip([first - 1, *(row.seq for row in rows)], rows, strict=False):
            if row.seq != before + 1:
                self._verdict.add(f"the rows between {before} and {row.seq} are missing")
        for row in rows:
            self._verdict.records += 1
            if row.record is not None and leaf_hash(row.record) != row.leaf:
                self._verdict.add(_leaf_fault(row.seq))
            self._check_row(
                row,
                explanation_rows.pop(row.seq, None),
                event_rows.pop(row.seq, None),
                tags.pop(row.seq, []),
                is_reviewed=row.seq in reviewed,
            )
            for height, place, node in self._tree.add(row.leaf):
                if height % STORED_HEIGHTS == 0:
                    page_nodes[height, place] = node
            if self._tree.size == row.seq:
                checkpoint_check.read_up_to(row.seq, self._tree, _created(row.record))
        without_log_row = {*explanation_rows, *event_rows, *tags}
        self._verdict.add(*(f"row {seq} is not in the log" for seq in sorted(without_log_row)))
        self._check_nodes(page_nodes, checkpoint_check.largest)

    def _check_nodes(self, expected: dict[tuple[int, int], bytes], signed_size: int) -> None:
        """Compares stored nodes of the tree with those `expected`; all below a signed root must be there."""
        for (height, place), node in expected.items():
            stored = self._connection.scalar(
                select(nodes.c.hash).where(nodes.c.height == height, nodes.c.place == place)
            )
            is_due = (place + 1) << height <= signed_size
            if stored != node and (stored is not None or is_due):
                self._verdict.add(f"the stored tree node of height {height} at place {place} differs from the log")

    def _check_row(
        self,
        row: Row[Any],
        explanation: Row[Any] | None,
        event: Row[Any] | None,
        tags: Sequence[Row[Any]],
        *,
        is_reviewed: bool,
    ) -> None:
        """Checks a `row` of the log and its row in `explanations` or `events`: exactly one of them must be there."""
        if row.kind == EXPLANATION:
            if explanation is None or event is not None:
                self._verdict.add(f"row {row.seq}: the log has an explanation here, but the tables do not")
                return
            self._verdict.erased += explanation.tombstone is not None
            if row.record is not None and has_schema(row.record) and _kind(row.record) != EXPLANATION:
                self._verdict.add(f"row {row.seq}: column kind differs from the log record")
            self._verdict.add(
                *explanation_faults(
                    self._connection, self._vault, explanation, tags, row.record, is_reviewed=is_reviewed
                )
            )
            return
        if event is None or explanation is not None or tags:
            self._verdict.add(f"row {row.seq}: the log has an event here, but the tables do not")
            return
        faults = event_faults(event, row.record)
        if row.kind != event.kind:
            faults.append(f"row {row.seq}: column kind differs from the log record")
        self._verdict.add(*faults)
        if not faults:
            self._check_event(row)

    def _check_event(self, row: Row[Any]) -> None:
        """Checks what an event says of others: of the records that it erased, of a key, of a job."""
        if row.kind in TOMBSTONE_KINDS:
            details = orjson.loads(row.record)["details"]
            self._verdict.add(*tombstone_faults(self._connection, row.seq, details))
        if row.kind in KEY_KINDS:
            self._follow(self._keys, row)
        if row.kind in JOB_KINDS:
            self._follow(self._jobs, row)

    def _follow(self, history: KeyHistory | JobHistory, row: Row[Any]) -> None:
        try:
            self._verdict.add(*history.follow(orjson.loads(row.record)))
        except MALFORMED:
            self._verdict.add(f"row {row.seq}: the log record lacks what an event of the kind {row.kind} must say")

    def _check_keys(self) -> None:
        rows = self._connection.execute(select(keys).order_by(keys.c.id))
        self._verdict.add(*self._keys.faults(rows))
        self._verdict.kept_keys = len(self._keys.kept)
        self._verdict.kept_at = self._keys.kept_at

    def _check_rows_outside_the_log(self) -> None:
        for table in (explanations, events, explanation_tags):
            is_outside = not_(table.c.seq.between(1, self._size))
            count = self._connection.scalar(select(func.count()).select_from(table).where(is_outside)) or 0
            if count:
                self._verdict.add(f"{count} rows of {table.name} are not in the log")
        if self._connection.scalar(select(func.count()).select_from(log).where(log.c.seq < 1)):
            self._verdict.add("the log has rows with numbers below 1")

    def _check_node_places(self) -> None:
        heights = range(STORED_HEIGHTS, 64, STORED_HEIGHTS)
        due = sum(self._size >> height for height in heights)
        is_possible = or_(
            *((nodes.c.height == height) & nodes.c.place.between(0, (self._size >> height) - 1) for height in heights)
        )
        count = self._connection.scalar(select(func.count()).select_from(nodes).where(not_(is_possible))) or 0
        if count:
            self._verdict.add(f"{count} stored tree nodes do not belong to a log of this size, which has {due}")

    def _page_after(self, seq: int) -> Sequence[Row[Any]]:
        query = select(log).where(log.c.seq > seq).order_by(log.c.seq).limit(ROWS_AT_ONCE)
        return self._connection.execute(query).all()

    def _between(self, table: Table, first: int, last: int) -> Sequence[Row[Any]]:
        query = select(table).where(table.c.seq.between(first, last)).order_by(table.c.seq)
        return self._connection.execute(query).all()


def _leaf_fault(seq: int) -> str:
    return f"row {seq}: the log record does not match its leaf hash"


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
