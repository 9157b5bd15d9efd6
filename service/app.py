"""The composition root: settings -> stores -> engine -> routes, and the lifespan that unwinds them in reverse."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import Depends, FastAPI

from service import __version__
from service.access.permissions import OPERATOR_TENANT
from service.access.quotas import Quotas
from service.answers.cache import Cache
from service.api import (
    baselines,
    documentation,
    evidence,
    explain,
    explanations,
    exports,
    health,
    jobs,
    models,
    problems,
    replays,
    reviews,
    subjects,
)
from service.api import repository as repository_routes
from service.api.auth import Authenticator, authorise
from service.api.idempotency import Turns
from service.api.queries import repeated_are_refused
from service.api.traffic import ObservedRequests
from service.api.transport import Bodies, RequestIds
from service.background.exporting import Exports
from service.background.jobs import EXPLAIN, ExplainRows, Runner
from service.catalog.baselines import BASELINES, KeptSets
from service.catalog.versions import Catalog
from service.engine.client.local_engine import LocalEngine
from service.engine.client.worker_processes import StartedWorker, count_devices
from service.ledger import SCOPES, Keys, Ledger
from service.ledger.clock import opened_clock
from service.ledger.database import bounded
from service.ledger.erasure_list import NAME as ERASURES
from service.ledger.erasure_list import ErasureList
from service.ledger.jobs import Jobs
from service.ledger.maintenance import LedgerMaintenance
from service.ledger.opening import open_checkpoint_signer, open_database
from service.ledger.restoring import catch_up
from service.ledger.set_subjects import SetSubjects
from service.ledger.spent_quotas import SpentQuotas
from service.ledger.stored_jobs import EXPORT
from service.ledger.writer_process import WriterProcess
from service.lifecycle.repository import Repository, read_catalog
from service.monitoring.health import Health
from service.monitoring.metrics import Metrics
from service.monitoring.request_log import RequestLog
from service.monitoring.tracing import open_tracing
from service.processes.embedded_redis import start_embedded_redis
from service.settings import Settings
from service.usecases.counterfactual import Counterfactuals
from service.usecases.explaining import Explaining
from service.usecases.replaying import Replaying

LOG = logging.getLogger("answerable")
BOOTSTRAP = "bootstrap"
METRICS_KEY = "metrics"
MOST_TOLD = 300
"""Characters of what a driver says."""


def create_app(settings: Settings, started: Sequence[StartedWorker] = ()) -> FastAPI:
    """The service. Everything it opens is opened when it starts and closed when it stops.

    It answers as soon as its stores are open, while a task, `app.state.loading`, starts the workers and loads the
    models.
    `started` are processes for its first workers, which may be importing still.
    """
    catalog = read_catalog(settings.models)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await _compose(app, settings, catalog, stack, started)
            yield

    app = FastAPI(
        title="Answerable",
        version=__version__,
        summary="Predictions of deployed models, each with an explanation that can be checked.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would lead to whatever host the request names
        lifespan=lifespan,
        routes=[*explain.router.routes, *repository_routes.router.routes, *baselines.posting.routes],
        dependencies=[Depends(authorise), Depends(repeated_are_refused)],
        telemetry={"tracing": False, "metrics": False, "logs": False},  # we have our own
    )
    app.state.catalog = catalog
    app.state.bodies = Bodies(settings.max_body_bytes)
    problems.install(app)
    for router in (
        models.router,
        baselines.router,
        explanations.router,
        replays.router,
        *reviews.routers,
        *jobs.routers,
        *exports.routers,
        *evidence.routers,
        *subjects.routers,
        health.router,
    ):
        app.include_router(router)
    app.add_middleware(ObservedRequests)
    app.add_middleware(RequestIds)
    documentation.install(app, catalog)
    return app


def bootstrap_key(settings: Settings, keys: Keys) -> str | None:
    """The operator's key, or on the very first start a new one, which is returned to be shown once."""
    if settings.metrics_key is not None:
        _configure(keys, settings.metrics_key, METRICS_KEY, {"metrics"})
    if settings.key is not None:
        _configure(keys, settings.key, BOOTSTRAP, SCOPES)
        return settings.key
    if any(key.name != METRICS_KEY for key in keys.list()):
        return None
    _, secret = keys.create(BOOTSTRAP, OPERATOR_TENANT, SCOPES)
    return secret


def _configure(keys: Keys, secret: str, name: str, scopes: Iterable[str]) -> None:
    """Stores a key of the settings. An earlier one goes on, for other hosts may have it yet; the log says so."""
    configured = keys.add(secret, name, OPERATOR_TENANT, scopes)
    now = keys.now()
    for key in keys.list():
        if key.name == name and key.id != configured.id and key.is_valid(now):
            LOG.warning("an earlier %s key is still valid; to end it: answerable keys revoke %s", name, key.id)


def _to_stderr(lines: bytes) -> None:
    sys.stderr.buffer.write(lines)
    sys.stderr.buffer.flush()


async def _compose(
    app: FastAPI, settings: Settings, catalog: Catalog, stack: AsyncExitStack, started: Sequence[StartedWorker]
) -> None:
    metrics = Metrics()
    tracing = app.state.tracing = open_tracing(settings.traces_endpoint)
    if tracing is not None:
        stack.push_async_callback(asyncio.to_thread, tracing.close)
    log = app.state.request_log = RequestLog(_to_stderr) if settings.logs == "json" else None
    if log is not None:
        stack.push_async_callback(log.close)
    database, vault = await asyncio.to_thread(open_database, settings)
    database = bounded(database)
    stack.callback(database.dispose)
    keys = Keys(database)
    clock = await asyncio.to_thread(opened_clock, database)

    redis_url = settings.redis_url
    if redis_url is None:
        embedded = await start_embedded_redis()
        if embedded is None:
            LOG.warning("there is no redis-server on this machine; results are not cached")
        else:
            stack.push_async_callback(embedded.close)
            redis_url = embedded.url
    cache = Cache(redis_url, settings.result_ttl_seconds, vault.derived("cache"), metrics.observe_cache)
    stack.push_async_callback(cache.close)

    quotas = Quotas(SpentQuotas(database))
    await quotas.load()
    stack.push_async_callback(quotas.close)
    quotas.start()

    ledger = None
    app.state.ledger_notices = []
    if settings.ledger != "off":
        signer = open_checkpoint_signer(settings, database)
        await asyncio.to_thread(signer.open)
        shipped, erasures = settings.data / "checkpoints.jsonl", ErasureList(settings.data / ERASURES, vault)
        app.state.ledger_notices = await asyncio.to_thread(catch_up, database, vault, shipped, erasures)
        ledger = Ledger(database, vault, metrics.observe_append, signer=signer, writer=WriterProcess, clock=clock)
        stack.push_async_callback(ledger.close)
    # After everything that may keep the service from starting: a key that is made is shown.
    app.state.bootstrap_key = await asyncio.to_thread(bootstrap_key, settings, keys)

    workers = settings.workers or count_devices()
    engine = LocalEngine(
        workers,
        settings.max_queued_points,
        metrics.observe_chunk,
        lambda reason: metrics.restarts.labels(reason).inc(),
        started,
    )
    stack.push_async_callback(engine.close)
    health = Health(engine, settings.stability_share)
    stack.push_async_callback(health.close)

    def follow() -> None:
        metrics.show_versions(catalog.known)
        health.follow(catalog.known)

    follow()
    catalog.changed = follow
    set_subjects = SetSubjects(database, vault)
    repository = Repository(settings.models, settings.data, catalog, engine, metrics.observe_cache, set_subjects.erased)
    stack.push_async_callback(repository.close)

    async def forget() -> None:
        """Drops what lies outside the database of people who were erased."""
        await cache.forget_results()
        await repository.forget_rows()

    maintenance = None
    if ledger is not None:
        maintenance = LedgerMaintenance(database, vault, settings.retention, settings.job_days, forget, erasures)
        stack.push_async_callback(maintenance.close)

    def render_metrics() -> bytes:
        stats = engine.stats()
        metrics.queue_points.set(stats.queued_points)
        metrics.queue_limit.set(settings.max_queued_points)
        metrics.show_workers(stats.ready_workers, stats.memory)
        health.show(metrics)
        metrics.show_checkpoint(None if ledger is None else ledger.signed)
        metrics.show_clock(clock.behind)
        return metrics.render(workers)

    app.state.engine = engine
    app.state.repository = repository
    app.state.ledger = ledger
    app.state.ledger_mode = settings.ledger
    app.state.turns = Turns()
    app.state.maintenance = maintenance
    app.state.metrics = metrics
    app.state.render_metrics = render_metrics
    app.state.keys = keys
    app.state.cache = cache
    app.state.authenticator = Authenticator(keys, quotas, clock)
    stack.callback(app.state.authenticator.close)
    app.state.replaying = Replaying(engine, catalog)
    app.state.counterfactuals = Counterfactuals(engine, catalog, KeptSets(settings.data / BASELINES))
    explaining = Explaining(engine, cache, ledger, settings.ledger, metrics, health, settings.max_queued_points)
    app.state.explaining = explaining
    app.state.vault = vault
    app.state.set_subjects = set_subjects
    app.state.jobs = Jobs(database)
    runner: Runner | None = None
    if ledger is not None:
        app.state.exports = Exports(app.state.jobs, database, ledger, signer, vault, settings.data / "exports")
        stack.push_async_callback(app.state.exports.close)
        app.state.exports.start()
        works = {EXPLAIN: ExplainRows(app.state.jobs, explaining, catalog, ledger, vault), EXPORT: app.state.exports}
        runner = app.state.runner = Runner(app.state.jobs, keys, quotas, works, clock)
        stack.push_async_callback(runner.close)

    async def load() -> None:
        await engine.start()
        await repository.start()
        if runner is not None:
            runner.start()

    app.state.loading = asyncio.get_running_loop().create_task(load())
    stack.push_async_callback(_end, app.state.loading)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancels it, if it is under way. What it failed with concerns whoever waited for it."""
    task.cancel()
    await asyncio.wait([task])
