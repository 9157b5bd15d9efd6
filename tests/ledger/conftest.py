"""Real databases, fresh for each test: a SQLite file, or a database of a PostgreSQL server."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, make_url

from service.ledger import Entry, Ledger, Vault, open_engine, upgrade

EntryMaker = Callable[..., Entry]

VAULT = Vault(bytes(range(32)))
"""The vault of the tests' databases."""


MakeDatabase = Callable[[Path, str | None], str]


@dataclass(frozen=True, slots=True)
class Databases:
    """Databases of one kind. What many tests start from is made once in a session, and copied.

    `make(folder, None)` makes an empty one, in `folder` if it is a file; `make(folder, url)` a copy of one that nobody
    is using.
    """

    make: MakeDatabase
    folder: Path
    firsts: dict[str, str]

    def like(self, name: str, fill: Callable[[str], None], folder: Path) -> str:
        """The URL of a new database that holds what `fill` put into the first of that name."""
        if name not in self.firsts:
            own = self.folder / name
            own.mkdir()
            first = self.make(own, None)
            fill(first)
            self.firsts[name] = first
        return self.make(folder, self.firsts[name])


def make_sqlite(folder: Path, model: str | None) -> str:
    path = folder / "ledger.db"
    if model is not None:
        with closing(sqlite3.connect(str(make_url(model).database))) as source, closing(sqlite3.connect(path)) as copy:
            source.backup(copy)
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Databases:
    return Databases(make_sqlite, tmp_path_factory.mktemp("sqlite"), {})


@pytest.fixture(scope="session")
def postgresql(make_postgresql: Callable[[str | None], str], tmp_path_factory: pytest.TempPathFactory) -> Databases:
    return Databases(lambda _, model: make_postgresql(model), tmp_path_factory.mktemp("postgresql"), {})


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest) -> Databases:
    """Databases of each kind."""
    made: Databases = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def empty_url(databases: Databases, tmp_path: Path) -> str:
    """An empty database."""
    return databases.make(tmp_path, None)


def migrate(url: str) -> None:
    engine = open_engine(url)
    upgrade(engine)
    engine.dispose()


@pytest.fixture
def url(databases: Databases, tmp_path: Path) -> str:
    """A migrated database."""
    return databases.like("migrated", migrate, tmp_path)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """A migrated database."""
    engine = open_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
async def ledger(engine: Engine) -> AsyncIterator[Ledger]:
    ledger = Ledger(engine, VAULT)
    yield ledger
    await ledger.close()


@pytest.fixture
def make_entry() -> EntryMaker:
    """Makes entries of the tenant "bank", a microsecond apart, that differ from each other in their id."""
    count = iter(range(1_700_000_000_000_000, 1_800_000_000_000_000))

    def make(**fields: Any) -> Entry:
        explanation_id = str(uuid.uuid4())
        usual: dict[str, Any] = {
            "id": explanation_id,
            "tenant": "bank",
            "created": next(count),
            "model": "loan",
            "version": "1",
            "method": "integrated_gradients",
            "converged": True,
            "key_id": "key",
            "record": json.dumps({"id": explanation_id}).encode(),
            "personal": b'{"input": [1, 2]}',
        }
        return Entry(**usual | fields)

    return make
