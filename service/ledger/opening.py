"""Opens the ledger of the settings: made where there is none, for the service; only if it is there, for commands.

A command of the ledger neither makes a ledger nor changes its schema, and one that only reads changes no byte of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, inspect, make_url, text
from sqlalchemy.exc import ArgumentError

from service.errors import LedgerUnavailable, NoLedger, OtherSchema, SetupError
from service.ledger.checkpoints import CheckpointSigner
from service.ledger.database import database_in_reach, open_engine, open_to_read, sqlite_file, write_ahead_log
from service.ledger.keys import Keys
from service.ledger.migrations import NEWEST
from service.ledger.sealing import Vault, open_vault, prepare_database
from service.settings import Settings

MAX_REASON_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Opened:
    """The ledger of the settings."""

    engine: Engine
    vault: Vault
    signer: CheckpointSigner
    settings: Settings


def open_database(settings: Settings) -> tuple[Engine, Vault]:
    """The database with its schema up to date, and the vault for what is sealed in it; made where there is none.

    Raises SetupError, WrongMasterKey, SecretFileError.
    """
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"the data folder {settings.data.absolute()} cannot be made: {error.strerror}") from error
    try:
        engine = open_engine(_url(settings))
    except (ArgumentError, ValueError):  # whose text may repeat the password
        raise SetupError("ANSWERABLE_DATABASE_URL: it names no PostgreSQL and no file of SQLite", code=2) from None
    try:
        return engine, prepare_database(engine, _master_key(settings))
    except BaseException as error:
        engine.dispose()
        if isinstance(error, LedgerUnavailable):
            raise SetupError(_unreachable(engine.url, error)) from error
        raise


def _unreachable(url: URL, error: LedgerUnavailable) -> str:
    """Which database did not answer and why, in its driver's words; a password is never among them."""
    place = url.database if url.host is None else f"{url.host}:{url.port or 5432}"
    reason = getattr(error.__cause__, "orig", None) or "no connection"
    said = " ".join(str(reason).split())[:MAX_REASON_LENGTH]
    return f"the database {place} does not answer ({said}); see that it runs, and that ANSWERABLE_DATABASE_URL is right"


def open_keys(settings: Settings) -> tuple[Engine, Keys]:
    """The database, made where there is none, and the keys in it."""
    engine, _ = open_database(settings)
    return engine, Keys(engine)


def open_checkpoint_signer(settings: Settings, database: Engine) -> CheckpointSigner:
    """Who signs the state of the ledger; its key lies in the data folder unless the settings name another file."""
    return CheckpointSigner(
        database, settings.signing_key or settings.data / "signing.pem", settings.data / "checkpoints.jsonl"
    )


@contextmanager
def opened_ledger(settings: Settings, *, to_read: bool) -> Iterator[Opened]:
    """The ledger that is there, while the block runs.

    Raises NoLedger, OtherSchema, SetupError where its server does not answer, WrongMasterKey, SecretFileError,
    LedgerUnavailable.
    """
    url = _url(settings)
    file = sqlite_file(url)
    if file is not None and not file.exists():
        raise NoLedger(_nothing_in(f"there is no ledger in {file.parent}: it has no {file.name}"))
    engine = open_to_read(url) if to_read else open_engine(url)
    try:
        try:
            with database_in_reach(), engine.connect() as connection:
                _refuse_other_schema(connection, url)
        except LedgerUnavailable as error:
            if file is None:
                raise SetupError(_unreachable(engine.url, error)) from error
            raise NoLedger(_unreadable(file, error)) from error
        vault = open_vault(engine, _master_key(settings))
        yield Opened(engine, vault, open_checkpoint_signer(settings, engine), settings)
    finally:
        engine.dispose()


def is_in_use(settings: Settings) -> bool:
    """Whether somebody may be writing to the ledger at this moment."""
    file = sqlite_file(_url(settings))
    return file is None or write_ahead_log(file).exists()


def _url(settings: Settings) -> str:
    return settings.database_url or f"sqlite:///{settings.data.resolve() / 'ledger.db'}"


def _master_key(settings: Settings) -> Path:
    return settings.master_key or settings.data / "master.key"


def _unreadable(file: Path, error: LedgerUnavailable) -> str:
    reason = getattr(error.__cause__, "orig", error.__cause__)
    advice = ""
    if write_ahead_log(file).exists():
        advice = (
            f". Beside it is {write_ahead_log(file).name}: copy the folder to where it can be written, and ask there"
        )
    return f"{file} cannot be read as a ledger: {reason}{advice}"


def _nothing_in(what: str) -> str:
    return (
        f"{what}. Name the folder of the ledger with --data (or ANSWERABLE_DATA), or its database with --database-url "
        "(or ANSWERABLE_DATABASE_URL); nothing was made here"
    )


def _refuse_other_schema(connection: Connection, url: str) -> None:
    """Raises NoLedger or OtherSchema unless the database is as this version of the program has it."""
    if not inspect(connection).has_table("alembic_version"):
        raise NoLedger(_nothing_in(f"{make_url(url).render_as_string()} holds no ledger"))
    found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    if found is None or found < NEWEST:
        raise OtherSchema(
            f"this ledger has the schema {found} of an older version of the program, and this version has {NEWEST}. "
            "`answerable serve` brings it up to date when it starts; no command does. Or ask with the version that "
            "wrote it"
        )
    if found > NEWEST:
        raise OtherSchema(
            f"this ledger has the schema {found} of a newer version of the program, and this version knows {NEWEST}. "
            "Ask with the version that wrote it, or a later one"
        )
