"""`answerable ledger erase, hold, release, holds, retain`: what becomes of people's data."""

from __future__ import annotations

import getpass
import sys
from typing import Annotated

import typer
from sqlalchemy import Connection, select

from service.access.permissions import OPERATOR_TENANT
from service.cli.options import DatabaseUrl, DataFolder, settings_with
from service.cli.printing import local_time, one_line, table
from service.errors import HeldByLaw, NotFound, Unkept, UsageError
from service.ledger import erasing, legal_holds, retention
from service.ledger.entries import STANDARD
from service.ledger.erasure_list import NAME, ErasureList
from service.ledger.legal_holds import Kept
from service.ledger.opening import Opened, opened_ledger
from service.ledger.sealing import Vault
from service.ledger.searching import read_places
from service.ledger.set_subjects import SetSubjects
from service.ledger.tables import explanations, keys
from service.wording import number_of

Subject = Annotated[str, typer.Argument(help="The person, as `context.subject` named them.")]
Tenant = Annotated[str, typer.Option(help="Whose records.")]
Reason = Annotated[str, typer.Option(help="Why, for the record.", show_default=False)]

commands = typer.Typer()


@commands.command()
def erase(
    subject: Subject,
    tenant: Tenant = OPERATOR_TENANT,
    reason: Reason = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data: DataFolder = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Destroy a person's data for good; the proofs stay valid.

    It says what there is, and asks before it does so. The reason stays in the log for good: do not name the person in
    it.
    """
    with opened_ledger(settings_with(data=data, database_url=database_url), to_read=False) as ledger:
        return _erase(ledger, tenant, subject, reason, is_agreed=yes)


def _erase(ledger: Opened, tenant: str, subject: str, reason: str, *, is_agreed: bool) -> int:
    kept = legal_holds.kept_of(ledger.engine, ledger.vault, tenant, subject)
    if kept.hold is not None:
        raise HeldByLaw(
            f"held by {kept.hold.by} since {local_time(kept.hold.created)}: {one_line(kept.hold.reason)}; the data is "
            "erased once that is released"
        )
    if kept.tokens or kept.job_rows or kept.set_rows:
        print(f"{_count_text(kept)} kept of {_person_text(tenant, subject)}")
        agreed = _agreed(reason, is_agreed=is_agreed)
        if agreed is None:
            print("nothing was erased")
            return 1
        reason = agreed
    # Where nothing is kept, an export may still hold the name as a condition; the erasure reports that.
    erased = erasing.erase(ledger.engine, ledger.vault, tenant, subject, operator(), reason)
    ErasureList(ledger.settings.data / NAME, ledger.vault).add_from(ledger.engine, erased.tombstone - 1)
    from service.catalog.set_erasure import forget_rows

    try:
        forget_rows(ledger.settings.data, SetSubjects(ledger.engine, ledger.vault).erased())
    except OSError as error:
        raise Unkept(
            f"the erasure is on record, but rows of baseline sets cannot be removed from {ledger.settings.data}: "
            f"{error.strerror}; the service removes them when it starts"
        ) from error
    records = number_of(erased.records, "record")
    print(f"{records} lost the personal part; the tombstone is row {erased.tombstone} of the log")
    if erased.job_rows:
        print(f"{number_of(erased.job_rows, 'row')} of jobs that waited to be explained ended")
    if erased.exports:
        print(f"{number_of(erased.exports, 'export')} that had been asked for by the name forgot it")
    if erased.set_rows:
        print(f"{number_of(erased.set_rows, 'row')} of baseline sets removed")
    remaining = legal_holds.kept_of(ledger.engine, ledger.vault, tenant, subject)
    print(f"{_count_text(remaining)} kept of them now")
    return 0


def _agreed(reason: str, *, is_agreed: bool) -> str | None:
    """The reason for the erasure if the user agrees to it, else None. Raises UsageError if nobody can be asked."""
    if is_agreed and reason:
        return reason
    if not sys.stdin.isatty():
        missing = [name for name, value in (("--reason", reason), ("--yes", is_agreed)) if not value]
        raise UsageError(f"nothing was erased: nobody can be asked here, so it needs {' and '.join(missing)}")
    while not reason:
        reason = input("Why? It stays in the log for good, so name nobody: ").strip()
    if is_agreed or input("Erase it for good? Type yes: ").strip().lower() == "yes":
        return reason
    return None


@commands.command()
def hold(
    subject: Subject,
    reason: Annotated[str, typer.Option(help="Why; whoever asks for erasure reads it.", show_default=False)],
    tenant: Tenant = OPERATOR_TENANT,
    data: DataFolder = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Forbid to erase a person's data (a legal hold).

    The reason stays in the log for good: do not name the person in it.
    """
    with opened_ledger(settings_with(data=data, database_url=database_url), to_read=False) as ledger:
        made = legal_holds.hold(ledger.engine, ledger.vault, tenant, subject, operator(), reason).hold
        print(f"held from {local_time(made.created)} on, by {made.by}: {one_line(made.reason)}")
        kept = legal_holds.kept_of(ledger.engine, ledger.vault, tenant, subject)
    print(f"{_count_text(kept)} under this hold")
    if not kept.explanations and not kept.job_rows and not kept.set_rows:
        print(
            f"Nothing is recorded of {_person_text(tenant, subject)} so far: the hold is on what will be. If there "
            "should be something, look at the spelling and at --tenant; `release` ends this one"
        )
    return 0


@commands.command()
def release(
    subject: Subject,
    tenant: Tenant = OPERATOR_TENANT,
    reason: Reason = "",
    data: DataFolder = None,
    database_url: DatabaseUrl = None,
) -> int:
    """End a legal hold.

    The reason stays in the log for good: do not name the person in it.
    """
    with opened_ledger(settings_with(data=data, database_url=database_url), to_read=False) as ledger:
        kept = legal_holds.kept_of(ledger.engine, ledger.vault, tenant, subject)
        try:
            legal_holds.release(ledger.engine, ledger.vault, tenant, subject, operator(), reason)
        except NotFound:
            raise NotFound(f"there is no hold on {_person_text(tenant, subject)}") from None
    print(f"released: {_count_text(kept)} no longer under a hold")
    return 0


@commands.command()
def holds(data: DataFolder = None, database_url: DatabaseUrl = None) -> int:
    """List the legal holds in force."""
    settings = settings_with(data=data, database_url=database_url)
    with opened_ledger(settings, to_read=True) as ledger, ledger.engine.connect() as connection:
        key_names = names_of_keys(connection)
        rows = [
            (
                local_time(legal_hold.created),
                legal_hold.tenant,
                person_of(connection, ledger.vault, legal_hold.token)
                or f"nothing recorded yet ({legal_hold.token[:8]}…)",
                str(legal_holds.count_of(connection, legal_hold.tenant, [legal_hold.token])),
                key_names.get(legal_hold.by, legal_hold.by),
                legal_hold.reason,
            )
            for legal_hold in legal_holds.holds(connection)
        ]
    print(table(("since", "tenant", "person", "explanations", "by", "reason"), rows, "there are no holds"))
    return 0


@commands.command()
def retain(data: DataFolder = None, database_url: DatabaseUrl = None) -> int:
    """Erase what is older than its retention class allows.

    The running service does so once a day; the periods are ANSWERABLE_RETENTION, in months.
    """
    settings = settings_with(data=data, database_url=database_url)
    with opened_ledger(settings, to_read=False) as ledger:
        counts = retention.retain(ledger.engine, settings.retention, operator())
    for name, count in counts.items():
        months = settings.retention.get(name, settings.retention[STANDARD])
        print(f"{name}: {count} records older than {months} months lost their personal part")
    if not counts:
        print("no explanation is recorded")
    return 0


def names_of_keys(connection: Connection) -> dict[str, str]:
    """The names of keys, by their ids."""
    return {row.id: row.name for row in connection.execute(select(keys.c.id, keys.c.name))}


def person_of(connection: Connection, vault: Vault, token: str) -> str | None:
    """The person that a token stands for, read from their newest explanation; None if there is none."""
    newest = select(explanations.c.seq).where(explanations.c.subject == token).order_by(explanations.c.seq.desc())
    seq = connection.scalar(newest.limit(1))
    return None if seq is None else read_places(connection, vault, [seq])[0].subject


def operator() -> str:
    """The user at the command line, as the log records them."""
    try:
        return f"operator {getpass.getuser()}"[:200]
    except (OSError, KeyError):
        return "operator"


def _count_text(kept: Kept) -> str:
    waiting = f" and {number_of(kept.job_rows, 'row')} of jobs that are still to be explained" if kept.job_rows else ""
    in_sets = f" and {number_of(kept.set_rows, 'row')} of baseline sets" if kept.set_rows else ""
    is_one = kept.explanations == 1 and not waiting and not in_sets
    counted = f"{kept.explanations} explanation{'' if kept.explanations == 1 else 's'}"
    return f"{counted}{waiting}{in_sets} {'is' if is_one else 'are'}"


def _person_text(tenant: str, subject: str) -> str:
    return f"{one_line(subject)!r} of the tenant {tenant}"
