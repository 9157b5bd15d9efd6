"""`answerable ledger erase, hold, release, holds, retain`: what becomes of people's data."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from sqlalchemy import Connection, select

from service.access.permissions import OPERATOR_TENANT
from service.cli.printing import local_time, one_line, table
from service.errors import HeldByLaw, NotFound, Unkept
from service.ledger import erasing, legal_holds, retention
from service.ledger.entries import STANDARD
from service.ledger.erasure_list import NAME, ErasureList
from service.ledger.legal_holds import Kept
from service.ledger.opening import Opened
from service.ledger.sealing import Vault
from service.ledger.searching import read_places
from service.ledger.set_subjects import SetSubjects
from service.ledger.tables import explanations, keys

ForgetRows = Callable[[Path, Collection[str]], None]
"""Removes the rows of these tokens from all baseline sets in a data folder. Raises OSError."""


class AskedWrongly(Exception):
    """What was typed cannot be done; the message says what to type."""


def add_person(action: argparse.ArgumentParser, about_reason: str, *, is_required: bool) -> None:
    """Whom a command is about, and why."""
    action.add_argument("subject", help="the person, as `context.subject` named them")
    action.add_argument("--tenant", default=OPERATOR_TENANT, help="whose records; default: %(default)s")
    action.add_argument("--reason", default="", required=is_required, help=about_reason)


def erase(ledger: Opened, options: argparse.Namespace) -> int:
    """Says what there is, asks unless it was told not to, and destroys it."""
    kept = _kept(ledger, options)
    if kept.hold is not None:
        raise HeldByLaw(
            f"held by {kept.hold.by} since {local_time(kept.hold.created)}: {one_line(kept.hold.reason)}; the data is "
            "erased once that is released"
        )
    if kept.tokens or kept.job_rows or kept.set_rows:
        print(f"{_said(kept)} kept of {_named(options)}")
        reason = _agreed(options)
        if reason is None:
            print("nothing was erased")
            return 1
    else:
        reason = options.reason  # an export may have been asked for by the name; the erasure itself says
    erased = erasing.erase(ledger.engine, ledger.vault, options.tenant, options.subject, operator(), reason)
    ErasureList(ledger.settings.data / NAME, ledger.vault).add_from(ledger.engine, erased.tombstone - 1)
    forget_rows: ForgetRows = options.forget_rows
    try:
        forget_rows(ledger.settings.data, SetSubjects(ledger.engine, ledger.vault).erased())
    except OSError as error:
        raise Unkept(
            f"the erasure is on record, but rows of baseline sets cannot be removed from {ledger.settings.data}: "
            f"{error.strerror}; the service removes them when it starts"
        ) from error
    print(f"{erased.records} records lost their personal part; the tombstone is row {erased.tombstone} of the log")
    if erased.job_rows:
        print(f"{erased.job_rows} rows of jobs that waited to be explained ended")
    if erased.exports:
        print(f"{erased.exports} exports that were asked for by the name forgot it")
    if erased.set_rows:
        print(f"{erased.set_rows} rows of baseline sets were removed")
    left = _kept(ledger, options)
    print(f"{_said(left)} kept of them now")
    return 0


def _agreed(options: argparse.Namespace) -> str | None:
    """Why it is to be erased; None where it is not to be. Raises AskedWrongly where nobody can be asked."""
    reason: str = options.reason
    if options.yes and reason:
        return reason
    if not sys.stdin.isatty():
        missing = [name for name, given in (("--reason", reason), ("--yes", options.yes)) if not given]
        raise AskedWrongly(f"nothing was erased: nobody can be asked here, so it needs {' and '.join(missing)}")
    while not reason:
        reason = input("Why? It stays in the log for good, so name nobody: ").strip()
    if options.yes or input("Erase it for good? Type yes: ").strip().lower() == "yes":
        return reason
    return None


def hold(ledger: Opened, options: argparse.Namespace) -> int:
    """Forbids an erasure, and says what that concerns."""
    made = legal_holds.hold(
        ledger.engine, ledger.vault, options.tenant, options.subject, operator(), options.reason
    ).hold
    print(f"held from {local_time(made.created)} on, by {made.by}: {one_line(made.reason)}")
    kept = _kept(ledger, options)
    print(f"{_said(kept)} under this hold")
    if not kept.explanations and not kept.job_rows and not kept.set_rows:
        print(
            f"Nothing is recorded of {_named(options)} so far: the hold is on what will be. If there should be "
            "something, look at the spelling and at --tenant; `release` ends this one"
        )
    return 0


def release(ledger: Opened, options: argparse.Namespace) -> int:
    """Ends a hold, and says what that concerns."""
    kept = _kept(ledger, options)
    try:
        legal_holds.release(ledger.engine, ledger.vault, options.tenant, options.subject, operator(), options.reason)
    except NotFound:
        raise NotFound(f"there is no hold on {_named(options)}") from None
    print(f"released: {_said(kept)} no longer under a hold")
    return 0


def holds(ledger: Opened, _options: argparse.Namespace) -> int:
    """The holds in force."""
    with ledger.engine.connect() as connection:
        key_names = names_of_keys(connection)
        rows = [
            (
                local_time(found.created),
                found.tenant,
                person_of(connection, ledger.vault, found.token) or f"nothing recorded yet ({found.token[:8]}…)",
                str(legal_holds.count_of(connection, found.tenant, [found.token])),
                key_names.get(found.by, found.by),
                found.reason,
            )
            for found in legal_holds.holds(connection)
        ]
    print(table(("since", "tenant", "person", "explanations", "by", "reason"), rows, "there are no holds"))
    return 0


def retain(ledger: Opened, _options: argparse.Namespace) -> int:
    """Erases what is over its time."""
    counts = retention.retain(ledger.engine, ledger.settings.retention, operator())
    for name, count in counts.items():
        months = ledger.settings.retention.get(name, ledger.settings.retention[STANDARD])
        print(f"{name}: {count} records older than {months} months lost their personal part")
    if not counts:
        print("no explanation is recorded")
    return 0


def names_of_keys(connection: Connection) -> dict[str, str]:
    """What keys are called, by their ids."""
    return {row.id: row.name for row in connection.execute(select(keys.c.id, keys.c.name))}


def person_of(connection: Connection, vault: Vault, token: str) -> str | None:
    """Whom a token stands for, by the newest of their explanations; None of one without any."""
    newest = select(explanations.c.seq).where(explanations.c.subject == token).order_by(explanations.c.seq.desc())
    seq = connection.scalar(newest.limit(1))
    return None if seq is None else read_places(connection, vault, [seq])[0].subject


def operator() -> str:
    """Who sits at the command line."""
    try:
        return f"operator {getpass.getuser()}"[:200]
    except (OSError, KeyError):
        return "operator"


def _kept(ledger: Opened, options: argparse.Namespace) -> Kept:
    return legal_holds.kept_of(ledger.engine, ledger.vault, options.tenant, options.subject)


def _said(kept: Kept) -> str:
    waiting = f" and {kept.job_rows} rows of jobs that wait to be explained" if kept.job_rows else ""
    in_sets = f" and {kept.set_rows} rows of baseline sets" if kept.set_rows else ""
    is_one = kept.explanations == 1 and not waiting and not in_sets
    counted = f"{kept.explanations} explanation{'' if kept.explanations == 1 else 's'}"
    return f"{counted}{waiting}{in_sets} {'is' if is_one else 'are'}"


def _named(options: argparse.Namespace) -> str:
    return f"{one_line(options.subject)!r} of the tenant {options.tenant}"
