"""Checks the checkpoints, those in the database and those of a file kept elsewhere, while the log is read.

A checkpoint must be signed by a key of the chain, follow the one before it, have the root of the log at its size, and
have a time that fits the rows it covers and the rows after them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson
from sqlalchemy import Connection, func, select

from service.ledger.checkpoints import Checkpoint, read_body, read_line
from service.ledger.export_checking import MALFORMED, Verdict, checkpoint_faults
from service.ledger.merkle import GrowingTree
from service.ledger.signing import SigningKey
from service.ledger.tables import checkpoints

ROWS_AT_ONCE = 500
CLOCK_TOLERANCE = 10 * 60 * 1_000_000
"""Microseconds by which the clocks of hosts may differ, and a record may wait until it is appended."""


class CheckpointCheck:
    """Compares checkpoints with the log as it is read; adds what is wrong to `verdict`.

    `chain` are the signing keys, the oldest first; `shipped` are the checkpoints that were kept elsewhere.
    """

    def __init__(
        self, connection: Connection, chain: Sequence[SigningKey], shipped: Iterator[Checkpoint], verdict: Verdict
    ) -> None:
        self._chain = chain
        self._verdict = verdict
        self._stored = _read_stored(connection, verdict)
        self._shipped = shipped
        self._next_stored = next(self._stored, None)
        self._next_shipped = next(self._shipped, None)
        self._before: Checkpoint | None = None
        self._earliest: int | None = None
        self._latest: tuple[int, int] | None = None  # the latest time since the checkpoint before, and its row
        self.largest = connection.scalar(select(func.max(checkpoints.c.size))) or 0

    def read_up_to(self, size: int, tree: GrowingTree, created: int | None) -> None:
        """Takes note that the first `size` rows were read: `tree` is over them, `created` the time of the last."""
        self._check_time(size, created)
        while self._next_stored is not None and self._next_stored.size <= size:
            if self._next_stored.size == size:
                self._check(self._next_stored, tree.root().hex())
            self._next_stored = next(self._stored, None)
        while self._next_shipped is not None and self._next_shipped.size <= size:
            shipped = self._next_shipped
            if shipped.size == size:
                self._verdict.add(*checkpoint_faults(shipped, self._chain))
                if shipped.root != tree.root().hex():
                    self._verdict.add(f"the first {size} rows differ from a checkpoint that was kept elsewhere")
            self._next_shipped = next(self._shipped, None)

    def finish(self, size: int) -> None:
        """Takes note that the log ended after `size` rows."""
        while self._next_stored is not None:
            self._check_end(self._next_stored, size)
            self._next_stored = next(self._stored, None)
        while self._next_shipped is not None:
            self._check_end(self._next_shipped, size)
            self._next_shipped = next(self._shipped, None)
        if self._before is not None:
            self._verdict.signed = self._before.created

    def _check_end(self, checkpoint: Checkpoint, size: int) -> None:
        if checkpoint.size > size:
            self._verdict.add(f"the end of the log was cut off: a checkpoint over {checkpoint.size} rows was signed")

    def _check(self, checkpoint: Checkpoint, root: str) -> None:
        name = f"the checkpoint over {checkpoint.size} rows"
        self._verdict.add(*checkpoint_faults(checkpoint, self._chain))
        if checkpoint.root != root:
            self._verdict.add(f"{name} does not have the root hash of these rows")
        before = self._before
        if checkpoint.previous != (None if before is None else before.digest):
            self._verdict.add(f"{name} does not follow the one before it")
        if before is not None and checkpoint.created < before.created - CLOCK_TOLERANCE:
            self._verdict.add(f"{name} has an earlier time than the one before it")
        if self._latest is not None and self._latest[0] > checkpoint.created + CLOCK_TOLERANCE:
            self._verdict.add(f"row {self._latest[1]} has a later time than {name}, which covers it")
        self._latest = None
        self._before = checkpoint
        self._earliest = checkpoint.created - CLOCK_TOLERANCE

    def _check_time(self, seq: int, created: int | None) -> None:
        if created is None:
            return
        if self._earliest is not None and created < self._earliest:
            self._verdict.add(f"row {seq} has an earlier time than a checkpoint that was signed before it was recorded")
        if self._latest is None or created > self._latest[0]:
            self._latest = created, seq


def _read_stored(connection: Connection, verdict: Verdict) -> Iterator[Checkpoint]:
    last = 0
    while True:
        query = select(checkpoints).where(checkpoints.c.size > last).order_by(checkpoints.c.size).limit(ROWS_AT_ONCE)
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
                verdict.add(f"the checkpoint over {row.size} rows was signed over {checkpoint.size} rows")
                continue
            yield checkpoint
    if connection.scalar(select(func.count()).select_from(checkpoints).where(checkpoints.c.size < 1)):
        verdict.add("there is a checkpoint over no rows")


def read_shipped(path: Path, size: int, verdict: Verdict) -> Iterator[Checkpoint]:
    """The checkpoints in the first `size` bytes of a file that was kept elsewhere."""
    last = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if file.tell() > size or not line.endswith(b"\n"):
                return  # written since, or cut short while it was written, which the next start removes
            try:
                checkpoint = read_line(orjson.loads(_last_body(line)))
            except MALFORMED:
                verdict.add(f"line {number} of {path.name} is not a checkpoint")
                continue
            if checkpoint.size >= last:
                last = checkpoint.size
                yield checkpoint


def _last_body(line: bytes) -> bytes:
    """The last checkpoint on a line: earlier versions wrote it behind one that was cut short."""
    return line[line.rfind(b'{"body":') :] if b'{"body":' in line else line
