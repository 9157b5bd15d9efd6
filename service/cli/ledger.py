"""`answerable ledger`: what a compliance officer does, with the service running or stopped.

Exit codes: 0 all is well; 1 something is wrong, was not found, or is forbidden by a hold; 2 wrong usage, or there is no
ledger. No command makes a ledger or changes its schema.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from sqlalchemy import Connection

from service.access.permissions import OPERATOR_TENANT
from service.cli import people
from service.cli.options import DatabaseUrl, DataFolder, settings_with
from service.cli.printing import local_time, table
from service.errors import UsageError
from service.ledger.checkpoints import Checkpoint, read_line
from service.ledger.entries import LOOKUP, StoredEvent
from service.ledger.events import read_events
from service.ledger.export_checking import MALFORMED, Verdict, check_export
from service.ledger.exporting import all_lines, asked_of, found_lines, write_export
from service.ledger.moments import A_MOMENT, read_moment, written_period
from service.ledger.opening import Opened, is_in_use, opened_ledger
from service.ledger.sealing import Vault
from service.ledger.searches import EventSearch, Search
from service.ledger.searching import read_one
from service.ledger.verifying import verify_ledger

commands = typer.Typer()
commands.add_typer(people.commands)

Checked = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="An export (.zip).", show_default=False)]


def _moment(*, is_end: bool) -> Callable[[str], int]:
    """Reads a day or a time, in UTC, as microseconds since the epoch."""

    def read(text: str) -> int:
        try:
            return read_moment(text, is_end=is_end, zone=UTC)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return read


From = Annotated[
    int | None,
    typer.Option("--from", parser=_moment(is_end=False), metavar="MOMENT", help=f"Since: {A_MOMENT}; included."),
]
To = Annotated[
    int | None,
    typer.Option(
        "--to",
        parser=_moment(is_end=True),
        metavar="MOMENT",
        help=f"Until: {A_MOMENT}; the day is included, a time is not.",
    ),
]


@commands.command()
def verify(
    file: Checked = None,
    public_key: Annotated[
        str | None, typer.Option(help="A public key of the log, 64 digits, or a file with it; for an export.")
    ] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="A file of checkpoints that was kept elsewhere.")] = None,
    data: DataFolder = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Check that nothing recorded was changed, removed or added.

    Without FILE, the ledger in the database: every column of every row, those of the callers' keys too, all
    signatures, and the checkpoints that were shipped to a file; nothing is written, and a folder that may only be
    read will do. With FILE, an export, with nothing but the public key: no database is needed.
    """
    if file is not None:
        return _verify_export(file, public_key, checkpoints)
    with opened_ledger(settings_with(data=data, database_url=database_url), to_read=True) as ledger:
        return _verify(ledger, checkpoints)


def _verify(ledger: Opened, checkpoints: Path | None) -> int:
    shipped = checkpoints or ledger.settings.data / "checkpoints.jsonl"
    was_in_use = is_in_use(ledger.settings)
    verdict = verify_ledger(ledger.engine, ledger.vault, shipped if shipped.exists() else None)
    if not was_in_use and is_in_use(
        ledger.settings
    ):  # a service started meanwhile: read it again, as one that is written to
        with opened_ledger(ledger.settings, to_read=True) as again:
            return _verify(again, checkpoints)
    return _print_verdict(verdict)


def _verify_export(file: Path, public_key: str | None, checkpoints: Path | None) -> int:
    if public_key is None:
        raise UsageError("--public-key is missing: the key that you trust, as `answerable ledger checkpoint` shows it")
    if Path(public_key).is_file():
        public_key = Path(public_key).read_text().strip()
    if not re.fullmatch(r"[0-9a-f]{64}", public_key):
        raise UsageError("--public-key is 64 hexadecimal digits, or a file that holds them")
    known = [] if checkpoints is None else _read_checkpoints(checkpoints)
    try:
        with file.open("rb") as opened:
            return _print_verdict(check_export(opened, public_key, known))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error


def _read_checkpoints(path: Path) -> list[Checkpoint]:
    try:
        return [read_line(orjson.loads(line)) for line in path.read_bytes().splitlines()]
    except (OSError, *MALFORMED) as error:
        raise UsageError(f"{path} holds no checkpoints") from error


def _print_verdict(verdict: Verdict) -> int:
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


@commands.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The zip to write.")],
    tenant: Annotated[
        str | None, typer.Option(help="Whose records.", show_default="the whole log, all tenants")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only records of this model; needs --tenant.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only records of this person; needs --tenant.")] = None,
    decision_id: Annotated[str | None, typer.Option(help="Only records of this decision; needs --tenant.")] = None,
    label: Annotated[str | None, typer.Option(help="Only records predicted so; needs --tenant.")] = None,
    flag: Annotated[str | None, typer.Option(help="Only records with this flag; needs --tenant.")] = None,
    created_from: From = None,
    created_to: To = None,
    data: DataFolder = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Write records, their proofs and the signed log to a zip.

    The zip can be checked anywhere with `answerable ledger verify FILE --public-key KEY`. A file that is there is not
    overwritten.
    """
    search = Search(
        model=model,
        subject=subject,
        decision_id=decision_id,
        label=label,
        flag=flag,
        created_from=created_from,
        created_to=created_to,
    )
    with opened_ledger(settings_with(data=data, database_url=database_url), to_read=False) as ledger:
        return _export(ledger, file, tenant, search)


def _export(ledger: Opened, path: Path, tenant: str | None, search: Search) -> int:
    if tenant is None and search != Search():
        raise UsageError("say whose records with --tenant")
    ledger.signer.open()
    checkpoint = ledger.signer.sign()
    if checkpoint is None:
        raise UsageError("the log is empty")
    lines = (
        all_lines(ledger.engine, ledger.vault, checkpoint.size)
        if tenant is None
        else found_lines(ledger.engine, ledger.vault, tenant, search, checkpoint.size)
    )
    conditions = asked_of(tenant, search)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} is there already, and is not overwritten; name another file") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            count = write_export(
                file, ledger.engine, ledger.signer, checkpoint, lines, conditions, complete=tenant is None
            )
    except BaseException:
        path.unlink()  # an incomplete export is of no use
        raise
    period = written_period(search.created_from, search.created_to)
    when = "".join(f" {word} {period[word]}" for word in ("from", "before") if word in period)
    print(f"{count} records{when} in {path}, signed by {checkpoint.key}")
    return 0


@commands.command("checkpoint")
def sign_checkpoint(data: DataFolder = None, database_url: DatabaseUrl = None) -> int:
    """Sign the state of the log, and show it with the public key."""
    with opened_ledger(settings_with(data=data, database_url=database_url), to_read=False) as ledger:
        key = ledger.signer.open()
        checkpoint = ledger.signer.sign()
    print(f"public key  {key.public_key}")
    if checkpoint is not None:
        print(
            f"rows        {checkpoint.size}\nroot        {checkpoint.root}\n"
            f"signed      {local_time(checkpoint.created)}"
        )
    return 0


@commands.command()
def lookups(
    tenant: Annotated[str, typer.Option(help="Whose records were looked at.")] = OPERATOR_TENANT,
    explanation: Annotated[str | None, typer.Option(help="Only look-ups of this explanation.")] = None,
    limit: Annotated[int, typer.Option(help="How many are listed at most.")] = 50,
    created_from: From = None,
    created_to: To = None,
    data: DataFolder = None,
    database_url: DatabaseUrl = None,
) -> int:
    """List who looked at what, and when, the newest first."""
    search = EventSearch(kind=LOOKUP, about=explanation, created_from=created_from, created_to=created_to)
    settings = settings_with(data=data, database_url=database_url)
    with opened_ledger(settings, to_read=True) as ledger, ledger.engine.connect() as connection:
        page = read_events(connection, tenant, search, limit, None)
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


@commands.command()
def rotate_key(data: DataFolder = None, database_url: DatabaseUrl = None) -> int:
    """Change to a new signing key; what is signed stays valid.

    The old key endorses the new one. Copy the new file to the other hosts of the same database.
    """
    with opened_ledger(settings_with(data=data, database_url=database_url), to_read=False) as ledger:
        ledger.signer.open()
        key = ledger.signer.rotate()
    print(f"public key  {key.public_key}\nendorsed by the one before it, which stays good for what it signed")
    return 0


def _person(connection: Connection, vault: Vault, event: StoredEvent) -> str | None:
    """The person that a look-up was about, if it was one and they were not erased."""
    tokens = str((event.details.get("conditions") or {}).get("subject", "")).split()
    if tokens:
        return next((name for token in tokens if (name := people.person_of(connection, vault, token))), None)
    if event.about is None:
        return None
    stored = read_one(connection, vault, event.tenant, event.about)
    return people.person_of(connection, vault, event.about) if stored is None else stored.subject


def _searched(details: Mapping[str, Any]) -> str:
    """The conditions of a look-up that was not about a single explanation, and how many it found."""
    conditions = details.get("conditions", {})
    values = conditions if isinstance(conditions, dict) else dict.fromkeys(conditions, "")
    words = [f"{name}={orjson.dumps(value).decode()}" if value else name for name, value in values.items()]
    count = len(details["seen"]) if "seen" in details else details.get("rows")
    return " ".join([*words, *([] if count is None else [f"({count} found)"])])
