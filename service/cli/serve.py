"""Running the service: one uvicorn server in one process, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import uvicorn
import uvloop
from fastapi import FastAPI

from service.api.connections import Connection, Connections, Limits, connections_within, raise_descriptor_limit
from service.api.services import Services
from service.api.tls import Certificates, Listeners
from service.app import create_app
from service.engine.client.worker_processes import StartedWorker
from service.errors import SetupError, WorkerLost
from service.logs import configure
from service.processes import tuning
from service.settings import Settings

REFUSAL_SECONDS = 2
"""After the drain: for sending the refusals of requests that were still under way."""

BACKLOG = 2048
"""How many connections may wait to be accepted."""

LOG = logging.getLogger("answerable")
OnceReady = Callable[[Services, str], Awaitable[None]]


class Server(uvicorn.Server):
    """uvicorn's server on `sockets`, over TLS if there are certificates."""

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        connections: Connections,
        certificates: Certificates | None = None,
    ) -> None:
        super().__init__(config)
        self._sockets = sockets
        self._tls = certificates and Listeners(sockets, connections, certificates, self._make_connection)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's
        await super().startup([] if self._tls else self._sockets)
        if self._tls:
            self._tls.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's
        if self._tls:
            self._tls.stop()
        await super().shutdown(self._sockets)

    @property
    def address(self) -> str:
        """Where it listens, also when the port was chosen by the system."""
        host, port = self._sockets[0].getsockname()[:2]
        return f"{'https' if self._tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    def _make_connection(self) -> Connection:
        make = cast(Callable[..., Connection], self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state={})


class _DrainingServer(Server):
    """Sets `listening` when it listens, and calls `overdue` if requests outlast the drain when it shuts down."""

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        connections: Connections,
        certificates: Certificates | None,
        drain_seconds: float,
        overdue: Callable[[], None],
    ) -> None:
        super().__init__(config, sockets, connections, certificates)
        self.listening = asyncio.Event()
        self.has_failed = False
        self._drain_seconds = drain_seconds
        self._overdue = overdue

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        tuning.front_listens()
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more requests and waits for those under way; after the drain the rest is answered 503."""
        stop = asyncio.get_running_loop().call_later(self._drain_seconds, self._overdue)
        await super().shutdown(sockets)
        stop.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does nothing: `ending_on_signals` handles signals, until the stores are closed."""
        yield

    @contextmanager
    def ending_on_signals(self) -> Iterator[None]:
        """Ends in good order on SIGINT and SIGTERM; uvicorn's own raises the signal again after that."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        """A second signal changes nothing: shutting down has its own deadline."""
        self.should_exit = True

    def fail(self) -> None:
        """Stops the server as a signal does, with an exit code that says so."""
        self.has_failed = True
        self._stop()


def run(settings: Settings, started: Sequence[StartedWorker], once_ready: OnceReady | None = None) -> int:
    """Serves until SIGINT or SIGTERM; `once_ready` runs beside it as soon as it listens. Returns the exit code.

    `started` are the processes of its first workers.
    """
    tuning.share_interpreter()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(settings, started, once_ready))


async def serve(settings: Settings, started: Sequence[StartedWorker], once_ready: OnceReady | None) -> int:
    """The same on the event loop that runs."""
    configure(settings.logs)
    logging.getLogger("answerable").setLevel(logging.INFO)
    try:
        sockets = listen(
            settings.host, settings.port
        )  # before anything else, so that a failure leaves everything as it was
        try:
            return await _serve_on(sockets, create_app(settings, started), settings, once_ready)
        finally:
            for listener in sockets:
                listener.close()
    except SetupError as error:
        LOG.error("%s", error)  # noqa: TRY400 - the operator needs the sentence, not the trace
        return error.code


def listen(host: str, port: int) -> list[socket.socket]:
    """Listens on every address of the host, and on a free port for port 0. Raises SetupError."""
    sockets: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, *_, address in dict.fromkeys(addresses):
            chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
            place = (address[0], chosen, *address[2:])
            sockets.append(socket.create_server(place, family=family, backlog=BACKLOG))
    except OSError as error:
        for listener in sockets:
            listener.close()
        reason = (error.strerror or str(error)).partition(" (")[0].lower()
        raise SetupError(
            f"nothing can listen on {host} port {port}: {reason}; choose others with ANSWERABLE_HOST and "
            "ANSWERABLE_PORT, or --host and --port"
        ) from error
    return sockets


def configured(app: FastAPI, connections: Connections, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the app."""
    return uvicorn.Config(
        app,
        http=cast(type[asyncio.Protocol], partial(Connection, connections)),
        ws="none",
        lifespan="off",  # it is run here: for its errors uvicorn would log a trace where a sentence is enough
        access_log=False,
        log_config=None,
        proxy_headers=False,
        log_level="warning",
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds) + REFUSAL_SECONDS,
        timeout_keep_alive=math.ceil(connections.limits.idle_seconds),
    )


async def _serve_on(
    sockets: list[socket.socket], app: FastAPI, settings: Settings, once_ready: OnceReady | None
) -> int:
    """Serves until a signal ends it, or the workers fail to start; returns the exit code. Raises SetupError."""
    limits = Limits(
        connections=connections_within(raise_descriptor_limit(), settings.max_connections),
        idle_seconds=settings.keep_alive_seconds,
    )
    connections = Connections(limits)
    config = configured(app, connections, settings)
    certificates = _certificates(settings)
    drain = settings.drain_seconds
    server = _DrainingServer(config, sockets, connections, certificates, drain, lambda: _services(app).engine.stop())
    with server.ending_on_signals():
        async with app.router.lifespan_context(app):
            works = [_announce(app, server, settings, once_ready), connections.watch()]
            if certificates is not None:
                works.append(certificates.watch())
            beside = [asyncio.create_task(work) for work in works]
            for task in beside:
                task.add_done_callback(_log_failure)
            try:
                await server.serve()
            finally:
                for task in beside:
                    task.cancel()
    return 1 if server.has_failed else 0


def _certificates(settings: Settings) -> Certificates | None:
    """Raises SetupError."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificates(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def _services(app: FastAPI) -> Services:
    services: Services = app.state.services
    return services


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        LOG.error("a task beside the server failed", exc_info=task.exception())


async def _announce(app: FastAPI, server: _DrainingServer, settings: Settings, once_ready: OnceReady | None) -> None:
    """Prints the new key at once, for it is shown only then, and the address when the models are loaded."""
    await server.listening.wait()
    services = _services(app)
    if settings.key is None and services.bootstrap_key is not None:
        print(f"The key made on this first start, shown once: {services.bootstrap_key}", flush=True)
    LOG.info("%s answers; the models are being loaded", server.address)
    try:
        await asyncio.shield(services.loading)
    except WorkerLost as error:
        LOG.error("%s; what it wrote before that says why", error)  # noqa: TRY400
        server.fail()
        return
    print(f"Answerable listens on {server.address}", flush=True)
    if once_ready is not None:
        await once_ready(services, server.address)
