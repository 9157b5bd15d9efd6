"""The composition root: settings -> stores -> engine -> routes, and the lifespan that unwinds them in reverse."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from fastapi import Depends, FastAPI
from sqlalchemy import Engine

from service import __version__
from service.access.permissions import OPERATOR_TENANT
from service.access.quotas import Quotas
from service.answers.cache import Cache
from service.api import (
    baselines,
    documentation,
    evaluations,
    evidence,
    explain,
    explanations,
    exports,
    health,
    jobs,
    models,
    problems,
    replays,
    repository,
    reviews,
    subjects,
)
from service.api.auth import Authenticator
from service.api.routing import Route, guard
from service.api.services import LedgerServices, Services
from service.api.tokens import Issuer, Tokens
from service.api.traffic import ObservedRequests
from service.api.transport import Bodies, RequestIds
from service.api.turns import Turns
from service.background.evaluating import EvaluateRows
from service.background.exporting import Exports
from service.background.jobs import EXPLAIN, ExplainRows, Runner, Work
from service.catalog.baselines import BASELINES, KeptSets
from service.catalog.versions import Catalog
from service.engine.client.local_engine import LocalEngine
from service.engine.client.worker_processes import StartedWorker, count_devices
from service.ledger import SCOPES, CheckpointSigner, Keys, Ledger, Vault
from service.ledger.clock import Clock, opened_clock
from service.ledger.database import bounded
from service.ledger.erasure_list import NAME as ERASURES
from service.ledger.erasure_list import ErasureList
from service.ledger.jobs import Jobs
from service.ledger.maintenance import LedgerMaintenance
from service.ledger.opening import open_checkpoint_signer, open_database
from service.ledger.restoring import catch_up
from service.ledger.set_subjects import SetSubjects
from service.ledger.spent_quotas import SpentQuotas
from service.ledger.stored_jobs import EVALUATE, EXPORT
from service.ledger.writer_process import WriterProcess
from service.lifecycle.serving.evaluations import EVALUATIONS, Evaluations
from service.lifecycle.serving.registries.registry import Registry, open_registry
from service.lifecycle.serving.repository import Repository, read_catalog
from service.monitoring.health import Health
from service.monitoring.metrics import Metrics
from service.monitoring.request_log import RequestLog
from service.monitoring.tracing import Tracing, open_tracing
from service.processes.embedded_redis import start_embedded_redis
from service.settings import Settings
from service.usecases.counterfactual import Counterfactuals
from service.usecases.explaining import Explaining
from service.usecases.replaying import Replaying
from service.usecases.robustness import Robustness

ROUTERS = (
    explain.router,  # first, for it has the most requests
    models.router,
    baselines.router,
    explanations.router,
    replays.router,
    reviews.router,
    jobs.router,
    exports.router,
    evaluations.router,
    evidence.router,
    subjects.router,
    repository.router,
    health.router,
)

LOG = logging.getLogger("answerable")
BOOTSTRAP = "bootstrap"
METRICS_KEY = "metrics"


def create_app(settings: Settings, started: Sequence[StartedWorker] = (), catalog: Catalog | None = None) -> FastAPI:
    """The service. Everything it opens is opened when it starts and closed when it stops: `app.state.services`.

    It answers as soon as its stores are open, while a task, `loading`, starts the workers and loads the models of
    `catalog`, by default those in the folder of the settings. `started` are processes for its first workers, which may
    be importing still.
    """
    registry = open_registry(settings.models, settings.data)
    catalog = read_catalog(registry) if catalog is None else catalog

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.state.services = await _open_services(settings, registry, catalog, stack, started)
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
        routes=[route for router in ROUTERS for route in router.routes],
        dependencies=[Depends(guard)],
        telemetry={"tracing": False, "metrics": False, "logs": False},  # we have our own
    )
    app.router.route_class = Route
    problems.install(app)
    documentation.install(app, catalog)
    app.add_middleware(ObservedRequests)
    app.add_middleware(RequestIds)
    return app


def bootstrap_key(settings: Settings, keys: Keys) -> str | None:
    """The operator's key of the settings, or on the very first start a new one, to be shown once; else None."""
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
    """Stores a key of the settings. An earlier one stays valid, for other hosts may still have it; the log says so."""
    configured = keys.add(secret, name, OPERATOR_TENANT, scopes)
    now = keys.now()
    for key in keys.list():
        if key.name == name and key.id != configured.id and key.is_valid(now):
            LOG.warning("an earlier %s key is still valid; to end it: answerable keys revoke %s", name, key.id)


async def _open_services(
    settings: Settings,
    registry: Registry,
    catalog: Catalog,
    stack: AsyncExitStack,
    started: Sequence[StartedWorker],
) -> Services:
    """Opens everything, in the order of what needs what; `stack` closes it in reverse."""
    metrics = Metrics()
    tracing, request_log = _open_logs(settings, stack)
    stores = await _open_stores(settings, metrics, stack)
    records = None if settings.ledger == "off" else await _open_ledger(settings, stores, metrics, stack)
    ledger = None if records is None else records.ledger
    # After everything that may fail: a new key is shown only once the service starts.
    operators_key = await asyncio.to_thread(bootstrap_key, settings, stores.keys)

    workers = settings.workers or count_devices()
    engine, health = _open_engine(settings, workers, catalog, metrics, started, stack)
    set_subjects = SetSubjects(stores.database, stores.vault)
    repository = Repository(registry, settings.data, catalog, engine, metrics.observe_cache, set_subjects.erased)
    stack.push_async_callback(repository.close)

    explaining = Explaining(engine, stores.cache, ledger, settings.ledger, metrics, health, settings.max_queued_points)
    authenticator = Authenticator(stores.keys, stores.quotas, stores.clock, _tokens(settings, stores.keys))
    stack.callback(authenticator.close)
    evaluations = Evaluations(settings.data / EVALUATIONS)
    with_ledger = None
    if records is not None:
        with_ledger = _open_background(
            settings, stores, records, explaining, engine, catalog, repository, evaluations, stack
        )

    def render_metrics() -> bytes:
        stats = engine.stats()
        metrics.queue_points.set(stats.queued_points)
        metrics.queue_limit.set(settings.max_queued_points)
        metrics.show_workers(stats.ready_workers, stats.memory)
        health.show(metrics)
        metrics.show_checkpoint(None if ledger is None else ledger.signed)
        metrics.show_clock(stores.clock.behind)
        return metrics.render(workers)

    async def load() -> None:
        await engine.start()
        await repository.start()
        if with_ledger is not None:
            with_ledger.runner.start()

    loading = asyncio.get_running_loop().create_task(load())
    stack.push_async_callback(_end, loading)
    return Services(
        catalog=catalog,
        repository=repository,
        engine=engine,
        explaining=explaining,
        replaying=Replaying(engine, catalog),
        counterfactuals=Counterfactuals(engine, catalog, KeptSets(settings.data / BASELINES)),
        robustness=Robustness(engine, catalog),
        cache=stores.cache,
        keys=stores.keys,
        authenticator=authenticator,
        vault=stores.vault,
        set_subjects=set_subjects,
        with_ledger=with_ledger,
        ledger_mode=settings.ledger,
        ledger_notices=[] if records is None else records.notices,
        metrics=metrics,
        render_metrics=render_metrics,
        request_log=request_log,
        tracing=tracing,
        evaluations=evaluations,
        bodies=Bodies(settings.max_body_bytes),
        turns=Turns(),
        bootstrap_key=operators_key,
        loading=loading,
    )


def _open_logs(settings: Settings, stack: AsyncExitStack) -> tuple[Tracing | None, RequestLog | None]:
    """What each request is traced and logged with."""
    tracing = open_tracing(settings.traces_endpoint)
    if tracing is not None:
        stack.push_async_callback(asyncio.to_thread, tracing.close)
    request_log = RequestLog(sys.stderr) if settings.logs == "json" else None
    if request_log is not None:
        stack.push_async_callback(request_log.close)
    return tracing, request_log


@dataclass(frozen=True, slots=True)
class _Stores:
    """The database, with what is in it whether or not a ledger is kept, and the cache."""

    database: Engine
    vault: Vault
    keys: Keys
    clock: Clock
    cache: Cache
    quotas: Quotas


async def _open_stores(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> _Stores:
    database, vault = await asyncio.to_thread(open_database, settings)
    database = bounded(database)
    stack.callback(database.dispose)
    clock = await asyncio.to_thread(opened_clock, database)

    redis_url = settings.redis_url or await _start_redis(stack)
    cache = Cache(redis_url, settings.result_ttl_seconds, vault.derived("cache"), metrics.observe_cache)
    stack.push_async_callback(cache.close)

    quotas = Quotas(SpentQuotas(database))
    await quotas.load()
    stack.push_async_callback(quotas.close)
    quotas.start()
    return _Stores(database, vault, Keys(database), clock, cache, quotas)


@dataclass(frozen=True, slots=True)
class _Records:
    """The ledger, with what signs it and what lists erasures outside of it; `notices` are for the operator."""

    ledger: Ledger
    signer: CheckpointSigner
    erasures: ErasureList
    notices: list[str]


async def _open_ledger(settings: Settings, stores: _Stores, metrics: Metrics, stack: AsyncExitStack) -> _Records:
    database, vault = stores.database, stores.vault
    signer, erasures = open_checkpoint_signer(settings, database), ErasureList(settings.data / ERASURES, vault)
    await asyncio.to_thread(signer.open)
    notices = await asyncio.to_thread(catch_up, database, vault, settings.data / "checkpoints.jsonl", erasures)
    ledger = Ledger(database, vault, metrics.observe_append, signer=signer, writer=WriterProcess, clock=stores.clock)
    stack.push_async_callback(ledger.close)
    return _Records(ledger, signer, erasures, notices)


def _open_engine(
    settings: Settings,
    workers: int,
    catalog: Catalog,
    metrics: Metrics,
    started: Sequence[StartedWorker],
    stack: AsyncExitStack,
) -> tuple[LocalEngine, Health]:
    """The engine, not started yet, and what watches its answers; metrics and health follow the versions there are."""
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

    def follow_catalog() -> None:
        metrics.show_versions(catalog.known)
        health.follow(catalog.known)

    follow_catalog()
    catalog.changed = follow_catalog
    return engine, health


def _open_background(
    settings: Settings,
    stores: _Stores,
    records: _Records,
    explaining: Explaining,
    engine: LocalEngine,
    catalog: Catalog,
    repository: Repository,
    evaluations: Evaluations,
    stack: AsyncExitStack,
) -> LedgerServices:
    """What works beside requests where a ledger is kept; the runner of jobs is started once the models are loaded."""
    database, vault, ledger = stores.database, stores.vault, records.ledger

    async def forget_erased() -> None:
        """Drops data outside the database of people who were erased."""
        await stores.cache.forget_results()
        await repository.sets.forget_rows()

    maintenance = LedgerMaintenance(
        database, vault, settings.retention, settings.job_days, forget_erased, records.erasures
    )
    stack.push_async_callback(maintenance.close)
    jobs = Jobs(database)
    exports = Exports(jobs, database, ledger, records.signer, vault, settings.data / "exports")
    stack.push_async_callback(exports.close)
    exports.start()
    explain_rows = ExplainRows(jobs, explaining, catalog, ledger, vault)
    evaluate_rows = EvaluateRows(jobs, engine, catalog, ledger, vault, evaluations)
    works: dict[str, Work] = {EXPLAIN: explain_rows, EVALUATE: evaluate_rows, EXPORT: exports}
    runner = Runner(jobs, stores.keys, stores.quotas, works, stores.clock)
    stack.push_async_callback(runner.close)
    return LedgerServices(ledger, maintenance, jobs, exports, runner)


def _tokens(settings: Settings, keys: Keys) -> Tokens | None:
    if settings.oidc_issuer is None or settings.oidc_audience is None:
        return None
    return Tokens(
        Issuer(settings.oidc_issuer, settings.oidc_audience, settings.oidc_tenant_claim, settings.oidc_scopes_claim),
        keys,
    )


async def _start_redis(stack: AsyncExitStack) -> str | None:
    """The URL of a Redis server of our own; None if Redis is not installed on this machine."""
    redis = await start_embedded_redis()
    if redis is None:
        LOG.warning("there is no redis-server on this machine; results are not cached")
        return None
    stack.push_async_callback(redis.close)
    return redis.url


async def _end(task: asyncio.Task[None]) -> None:
    """Cancels the task and waits for its end. Its error, if any, was for those who awaited it."""
    task.cancel()
    await asyncio.wait([task])
