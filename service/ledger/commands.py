"""`answerable ledger`: what a compliance officer does, with the service running or stopped.

Exit codes: 0 all is well; 1 something is wrong, was not found, or is forbidden by a hold; 2 it was asked wrongly.
"""

from __future__ import annotations

import argparse
import getpass
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson
from sqlalchemy import Engine

from service.errors import AnswerableError
from service.ledger import erasing
from service.ledger.checkpoints import Checkpoint, Notary, read_line
from service.ledger.entries import LOOKUP, STANDARD, EventSearch, Search
from service.ledger.events import read_events
from service.ledger.export_checking import MALFORMED, Verdict, check_export
from service.ledger.exporting import all_lines, found_lines, write_export
from service.ledger.sealing import Vault, WrongMasterKey
from service.ledger.secret_files import SecretFileError
from service.ledger.signing import NotTheSigner
from service.ledger.verifying import verify_ledger
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Opened:
    """The ledger of the settings; `forget` drops what files of the data folder hold of people who were erased."""

    engine: Engine
    vault: Vault
    notary: Notary
    settings: Settings
    forget: Callable[[], None]


Open = Callable[[Settings], Opened]
Command = Callable[[Opened, argparse.Namespace], int]


def add_commands(ledger: argparse.ArgumentParser, open_ledger: Open) -> None:
    """Adds the actions of `answerable ledger`."""
    actions = ledger.add_subparsers(required=True, metavar="action")

    def add(name: str, run: Command, about: str, more: str = "") -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}. {more}")
        action.add_argument("--data", type=Path, help="the folder of the embedded stores and of the keys' files")
        action.add_argument("--database-url", dest="database_url", help="the ledger's database, if it is PostgreSQL")
        action.set_defaults(run=lambda settings, options: _run(run, open_ledger, settings, options))
        return action

    verify = add(
        "verify",
        _verify,
        "check that nothing recorded was changed, removed or added since",
        "Without FILE, the ledger in the database: every column of every row, those of the callers' keys too, all "
        "signatures, and the checkpoints that were shipped to a file. With FILE, an export, with nothing but the "
        "public key: no database is needed.",
    )
    verify.add_argument("file", nargs="?", type=Path, metavar="FILE", help="an export (.zip)")
    verify.add_argument("--public-key", help="a public key of the log, 64 digits, or a file with it; for an export")
    verify.add_argument("--checkpoints", type=Path, help="a file of checkpoints that was kept elsewhere")

    export = add(
        "export",
        _export,
        "write records, their proofs and the signed state of the log to a zip",
        "The zip can be checked anywhere with `answerable ledger verify FILE --public-key KEY`.",
    )
    export.add_argument("file", type=Path, metavar="FILE")
    export.add_argument("--tenant", help="whose records; default: the whole log, all tenants")
    for name, about in (
        ("model", "of this model"),
        ("subject", "of this person"),
        ("decision-id", "of this decision"),
        ("label", "predicted so"),
        ("flag", "with this flag"),
    ):
        export.add_argument(f"--{name}", help=f"only records {about}; needs --tenant")
    for name in ("from", "to"):
        export.add_argument(f"--{name}", type=_moment, help="a date or time, UTC unless it says otherwise")

    for name, run, about, reason in (
        ("erase", _erase, "destroy a person's data for good; the proofs stay valid", "why, for the record"),
        ("hold", _hold, "forbid to erase a person's data (a legal hold)", "why; whoever asks for erasure reads it"),
        ("release", _release, "end a legal hold", "why, for the record"),
    ):
        action = add(name, run, about, "The reason stays in the log for good: do not name the person in it.")
        action.add_argument("subject", help="the person, as `context.subject` named them")
        action.add_argument("--tenant", default="default")
        action.add_argument("--reason", default="", required=name == "hold", help=reason)
    add("holds", _holds, "list the legal holds in force")
    add(
        "retain",
        _retain,
        "erase what is older than its retention class allows",
        "The running service does so once a day; the periods are ANSWERABLE_RETENTION, in months.",
    )
    add("checkpoint", _checkpoint, "sign the state of the log, and show it with the public key")
    lookups = add("lookups", _lookups, "list who looked at what, and when, the newest first")
    lookups.add_argument("--tenant", default="default")
    lookups.add_argument("--explanation", help="only look-ups of this explanation")
    lookups.add_argument("--limit", type=int, default=50)
    for name in ("from", "to"):
        lookups.add_argument(f"--{name}", type=_moment, help="a date or time, UTC unless it says otherwise")
    add(
        "rotate-key",
        _rotate,
        "go over to a new signing key; what the old one signed stays valid",
        "The old key endorses the new one. Copy the new file to the other hosts of the same database.",
    )


def _run(run: Command, open_ledger: Open, settings: Settings, options: argparse.Namespace) -> int:
    try:
        if run is _verify and options.file is not None:
            return _verify_export(options)
        ledger = open_ledger(settings)
        try:
            return run(ledger, options)
        finally:
            ledger.engine.dispose()
    except (AnswerableError, WrongMasterKey, NotTheSigner, SecretFileError) as error:
        print(error, file=sys.stderr)
        return 1
    except _AskedWrongly as error:
        print(error, file=sys.stderr)
        return 2


class _AskedWrongly(Exception):
    pass


def _verify(ledger: Opened, options: argparse.Namespace) -> int:
    shipped = options.checkpoints or ledger.settings.data / "checkpoints.jsonl"
    return _tell(verify_ledger(ledger.engine, ledger.vault, shipped if shipped.exists() else None))


def _verify_export(options: argparse.Namespace) -> int:
    if options.public_key is None:
        raise _AskedWrongly(
            "--public-key is missing: the key that you trust, as `answerable ledger checkpoint` shows it"
        )
    given = str(options.public_key)
    if Path(given).is_file():
        given = Path(given).read_text().strip()
    if not re.fullmatch(r"[0-9a-f]{64}", given):
        raise _AskedWrongly("--public-key is 64 hexadecimal digits, or a file that holds them")
    known = [] if options.checkpoints is None else _read_checkpoints(options.checkpoints)
    try:
        with options.file.open("rb") as file:
            return _tell(check_export(file, given, known))
    except OSError as error:
        raise _AskedWrongly(f"{options.file} cannot be read: {error.strerror}") from error


def _read_checkpoints(path: Path) -> list[Checkpoint]:
    try:
        return [read_line(orjson.loads(line)) for line in path.read_bytes().splitlines()]
    except (OSError, *MALFORMED) as error:
        raise _AskedWrongly(f"{path} holds no checkpoints") from error


def _tell(verdict: Verdict) -> int:
    for fault in verdict.faults:
        print(f"FAULT  {fault}")
    if verdict.count > len(verdict.faults):
        print(f"FAULT  ... and {verdict.count - len(verdict.faults)} more")
    signed = "never signed" if verdict.signed is None else f"last signed {_shown(verdict.signed)}"
    erased = f", {verdict.erased} of them erased" if verdict.erased else ""
    print(f"{verdict.records} records{erased}; the log has {verdict.size} rows, {signed}")
    if verdict.kept_keys and verdict.kept_at is not None:
        print(
            f"{verdict.kept_keys} keys are as they were at {_shown(verdict.kept_at)}; the log holds no more of before"
        )
    print("VALID: all is as it was recorded" if verdict.is_valid else f"NOT VALID: {verdict.count} faults")
    return 0 if verdict.is_valid else 1


def _export(ledger: Opened, options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in ("model", "subject", "decision_id", "label", "flag")}
    given |= {"created_from": getattr(options, "from"), "created_to": options.to}
    asked = {name: value for name, value in given.items() if value is not None}
    if asked and options.tenant is None:
        raise _AskedWrongly("say whose records with --tenant")
    ledger.notary.open()
    checkpoint = ledger.notary.sign()
    if checkpoint is None:
        raise _AskedWrongly("the log is empty")
    whole = options.tenant is None
    lines = (
        all_lines(ledger.engine, ledger.vault, checkpoint.size)
        if whole
        else found_lines(ledger.engine, ledger.vault, options.tenant, Search(**asked), checkpoint.size)
    )
    # The manifest names conditions, but no person.
    told = {name: value for name, value in asked.items() if name not in ("subject", "decision_id")}
    with options.file.open("wb") as file:
        options.file.chmod(0o600)
        count = write_export(
            file, ledger.engine, ledger.notary, checkpoint, lines, {"tenant": options.tenant, **told}, complete=whole
        )
    print(f"{count} records in {options.file}, signed by {checkpoint.key}")
    return 0


def _erase(ledger: Opened, options: argparse.Namespace) -> int:
    erased = erasing.erase(ledger.engine, ledger.vault, options.tenant, options.subject, _operator(), options.reason)
    ledger.forget()
    print(f"{erased.records} records lost their personal part; the tombstone is row {erased.tombstone} of the log")
    if erased.job_rows:
        print(f"{erased.job_rows} rows of jobs that waited to be explained ended")
    if erased.set_rows:
        print(f"{erased.set_rows} rows of baseline sets were removed")
    return 0


def _hold(ledger: Opened, options: argparse.Namespace) -> int:
    hold = erasing.hold(ledger.engine, ledger.vault, options.tenant, options.subject, _operator(), options.reason)
    print(f"held from {_shown(hold.created)} on, by {hold.by}: {hold.reason}")
    return 0


def _release(ledger: Opened, options: argparse.Namespace) -> int:
    erasing.release(ledger.engine, ledger.vault, options.tenant, options.subject, _operator(), options.reason)
    print("released")
    return 0


def _holds(ledger: Opened, _options: argparse.Namespace) -> int:
    with ledger.engine.connect() as connection:
        for hold in erasing.holds(connection):
            print(f"{_shown(hold.created)}  {hold.tenant}  {hold.token}  {hold.by}  {hold.reason}")
    return 0


def _retain(ledger: Opened, _options: argparse.Namespace) -> int:
    for name, count in erasing.retain(ledger.engine, ledger.settings.retention, _operator()).items():
        months = ledger.settings.retention.get(name, ledger.settings.retention[STANDARD])
        print(f"{name}: {count} records older than {months} months lost their personal part")
    return 0


def _checkpoint(ledger: Opened, _options: argparse.Namespace) -> int:
    key = ledger.notary.open()
    checkpoint = ledger.notary.sign()
    print(f"public key  {key.public_key}")
    if checkpoint is not None:
        print(f"rows        {checkpoint.size}\nroot        {checkpoint.root}\nsigned      {_shown(checkpoint.created)}")
    return 0


def _lookups(ledger: Opened, options: argparse.Namespace) -> int:
    search = EventSearch(
        kind=LOOKUP, about=options.explanation, created_from=getattr(options, "from"), created_to=options.to
    )
    with ledger.engine.connect() as connection:
        page = read_events(connection, options.tenant, search, options.limit, None)
    for event in page.events:
        details = {name: value for name, value in event.details.items() if name != "action"}
        about = event.about or orjson.dumps(details).decode()
        print(f"{_shown(event.created)}  key {event.key_id}  {event.details['action']}  {about}")
    return 0


def _rotate(ledger: Opened, _options: argparse.Namespace) -> int:
    ledger.notary.open()
    key = ledger.notary.rotate()
    print(f"public key  {key.public_key}\nendorsed by the one before it, which stays good for what it signed")
    return 0


def _operator() -> str:
    """Who sits at the command line."""
    try:
        return f"operator {getpass.getuser()}"[:200]
    except (OSError, KeyError):
        return "operator"


def _moment(text: str) -> int:
    """Microseconds since the epoch. Raises ValueError, which argparse tells."""
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)


def _shown(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="seconds")
