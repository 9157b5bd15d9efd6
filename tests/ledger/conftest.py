"""Real databases, fresh for each test: a SQLite file, or a database of a PostgreSQL server."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from service.ledger import Entry, Ledger, Vault, open_engine, upgrade

EntryMaker = Callable[..., Entry]

VAULT = Vault(bytes(range(32)))
"""The vault of the tests' databases."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


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
