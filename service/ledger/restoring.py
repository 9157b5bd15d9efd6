"""Compares the database with the files beside it when the service starts, which shows an older or a shorter database.

An older copy of the database, a new one in its place, or one whose end was cut off holds less than was signed. This is
reported in the log of the process, in the ledger and by the readiness check, and everybody who was erased since is
erased again.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from socket import gethostname
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, select

from service.ledger.checkpoints import Checkpoint, read_line
from service.ledger.database import database_in_reach, serialised
from service.ledger.entries import FILE_REPAIRED, RESTORED, Event
from service.ledger.erasing import erase_again
from service.ledger.erasure_list import ErasureList
from service.ledger.events import insert_event
from service.ledger.growing_files import cut_torn_end, last_line
from service.ledger.sealing import Vault
from service.ledger.stored_tree import log_size, tree_in
from service.ledger.tables import log

OPERATORS = "default"
"""The tenant of the events about the ledger as a whole."""
START = "start"
"""The `key_id` of these events."""

_log = logging.getLogger(__name__)


def catch_up(engine: Engine, vault: Vault, shipped: Path, erasures: ErasureList) -> list[str]:
    """Repairs the files and repeats erasures that were undone; returns sentences for the operator.

    Raises LedgerUnavailable.
    """
    notices = [
        *_repaired(engine, shipped, erasures.path),
        *_restored(engine, shipped),
        *_erased_again(engine, vault, erasures),
    ]
    for sentence in notices:
        _log.warning("%s", sentence)
    erasures.add_from(engine)
    return notices


def _repaired(engine: Engine, *paths: Path) -> list[str]:
    notices = []
    for path in paths:
        try:
            torn = cut_torn_end(path)
        except OSError as error:
            notices.append(
                f"{path.name} cannot be read and written: {error.strerror}; give it back to the user of the service"
            )
            continue
        if torn is not None:
            details = {"file": path.name, "bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
            _append_event(engine, FILE_REPAIRED, details)
            notices.append(
                f"{path.name} ended in a torn line of {len(torn)} bytes, which was removed: was the disk full?"
            )
    return notices


def _restored(engine: Engine, shipped: Path) -> list[str]:
    last = _last_shipped(shipped)
    if last is None:
        return []
    with database_in_reach(), engine.connect() as connection:
        size = log_size(connection)
        is_intact = size >= last.size and _root(connection, last.size) == last.root
    if is_intact:
        return []
    _append_event(engine, RESTORED, {"size": size, "signed": last.size, "root": last.root, "log": last.log})
    difference = (
        f"the log has {size} rows, and {last.size} were signed"
        if size < last.size
        else f"the first {last.size} rows of the log are not those that were signed"
    )
    return [
        f"{difference}, according to {shipped.name}: an older copy of the database was restored, another was put in "
        f"its place, or its end was cut off. `answerable ledger verify` reports this until {shipped.name} is renamed; "
        "keep the file, it is the proof of what is missing"
    ]


def _erased_again(engine: Engine, vault: Vault, erasures: ErasureList) -> list[str]:
    listed, faults = erasures.read()
    notices = [f"{fault}: erasures may be missing from it" for fault in faults]
    with database_in_reach(), engine.connect() as connection:
        undone = [erasure for erasure in listed if _leaf(connection, erasure.place) != erasure.leaf]
    repeated = [erased for erasure in undone if (erased := erase_again(engine, vault, erasure, START)) is not None]
    if repeated:
        records = sum(erased.records for erased in repeated)
        notices.append(
            f"{len(repeated)} erasures listed in {erasures.path.name} had been undone by an older copy of the database "
            f"and were made again: {records} records lost their personal part"
        )
    return notices


def _last_shipped(path: Path) -> Checkpoint | None:
    try:
        line = last_line(path)
        return None if line is None else read_line(orjson.loads(line))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # verification reports it


def _root(connection: Connection, size: int) -> str | None:
    try:
        return tree_in(connection).root(size).hex()
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def _leaf(connection: Connection, place: int) -> str | None:
    leaf = connection.scalar(select(log.c.leaf).where(log.c.seq == place))
    return None if leaf is None else leaf.hex()


def _append_event(engine: Engine, kind: str, details: dict[str, Any]) -> None:
    event = Event(kind=kind, tenant=OPERATORS, key_id=START, details={**details, "host": gethostname()})
    with database_in_reach(), serialised(engine).begin() as connection:
        insert_event(connection, event)
