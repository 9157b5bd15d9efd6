"""A PostgreSQL server that goes, or hangs, under load: 503 in time, nothing without a record, and all is well again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import make_url

from tests.conftest import PATIENCE_SECONDS
from tests.faults.conftest import starting

if TYPE_CHECKING:
    from tests.faults.conftest import Load, Program, UnderLoad

SECRET = "a key that the operator chose"


@pytest.fixture(scope="module")
def url(make_postgresql: Callable[..., str]) -> str:
    return make_postgresql()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, loan_only: Path, url: str) -> Iterator[Program]:
    """The one service that all of this is done to, one after the other, and which then ends in good order."""
    with starting(tmp_path_factory.mktemp("database"), loan_only) as start:
        program = start("serve", key=SECRET, database_url=url)
        assert program.address
        yield program
        assert program.end(signal.SIGTERM) == 0


@contextmanager
def gone(url: str) -> Iterator[None]:
    """The server ends every connection to the database, and takes no new ones."""
    address = make_url(url)
    server = address.set(database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {address.database} ALLOW_CONNECTIONS false")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [address.database]
        )
        yield
        connection.execute(f"ALTER DATABASE {address.database} ALLOW_CONNECTIONS true")


@contextmanager
def hanging(url: str) -> Iterator[None]:
    """Every process of the server is stopped: what it is sent it takes, and it answers nothing."""
    with psycopg.connect(url) as connection:  # whose process is there as long as it is
        backend = connection.info.backend_pid
        server = int(Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1])
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    pids = [server, *map(int, children)]
    try:
        for pid in pids:
            with suppress(ProcessLookupError):  # one that has ended meanwhile
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # the server ends some of its own, once it goes on
                os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def refused_and_recovered(program: Program, under_load: UnderLoad) -> AsyncIterator[Load]:
    """Under load; what is done inside is undone when it ends. Asserts what must hold of every fault of a database."""
    async with program.client(SECRET) as client:

        async def ready() -> bool:
            return (await client.get("/v2/health/ready")).status_code == 200

        assert await ready()
        async with under_load(program, SECRET) as load:
            await load.reaches(50)
            yield load
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await ready():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await load.meets(200)
            await load.reaches(50)
        assert load.broken == 0
        assert set(load.statuses) == {200, 503}
        assert load.retry_after == {"2"}
        for identifier in load.ids:
            assert (await client.get(f"/v1/explanations/{identifier}")).status_code == 200


@pytest.mark.parametrize("fault", [gone, hanging])
async def test_nothing_is_answered_without_its_database(
    program: Program, under_load: UnderLoad, url: str, fault: Callable[[str], AbstractContextManager[None]]
) -> None:
    async with refused_and_recovered(program, under_load) as load, program.client(SECRET) as client:
        with fault(url):
            await load.meets(503)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (await client.get("/v2/health/ready")).status_code != 503:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            begun = len(load.statuses)
            await load.reaches(50)
            assert set(load.statuses[begun:]) == {503}
            assert (await client.get("/v2/health/live")).status_code == 200
