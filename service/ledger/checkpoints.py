"""Checkpoints: the size and the root of the tree, signed, in the database and in a file to be shipped elsewhere.

The body is JSON; what is signed are its bytes as they are stored:

    {"schema": 1, "type": "checkpoint", "log": "<first public key>", "size": 1234, "root": "...",
     "created": 1790000000000000, "previous": "<sha256 of the body before>", "key": "<public key>"}

Hosts that share a database take turns at the write lock, and the second finds the checkpoint of the first. No
checkpoint is signed over a log that does not begin with the rows under the last one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, Row, func, insert, select

from service.errors import NotFound
from service.ledger.clock import ledger_time
from service.ledger.database import database_in_reach, serialised
from service.ledger.entries import LogChanged
from service.ledger.growing_files import append_line
from service.ledger.signing import Signer, SigningKey, read_chain
from service.ledger.stored_tree import (
    Nodes,
    check_some_blocks,
    log_size,
    missing_nodes,
    store_nodes,
    tree_in,
    tree_with,
)
from service.ledger.tables import checkpoints, events, explanations

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
        """The SHA-256 of the body, which the next checkpoint holds as `previous`."""
        return hashlib.sha256(self.body).hexdigest()

    @property
    def line(self) -> dict[str, str]:
        """The body and the signature as JSON, for files and exports."""
        return {"body": self.body.decode(), "signature": self.signature.hex()}


def read_body(body: bytes, signature: bytes) -> Checkpoint:
    """Reads a checkpoint without verifying it. Raises ValueError, TypeError or KeyError for another body."""
    content = orjson.loads(body)
    if (content["schema"], content["type"]) != (1, "checkpoint"):
        raise ValueError("not a checkpoint")
    return Checkpoint(
        str(content["log"]),
        int(content["size"]),
        str(content["root"]),
        int(content["created"]),
        content["previous"],
        str(content["key"]),
        body,
        signature,
    )


def read_line(line: Any) -> Checkpoint:
    """Reads what `Checkpoint.line` holds. Raises ValueError, TypeError, KeyError or AttributeError."""
    return read_body(line["body"].encode(), bytes.fromhex(line["signature"]))


def newest_checkpoint(connection: Connection) -> Checkpoint | None:
    """The newest checkpoint; None before the first."""
    row = connection.execute(select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1)).one_or_none()
    return None if row is None else _checkpoint(row)


def read_checkpoint(connection: Connection, size: int) -> Checkpoint | None:
    """The checkpoint over the first `size` rows; None where none was signed at that size."""
    row = connection.execute(select(checkpoints).where(checkpoints.c.size == size)).one_or_none()
    return None if row is None else _checkpoint(row)


def _checkpoint(row: Row[Any]) -> Checkpoint:
    try:
        checkpoint = read_body(row.body, row.signature)
    except (ValueError, TypeError, KeyError) as error:
        raise LogChanged(f"the checkpoint over {row.size} rows is not what was written") from error
    if checkpoint.size != row.size:
        raise LogChanged(f"the checkpoint over {checkpoint.size} rows is stored as one over {row.size}")
    return checkpoint


@contextmanager
def _intact() -> Iterator[None]:
    """Turns errors that only a changed database causes into LogChanged, and its silence into LedgerUnavailable."""
    try:
        with database_in_reach():
            yield
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise LogChanged("rows of the log, of its checkpoints or of its keys are missing or were changed") from error


class CheckpointSigner:
    """Signs the state of one log. Every call blocks on the database, and raises LedgerUnavailable when that does not
    answer, LogChanged when a row is not what was written."""

    def __init__(self, engine: Engine, signing_key: Path, shipped: Path) -> None:
        self._engine = engine
        self._signer = Signer(signing_key)
        self._shipped = shipped

    def open(self) -> SigningKey:
        """The newest key of the log; a new log gets its first. Raises NotTheSigner, SecretFileError."""
        with _intact(), serialised(self._engine).begin() as connection:
            return self._signer.enrol(connection)

    def sign(self) -> Checkpoint | None:
        """Signs a checkpoint over all that is recorded; returns the newest where nothing was recorded since, and None
        for an empty log.

        Raises LogChanged when the log does not begin with what was signed before, NotTheSigner, SecretFileError.
        """
        with _intact():
            with self._engine.connect() as connection:
                size, before = log_size(connection), newest_checkpoint(connection)
                if before is not None and before.size == size:
                    return before
                tree = tree_in(connection)
                if before is not None and (size < before.size or tree.root(before.size).hex() != before.root):
                    raise LogChanged(f"the log no longer begins with the {before.size} rows that were signed")
                check_some_blocks(connection, 0 if before is None else before.size)
                if size == 0:
                    return None
                new_nodes = missing_nodes(connection, size)
                root = tree_with(connection, new_nodes).root(size)
                latest = _latest_time(connection, 0 if before is None else before.size, size)
            checkpoint = self._store(size, root.hex(), new_nodes, latest)
        self._ship(checkpoint)
        return checkpoint

    def rotate(self) -> SigningKey:
        """Signs the state of the log with the old key, then replaces it with a new one. Raises as `sign` does."""
        self.sign()
        with _intact(), serialised(self._engine).begin() as connection:
            newest = newest_checkpoint(connection)
            size = 0 if newest is None else newest.size
            key = self._signer.rotate(connection, size, ledger_time(connection))
        self._signer.finish_rotation()
        return key

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint, of any host; None before the first. Raises LogChanged."""
        with _intact(), self._engine.connect() as connection:
            return newest_checkpoint(connection)

    def covering(self, seq: int) -> Checkpoint:
        """A checkpoint that covers the row at that place, signed now if there is none yet. Raises as `sign` does."""
        checkpoint = self.newest()
        if checkpoint is None or checkpoint.size < seq:
            checkpoint = self.sign()
        if checkpoint is None or checkpoint.size < seq:
            raise LogChanged(f"the log has no row {seq}")
        return checkpoint

    def inclusion(self, seq: int) -> tuple[list[bytes], Checkpoint]:
        """The path from the leaf at that place to the root of a checkpoint, and the checkpoint."""
        checkpoint = self.covering(seq)
        with _intact(), self._engine.connect() as connection:
            return tree_in(connection).inclusion(seq - 1, checkpoint.size), checkpoint

    def consistency(self, old: int, new: int) -> tuple[list[bytes], Checkpoint, Checkpoint]:
        """The proof that the log of the checkpoint over `old` rows is a prefix of the one over `new`, and the two.

        Raises NotFound where no checkpoint was signed at a size, IndexError where `old` is not from 1 to `new`.
        """
        if not 0 < old <= new:
            raise IndexError(f"a log of {new} rows cannot begin with a log of {old}")
        with _intact(), self._engine.connect() as connection:
            ends = [read_checkpoint(connection, size) for size in (old, new)]
            if ends[0] is None or ends[1] is None:
                missing = old if ends[0] is None else new
                raise NotFound(f"no checkpoint was signed over {missing} rows")
            return tree_in(connection).consistency(old, new), ends[0], ends[1]

    def chain(self) -> list[SigningKey]:
        """Every signing key, the oldest first."""
        with _intact(), self._engine.connect() as connection:
            return read_chain(connection)

    def sign_content(self, content: bytes) -> tuple[str, bytes]:
        """The newest key of the log, and its signature of the content. Raises NotTheSigner, SecretFileError."""
        with _intact(), serialised(self._engine).begin() as connection:
            return self._signer.enrol(connection).public_key, self._signer.sign(content)

    def _store(self, size: int, root: str, new_nodes: Nodes, latest: int) -> Checkpoint:
        """Signs and stores a checkpoint, with nodes of the tree; its time is not before `latest`."""
        with serialised(self._engine).begin() as connection:
            key = self._signer.enrol(connection)
            before = newest_checkpoint(connection)
            if before is not None and before.size >= size:
                return before  # another host signed meanwhile
            store_nodes(connection, new_nodes)
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
            checkpoint = read_body(body, self._signer.sign(body))
            connection.execute(insert(checkpoints).values(size=size, body=body, signature=checkpoint.signature))
        return checkpoint

    def _ship(self, checkpoint: Checkpoint) -> None:
        """Appends the checkpoint to the file to be shipped; if that fails, the checkpoint is in the database only."""
        try:
            append_line(self._shipped, lambda _before: orjson.dumps(checkpoint.line))
        except OSError as error:
            size, reason = checkpoint.size, error.strerror
            _log.warning("the checkpoint over %d rows is not in %s: %s", size, self._shipped, reason)


def _latest_time(connection: Connection, after: int, last: int) -> int:
    """The latest time of the rows after `after`, up to `last`; 0 where there are none."""
    times = (
        select(func.max(table.c.created)).where(table.c.seq > after, table.c.seq <= last)
        for table in (explanations, events)
    )
    return max(connection.scalar(time) or 0 for time in times)
