"""What a start finds of the files beside the database: whether they know of more than the database does.

An older copy of the database, a new one in its place, or one whose end was cut off holds less than was signed. That is
said, in the log of the process, in the ledger and by the readiness, and whoever was erased since is erased again.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from socket import gethostname
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, select

from service.ledger.checkpoints import Checkpoint, log_size, read_line, tree_in
from service.ledger.database import database_in_reach, serialised
from service.ledger.entries import FILE_REPAIRED, RESTORED, Event
from service.ledger.erasing import erase_again
from service.ledger.erasure_list import ErasureList
from service.ledger.events import insert_event
from service.ledger.growing_files import cut_torn_end, last_line
from service.ledger.sealing import Vault
from service.ledger.tables import log

OPERATORS = "default"
"""The tenant of what is told of the ledger as a whole."""
START = "start"
"""Who tells it."""

_log = logging.getLogger(__name__)


def catch_up(engine: Engine, vault: Vault, shipped: Path, erasures: ErasureList) -> list[str]:
    """Mends the files and erases again what was erased; returns a sentence for whatever an operator should know.

    Raises LedgerUnavailable.
    """
    told = [
        *_repaired(engine, shipped, erasures.path),
        *_restored(engine, shipped),
        *_erased_again(engine, vault, erasures),
    ]
    for sentence in told:
        _log.warning("%s", sentence)
    erasures.add_from(engine)
    return told


def _repaired(engine: Engine, *paths: Path) -> list[str]:
    told = []
    for path in paths:
        try:
            torn = cut_torn_end(path)
        except OSError as error:
            told.append(f"{path.name} cannot be read and written: {error.strerror}; make it its user's own again")
            continue
        if torn is not None:
            details = {"file": path.name, "bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
            _tell(engine, FILE_REPAIRED, details)
            told.append(f"{path.name} ended in a torn line of {len(torn)} bytes, now cut off: was the disk full?")
    return told


def _restored(engine: Engine, shipped: Path) -> list[str]:
    known = _last_shipped(shipped)
    if known is None:
        return []
    with database_in_reach(), engine.connect() as connection:
        size = log_size(connection)
        is_known = size >= known.size and _root(connection, known.size) == known.root
    if is_known:
        return []
    _tell(engine, RESTORED, {"size": size, "signed": known.size, "root": known.root, "log": known.log})
    what = (
        f"the log has {size} rows, and {known.size} were signed"
        if size < known.size
        else f"the first {known.size} rows of the log are not those that were signed"
    )
    return [
        f"{what}, as {shipped.name} tells: an older copy of the database was restored, another put in its place, or "
        f"its end cut off. `answerable ledger verify` says so until {shipped.name} is put away under another name; "
        "keep it, it is the proof of what is gone"
    ]


def _erased_again(engine: Engine, vault: Vault, erasures: ErasureList) -> list[str]:
    listed, faults = erasures.read()
    told = [f"{fault}: erasures may be missing from it" for fault in faults]
    with database_in_reach(), engine.connect() as connection:
        undone = [one for one in listed if _leaf(connection, one.place) != one.leaf]
    again = [made for one in undone if (made := erase_again(engine, vault, one, START)) is not None]
    if again:
        records = sum(made.records for made in again)
        told.append(
            f"{len(again)} erasures that {erasures.path.name} tells of had been undone by an older copy of the "
            f"database and were made again: {records} records lost their personal part"
        )
    return told


def _last_shipped(path: Path) -> Checkpoint | None:
    try:
        line = last_line(path)
        return None if line is None else read_line(orjson.loads(line))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # a verification tells


def _root(connection: Connection, size: int) -> str | None:
    try:
        return tree_in(connection).root(size).hex()
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def _leaf(connection: Connection, place: int) -> str | None:
    leaf = connection.scalar(select(log.c.leaf).where(log.c.seq == place))
    return None if leaf is None else leaf.hex()


def _tell(engine: Engine, kind: str, details: dict[str, Any]) -> None:
    event = Event(kind=kind, tenant=OPERATORS, key_id=START, details={**details, "host": gethostname()})
    with database_in_reach(), serialised(engine).begin() as connection:
        insert_event(connection, event)
