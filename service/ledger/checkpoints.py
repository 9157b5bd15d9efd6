"""Checkpoints: the size and the root of the tree, signed, in the database and in a file to be shipped elsewhere.

The body is JSON and is signed as the bytes it is stored in:

    {"schema": 1, "type": "checkpoint", "log": "<first public key>", "size": 1234, "root": "...",
     "created": 1790000000000000, "previous": "<sha256 of the body before>", "key": "<public key>"}

Hosts that share a database take turns at the write lock, and whoever comes second finds a checkpoint there. None is
signed over a log whose nodes no longer begin with what the last one covered. Complete blocks are not all hashed again
for that: a few are, drawn anew each time, so that a change in one is found sooner or later, and by a verification at
once.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, Row, func, insert, select
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from service.errors import NotFound
from service.ledger.clock import ledger_time
from service.ledger.database import database_in_reach, serialised
from service.ledger.entries import LogChanged
from service.ledger.growing_files import append_line
from service.ledger.merkle import BLOCK, STORED_HEIGHTS, Tree, root_of
from service.ledger.signing import Signer, SigningKey, read_chain
from service.ledger.tables import checkpoints, events, explanations, log, nodes

BLOCKS_CHECKED = 4
"""Complete blocks of leaves that are hashed again at each signing, with all that is stored above them."""
NODES_AT_ONCE = 64
"""Stored nodes that are hashed with one tree in memory: of 16,384 leaves."""

Nodes = dict[tuple[int, int], bytes]
"""Hashes of complete subtrees, by height and place."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed state of the log. `created` is in microseconds since the epoch, UTC; hashes and keys are hexadecimal."""

    log: str
    size: int
    root: str
    created: int
    previous: str | None
    key: str
    body: bytes
    signature: bytes

    @property
    def digest(self) -> str:
        """What the next checkpoint calls `previous`."""
        return hashlib.sha256(self.body).hexdigest()

    @property
    def line(self) -> dict[str, str]:
        """The body and the signature as JSON can hold them, in files and exports."""
        return {"body": self.body.decode(), "signature": self.signature.hex()}


def read_body(body: bytes, signature: bytes) -> Checkpoint:
    """What a checkpoint says; nothing is verified yet. Raises ValueError, TypeError or KeyError for another body."""
    said = orjson.loads(body)
    if (said["schema"], said["type"]) != (1, "checkpoint"):
        raise ValueError("this is no checkpoint")
    return Checkpoint(
        str(said["log"]),
        int(said["size"]),
        str(said["root"]),
        int(said["created"]),
        said["previous"],
        str(said["key"]),
        body,
        signature,
    )


def read_line(line: Any) -> Checkpoint:
    """The checkpoint that `Checkpoint.line` wrote. Raises ValueError, TypeError, KeyError or AttributeError."""
    return read_body(line["body"].encode(), bytes.fromhex(line["signature"]))


def tree_in(connection: Connection) -> Tree:
    """The tree over the log as it stands in the database."""
    return Tree(lambda height, block: _read_block(connection, height, block))


def _read_block(connection: Connection, height: int, block: int) -> Sequence[bytes]:
    first = block * BLOCK
    if height == 0:
        leaves = select(log.c.leaf).where(log.c.seq > first, log.c.seq <= first + BLOCK).order_by(log.c.seq)
        return connection.scalars(leaves).all()
    of_block = (nodes.c.height == height) & (nodes.c.place >= first) & (nodes.c.place < first + BLOCK)
    return connection.scalars(select(nodes.c.hash).where(of_block).order_by(nodes.c.place)).all()


def log_size(connection: Connection) -> int:
    """The number of rows of the log."""
    return connection.scalar(select(func.coalesce(func.max(log.c.seq), 0))) or 0


def newest_checkpoint(connection: Connection) -> Checkpoint | None:
    """The last one that was signed; None before the first."""
    row = connection.execute(select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1)).one_or_none()
    return None if row is None else _checkpoint(row)


def read_checkpoint(connection: Connection, size: int) -> Checkpoint | None:
    """The checkpoint over so many rows, if one was made then."""
    row = connection.execute(select(checkpoints).where(checkpoints.c.size == size)).one_or_none()
    return None if row is None else _checkpoint(row)


def _checkpoint(row: Row[Any]) -> Checkpoint:
    try:
        made = read_body(row.body, row.signature)
    except (ValueError, TypeError, KeyError) as error:
        raise LogChanged(f"the checkpoint over {row.size} rows is not what was written") from error
    if made.size != row.size:
        raise LogChanged(f"the checkpoint over {made.size} rows is stored as one over {row.size}")
    return made


@contextmanager
def _intact() -> Iterator[None]:
    """Turns what a changed database leads to inside into LogChanged, and its silence into LedgerUnavailable."""
    try:
        with database_in_reach():
            yield
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise LogChanged("rows of the log, of its checkpoints or of its keys are missing or were changed") from error


class CheckpointSigner:
    """Signs the state of one log. Every call blocks on the database, and raises LedgerUnavailable when it does not
    answer, LogChanged when a row is not what was written."""

    def __init__(self, engine: Engine, signing_key: Path, shipped: Path) -> None:
        self._engine = engine
        self._signer = Signer(signing_key)
        self._shipped = shipped

    def open(self) -> SigningKey:
        """The key of the log; a new log gets one. Raises NotTheSigner, SecretFileError."""
        with _intact(), serialised(self._engine).begin() as connection:
            return self._signer.enrol(connection)

    def sign(self) -> Checkpoint | None:
        """A checkpoint over all that is recorded; the last one when nothing came since; None of an empty log.

        Raises LogChanged when the log is not what was signed before, NotTheSigner, SecretFileError.
        """
        with _intact():
            with self._engine.connect() as connection:
                size, before = log_size(connection), newest_checkpoint(connection)
                if before is not None and before.size == size:
                    return before
                tree = tree_in(connection)
                if before is not None and (size < before.size or tree.root(before.size).hex() != before.root):
                    raise LogChanged(f"the log no longer begins with the {before.size} rows that were signed")
                _check_blocks(connection, 0 if before is None else before.size)
                if size == 0:
                    return None
                complete = _missing_nodes(connection, size)
                root = _tree_with(connection, complete).root(size)
                latest = _latest(connection, 0 if before is None else before.size, size)
            made = self._enter(size, root.hex(), complete, latest)
        self._ship(made)
        return made

    def rotate(self) -> SigningKey:
        """Signs the state of the log with the old key, then goes over to a new one. Raises as `sign` does."""
        self.sign()
        with _intact(), serialised(self._engine).begin() as connection:
            newest = newest_checkpoint(connection)
            size = 0 if newest is None else newest.size
            key = self._signer.rotate(connection, size, ledger_time(connection))
        self._signer.finish_rotation()
        return key

    def newest(self) -> Checkpoint | None:
        """The last checkpoint that was signed, by whatever host; None before the first. Raises LogChanged."""
        with _intact(), self._engine.connect() as connection:
            return newest_checkpoint(connection)

    def covering(self, seq: int) -> Checkpoint:
        """A checkpoint over the row at that place, made now if there is none yet. Raises as `sign` does."""
        found = self.newest()
        if found is None or found.size < seq:
            found = self.sign()
        if found is None or found.size < seq:
            raise LogChanged(f"the log has no row {seq}")
        return found

    def inclusion(self, seq: int) -> tuple[list[bytes], Checkpoint]:
        """The path from the leaf at that place to the root of a checkpoint, and the checkpoint."""
        checkpoint = self.covering(seq)
        with _intact(), self._engine.connect() as connection:
            return tree_in(connection).inclusion(seq - 1, checkpoint.size), checkpoint

    def consistency(self, old: int, new: int) -> tuple[list[bytes], Checkpoint, Checkpoint]:
        """The proof between two checkpoints of these sizes, and the two.

        Raises NotFound where no checkpoint was made at a size, IndexError where `old` is not from 1 to `new`.
        """
        if not 0 < old <= new:
            raise IndexError(f"a log of {new} rows is no later one than a log of {old}")
        with _intact(), self._engine.connect() as connection:
            ends = [read_checkpoint(connection, size) for size in (old, new)]
            if ends[0] is None or ends[1] is None:
                missing = old if ends[0] is None else new
                raise NotFound(f"no checkpoint was made over {missing} rows")
            return tree_in(connection).consistency(old, new), ends[0], ends[1]

    def chain(self) -> list[SigningKey]:
        """Every signing key, the oldest first."""
        with _intact(), self._engine.connect() as connection:
            return read_chain(connection)

    def sign_content(self, content: bytes) -> tuple[str, bytes]:
        """The newest key of the log, and its signature of the content. Raises NotTheSigner, SecretFileError."""
        with _intact(), serialised(self._engine).begin() as connection:
            return self._signer.enrol(connection).public_key, self._signer.sign(content)

    def _enter(self, size: int, root: str, complete: Nodes, latest: int) -> Checkpoint:
        with serialised(self._engine).begin() as connection:
            key = self._signer.enrol(connection)
            before = newest_checkpoint(connection)
            if before is not None and before.size >= size:
                return before  # of another host, meanwhile
            if complete:
                is_sqlite = connection.dialect.name == "sqlite"
                statement = (insert_sqlite if is_sqlite else insert_postgresql)(nodes).on_conflict_do_nothing()
                rows = [
                    {"height": height, "place": place, "hash": found} for (height, place), found in complete.items()
                ]
                connection.execute(statement, rows)
            body = orjson.dumps(
                {
                    "schema": 1,
                    "type": "checkpoint",
                    "log": read_chain(connection)[0].public_key,
                    "size": size,
                    "root": root,
                    "created": max(ledger_time(connection), latest),
                    "previous": None if before is None else before.digest,
                    "key": key.public_key,
                }
            )
            made = read_body(body, self._signer.sign(body))
            connection.execute(insert(checkpoints).values(size=size, body=body, signature=made.signature))
        return made

    def _ship(self, made: Checkpoint) -> None:
        """One line more in the file for elsewhere; the database's own stands whether or not that can be written."""
        try:
            append_line(self._shipped, lambda _before: orjson.dumps(made.line))
        except OSError as error:
            _log.warning("the checkpoint over %d rows is not in %s: %s", made.size, self._shipped, error.strerror)


def _latest(connection: Connection, after: int, last: int) -> int:
    """The latest time of the rows behind `after`, up to `last`: a checkpoint is not of an earlier one."""
    times = (
        select(func.max(table.c.created)).where(table.c.seq > after, table.c.seq <= last)
        for table in (explanations, events)
    )
    return max(connection.scalar(time) or 0 for time in times)


def _check_blocks(connection: Connection, size: int) -> None:
    """Hashes some complete blocks of the first `size` leaves again, and what is above each. Raises LogChanged."""
    blocks = range(size >> STORED_HEIGHTS)
    for block in SystemRandom().sample(blocks, min(BLOCKS_CHECKED, len(blocks))):
        height, place = STORED_HEIGHTS, block
        while place < size >> height:
            below = _read_block(connection, height - STORED_HEIGHTS, place)
            if len(below) != BLOCK or root_of(below) != _read_block(connection, height, place // BLOCK)[place % BLOCK]:
                first, last = (place << height) + 1, place + 1 << height
                raise LogChanged(f"of the rows {first} to {last}, which were signed, one was changed")
            height, place = height + STORED_HEIGHTS, place >> STORED_HEIGHTS


def _missing_nodes(connection: Connection, size: int) -> Nodes:
    """The complete subtrees of stored heights that are not in the database yet."""
    found: Nodes = {}
    for height in range(STORED_HEIGHTS, size.bit_length(), STORED_HEIGHTS):
        last = connection.scalar(select(func.max(nodes.c.place)).where(nodes.c.height == height))
        places = range(0 if last is None else last + 1, size >> height)
        for start in places[::NODES_AT_ONCE]:
            tree = _tree_with(connection, found)
            for place in places[start - places.start :][:NODES_AT_ONCE]:
                found[height, place] = tree.node(height, place)
    return found


def _tree_with(connection: Connection, new: Nodes) -> Tree:
    """The tree over the log, with nodes that are not in the database yet; they follow those that are."""

    def read(height: int, block: int) -> Sequence[bytes]:
        there = list(_read_block(connection, height, block))
        while len(there) < BLOCK and (following := (height, block * BLOCK + len(there))) in new:
            there.append(new[following])
        return there

    return Tree(read)
