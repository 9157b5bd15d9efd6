"""Opens the ledger that the settings name: the service creates it where there is none, commands do not.

A command neither creates a ledger nor changes its schema, and a command that only reads does not change a byte of it.
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
    """An open ledger."""

    engine: Engine
    vault: Vault
    signer: CheckpointSigner
    settings: Settings


def open_database(settings: Settings) -> tuple[Engine, Vault]:
    """The database, with its schema up to date, and the vault for what is sealed in it; created where there is none.

    Raises SetupError, WrongMasterKey, SecretFileError.
    """
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"the data folder {settings.data.absolute()} cannot be made: {error.strerror}") from error
    try:
        engine = open_engine(_url(settings))
    except (ArgumentError, ValueError):  # whose text may repeat the password
        raise SetupError(
            "ANSWERABLE_DATABASE_URL must be the address of a PostgreSQL database or of an SQLite file", code=2
        ) from None
    try:
        return engine, prepare_database(engine, _master_key(settings))
    except BaseException as error:
        engine.dispose()
        if isinstance(error, LedgerUnavailable):
            raise SetupError(_unreachable(engine.url, error)) from error
        raise


def _unreachable(url: URL, error: LedgerUnavailable) -> str:
    """Which database did not answer, and why, in the words of its driver, which never contain the password."""
    place = url.database if url.host is None else f"{url.host}:{url.port or 5432}"
    reason = getattr(error.__cause__, "orig", None) or "no connection"
    shortened = " ".join(str(reason).split())[:MAX_REASON_LENGTH]
    return (
        f"the database {place} does not answer ({shortened}); check that it is running and that "
        "ANSWERABLE_DATABASE_URL is right"
    )


def open_keys(settings: Settings) -> tuple[Engine, Keys]:
    """The database, created where there is none, and the keys in it."""
    engine, _ = open_database(settings)
    return engine, Keys(engine)


def open_checkpoint_signer(settings: Settings, database: Engine) -> CheckpointSigner:
    """The signer of checkpoints; its key is in the data folder unless the settings name another file."""
    return CheckpointSigner(
        database, settings.signing_key or settings.data / "signing.pem", settings.data / "checkpoints.jsonl"
    )


@contextmanager
def opened_ledger(settings: Settings, *, to_read: bool) -> Iterator[Opened]:
    """An existing ledger, open while the block runs.

    Raises NoLedger, OtherSchema, SetupError where its server does not answer, WrongMasterKey, SecretFileError,
    LedgerUnavailable.
    """
    url = _url(settings)
    file = sqlite_file(url)
    if file is not None and not file.exists():
        raise NoLedger(_advised(f"there is no ledger in {file.parent}: it has no {file.name}"))
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
    """Whether another process may be writing to the ledger at this moment."""
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
            f". Beside it is {write_ahead_log(file).name}: copy the folder to a place that can be written, and run the "
            "command there"
        )
    return f"{file} cannot be read as a ledger: {reason}{advice}"


def _advised(sentence: str) -> str:
    return (
        f"{sentence}. Name the folder of the ledger with --data (or ANSWERABLE_DATA), or its database with "
        "--database-url (or ANSWERABLE_DATABASE_URL); nothing was created"
    )


def _refuse_other_schema(connection: Connection, url: str) -> None:
    """Raises NoLedger or OtherSchema unless the database has the schema of this version of the program."""
    if not inspect(connection).has_table("alembic_version"):
        raise NoLedger(_advised(f"{make_url(url).render_as_string()} holds no ledger"))
    schema = connection.scalar(text("SELECT version_num FROM alembic_version"))
    if schema is None or schema < NEWEST:
        raise OtherSchema(
            f"this ledger has the schema {schema} of an older version of the program; this version needs {NEWEST}. "
            "`answerable serve` brings it up to date when it starts, other commands do not. Or use the version that "
            "wrote it"
        )
    if schema > NEWEST:
        raise OtherSchema(
            f"this ledger has the schema {schema} of a newer version of the program; this version knows {NEWEST}. "
            "Use the version that wrote it, or a later one"
        )
