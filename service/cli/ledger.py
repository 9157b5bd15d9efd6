"""`answerable ledger`: what a compliance officer does, with the service running or stopped.

Exit codes: 0 all is well; 1 something is wrong, was not found, or is forbidden by a hold; 2 it was asked wrongly, or
there is no ledger to ask. No command makes a ledger, nor changes the schema of one.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection

from service.access.permissions import OPERATOR_TENANT
from service.cli import people as people
from service.cli.people import AskedWrongly
from service.cli.printing import local_time, table
from service.errors import AnswerableError, InvalidRequest, NoLedger
from service.ledger.checkpoints import Checkpoint, read_line
from service.ledger.entries import LOOKUP, StoredEvent
from service.ledger.events import read_events
from service.ledger.export_checking import MALFORMED, Verdict, check_export
from service.ledger.exporting import all_lines, asked_of, found_lines, write_export
from service.ledger.moments import A_MOMENT, read_moment, written_period
from service.ledger.opening import Opened, is_in_use, opened_ledger
from service.ledger.sealing import Vault, WrongMasterKey
from service.ledger.searches import EventSearch, Search
from service.ledger.searching import read_one
from service.ledger.secret_files import SecretFileError
from service.ledger.signing import NotTheSigner
from service.ledger.verifying import verify_ledger
from service.settings import Settings

Command = Callable[[Opened, argparse.Namespace], int]


def add_commands(ledger: argparse.ArgumentParser, forget_rows: people.ForgetRows) -> None:
    """Adds the actions of `answerable ledger`."""
    actions = ledger.add_subparsers(required=True, metavar="action")

    def add(name: str, run: Command, about: str, more: str = "", *, to_read: bool = False) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}. {more}")
        action.add_argument("--data", type=Path, help="the folder of the embedded stores and of the keys' files")
        action.add_argument("--database-url", dest="database_url", help="the ledger's database, if it is PostgreSQL")
        action.set_defaults(run=lambda settings, options: _run(run, settings, options, to_read=to_read))
        return action

    verify = add(
        "verify",
        _verify,
        "check that nothing recorded was changed, removed or added since",
        "Without FILE, the ledger in the database: every column of every row, those of the callers' keys too, all "
        "signatures, and the checkpoints that were shipped to a file; nothing is written, and a folder that may only "
        "be read will do. With FILE, an export, with nothing but the public key: no database is needed.",
        to_read=True,
    )
    verify.add_argument("file", nargs="?", type=Path, metavar="FILE", help="an export (.zip)")
    verify.add_argument("--public-key", help="a public key of the log, 64 digits, or a file with it; for an export")
    verify.add_argument("--checkpoints", type=Path, help="a file of checkpoints that was kept elsewhere")

    export = add(
        "export",
        _export,
        "write records, their proofs and the signed state of the log to a zip",
        "The zip can be checked anywhere with `answerable ledger verify FILE --public-key KEY`. A file that is there "
        "is not overwritten.",
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
    _add_period(export)

    for name, run, about, reason in (
        ("erase", people.erase, "destroy a person's data for good; the proofs stay valid", "why, for the record"),
        (
            "hold",
            people.hold,
            "forbid to erase a person's data (a legal hold)",
            "why; whoever asks for erasure reads it",
        ),
        ("release", people.release, "end a legal hold", "why, for the record"),
    ):
        action = add(name, run, about, "The reason stays in the log for good: do not name the person in it.")
        people.add_person(action, reason, is_required=name == "hold")
        if name == "erase":
            action.add_argument("--yes", action="store_true", help="do not ask")
            action.set_defaults(forget_rows=forget_rows)
    add("holds", people.holds, "list the legal holds in force", to_read=True)
    add(
        "retain",
        people.retain,
        "erase what is older than its retention class allows",
        "The running service does so once a day; the periods are ANSWERABLE_RETENTION, in months.",
    )
    add("checkpoint", _checkpoint, "sign the state of the log, and show it with the public key")
    lookups = add("lookups", _lookups, "list who looked at what, and when, the newest first", to_read=True)
    lookups.add_argument("--tenant", default=OPERATOR_TENANT)
    lookups.add_argument("--explanation", help="only look-ups of this explanation")
    lookups.add_argument("--limit", type=int, default=50)
    _add_period(lookups)
    add(
        "rotate-key",
        _rotate,
        "go over to a new signing key; what the old one signed stays valid",
        "The old key endorses the new one. Copy the new file to the other hosts of the same database.",
    )


def _add_period(action: argparse.ArgumentParser) -> None:
    for name, is_end in (("from", False), ("to", True)):
        included = "the day is included, a time is not" if is_end else "included"

        def read(given: str, is_end: bool = is_end) -> int:
            try:
                return read_moment(given, is_end=is_end, zone=UTC)
            except ValueError as error:
                raise argparse.ArgumentTypeError(str(error)) from None

        action.add_argument(f"--{name}", type=read, metavar="MOMENT", help=f"{A_MOMENT}; {included}")


def _run(run: Command, settings: Settings, options: argparse.Namespace, *, to_read: bool) -> int:
    try:
        if run is _verify and options.file is not None:
            return _verify_export(options)
        with opened_ledger(settings, to_read=to_read) as ledger:
            return run(ledger, options)
    except (AskedWrongly, NoLedger, InvalidRequest) as error:
        print(error, file=sys.stderr)
        return 2
    except (AnswerableError, WrongMasterKey, NotTheSigner, SecretFileError) as error:
        print(error, file=sys.stderr)
        return 1


def _verify(ledger: Opened, options: argparse.Namespace) -> int:
    shipped = options.checkpoints or ledger.settings.data / "checkpoints.jsonl"
    was_in_use = is_in_use(ledger.settings)
    verdict = verify_ledger(ledger.engine, ledger.vault, shipped if shipped.exists() else None)
    if not was_in_use and is_in_use(ledger.settings):  # it was read as if nobody wrote, and now somebody does
        with opened_ledger(ledger.settings, to_read=True) as again:
            return _verify(again, options)
    return _tell(verdict)


def _verify_export(options: argparse.Namespace) -> int:
    if options.public_key is None:
        raise AskedWrongly(
            "--public-key is missing: the key that you trust, as `answerable ledger checkpoint` shows it"
        )
    given = str(options.public_key)
    if Path(given).is_file():
        given = Path(given).read_text().strip()
    if not re.fullmatch(r"[0-9a-f]{64}", given):
        raise AskedWrongly("--public-key is 64 hexadecimal digits, or a file that holds them")
    known = [] if options.checkpoints is None else _read_checkpoints(options.checkpoints)
    try:
        with options.file.open("rb") as file:
            return _tell(check_export(file, given, known))
    except OSError as error:
        raise AskedWrongly(f"{options.file} cannot be read: {error.strerror}") from error


def _read_checkpoints(path: Path) -> list[Checkpoint]:
    try:
        return [read_line(orjson.loads(line)) for line in path.read_bytes().splitlines()]
    except (OSError, *MALFORMED) as error:
        raise AskedWrongly(f"{path} holds no checkpoints") from error


def _tell(verdict: Verdict) -> int:
    for fault in verdict.faults:
        print(f"FAULT  {fault}")
    if verdict.count > len(verdict.faults):
        print(f"FAULT  ... and {verdict.count - len(verdict.faults)} more")
    signed = "never signed" if verdict.signed is None else f"last signed {local_time(verdict.signed)}"
    erased = f", {verdict.erased} of them erased" if verdict.erased else ""
    print(f"{verdict.records} records{erased}; the log has {verdict.size} rows, {signed}")
    if verdict.kept_keys and verdict.kept_at is not None:
        kept_at = local_time(verdict.kept_at)
        print(f"{verdict.kept_keys} keys are as they were at {kept_at}; the log holds no more of before")
    print("VALID: all is as it was recorded" if verdict.is_valid else f"NOT VALID: {verdict.count} faults")
    return 0 if verdict.is_valid else 1


def _export(ledger: Opened, options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in ("model", "subject", "decision_id", "label", "flag")}
    given |= {"created_from": getattr(options, "from"), "created_to": options.to}
    search = Search(**given)
    whole = options.tenant is None
    if whole and search != Search():
        raise AskedWrongly("say whose records with --tenant")
    ledger.signer.open()
    checkpoint = ledger.signer.sign()
    if checkpoint is None:
        raise AskedWrongly("the log is empty")
    lines = (
        all_lines(ledger.engine, ledger.vault, checkpoint.size)
        if whole
        else found_lines(ledger.engine, ledger.vault, options.tenant, search, checkpoint.size)
    )
    asked = asked_of(options.tenant, search)
    try:
        descriptor = os.open(options.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise AskedWrongly(f"{options.file} is there already, and is not overwritten; name another file") from None
    except OSError as error:
        raise AskedWrongly(f"{options.file} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            count = write_export(file, ledger.engine, ledger.signer, checkpoint, lines, asked, complete=whole)
    except BaseException:
        options.file.unlink()  # half an export is none
        raise
    period = written_period(search.created_from, search.created_to)
    when = "".join(f" {word} {period[word]}" for word in ("from", "before") if word in period)
    print(f"{count} records{when} in {options.file}, signed by {checkpoint.key}")
    return 0


def _checkpoint(ledger: Opened, _options: argparse.Namespace) -> int:
    key = ledger.signer.open()
    checkpoint = ledger.signer.sign()
    print(f"public key  {key.public_key}")
    if checkpoint is not None:
        print(
            f"rows        {checkpoint.size}\nroot        {checkpoint.root}\n"
            f"signed      {local_time(checkpoint.created)}"
        )
    return 0


def _lookups(ledger: Opened, options: argparse.Namespace) -> int:
    search = EventSearch(
        kind=LOOKUP, about=options.explanation, created_from=getattr(options, "from"), created_to=options.to
    )
    with ledger.engine.connect() as connection:
        page = read_events(connection, options.tenant, search, options.limit, None)
        key_names = people.names_of_keys(connection)
        rows = [
            (
                local_time(event.created),
                key_names.get(event.key_id, event.key_id),
                str(event.details["action"]),
                _person(connection, ledger.vault, event) or "",
                event.about or _searched(event.details),
            )
            for event in page.events
        ]
    print(table(("when", "key", "did", "person", "of what"), rows, "there are no look-ups"))
    if page.next_cursor is not None:
        print("there are more: ask with --limit, --from and --to")
    return 0


def _person(connection: Connection, vault: Vault, event: StoredEvent) -> str | None:
    """Whom a look-up was about, where that is one person and they were not erased."""
    tokens = str((event.details.get("conditions") or {}).get("subject", "")).split()
    if tokens:
        return next((name for token in tokens if (name := people.person_of(connection, vault, token))), None)
    if event.about is None:
        return None
    stored = read_one(connection, vault, event.tenant, event.about)
    return people.person_of(connection, vault, event.about) if stored is None else stored.subject


def _searched(details: Mapping[str, Any]) -> str:
    """What a look-up that was about no one explanation asked for, and how many it found."""
    asked = details.get("conditions", {})
    named = asked if isinstance(asked, dict) else dict.fromkeys(asked, "")
    told = [f"{name}={orjson.dumps(value).decode()}" if value else name for name, value in named.items()]
    found = len(details["seen"]) if "seen" in details else details.get("rows")
    return " ".join([*told, *([] if found is None else [f"({found} found)"])])


def _rotate(ledger: Opened, _options: argparse.Namespace) -> int:
    ledger.signer.open()
    key = ledger.signer.rotate()
    print(f"public key  {key.public_key}\nendorsed by the one before it, which stays good for what it signed")
    return 0
