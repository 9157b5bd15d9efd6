"""TLS without a proxy: certificates that can be renewed while serving, and handshakes within the limits on connections.

uvicorn's own option for TLS knows a connection only when its handshake is over, so that clients which never finish one
would count as nothing for a minute each. Here a connection is counted from its first byte on, and its handshake ends
within the time that a request's head has.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from service.api.connections import Connection, Connections
from service.errors import SetupError

LOG = logging.getLogger("answerable")
WATCH_SECONDS = 10.0
ACCEPT_AGAIN_SECONDS = 0.1


class Certificates:
    """The TLS context of files, made again when one of them changes: for the connections that begin from then on.

    `client_ca`, if any, is the file of the authorities one of which must have signed the client's certificate. Raises
    SetupError.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._files = [certificate, key] + ([] if client_ca is None else [client_ca])
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        try:
            self._state = self._stat()
            self.context = self._make()
        except (OSError, ssl.SSLError) as error:
            raise SetupError(f"TLS cannot be set up with {', '.join(map(str, self._files))}: {error}") from error

    async def watch(self) -> None:
        """Follows the files; runs until it is cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.follow()

    def follow(self) -> None:
        """Makes the context again if a file has changed; one that does not fit leaves everything as it was."""
        try:
            if (state := self._stat()) == self._state:
                return
            self.context, self._state = self._make(), state
        except (OSError, ssl.SSLError) as error:
            LOG.error("the changed TLS files are not used: %s", error)  # noqa: TRY400 - a sentence is enough
        else:
            LOG.info("TLS uses the changed files for new connections")

    def _stat(self) -> list[tuple[int, int, int]]:
        return [(stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in (file.stat() for file in self._files)]

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._certificate, self._key)
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._client_ca)
        return context


class Listeners:
    """Accepts connections and leads each through its handshake to a protocol that `make` makes."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        connections: Connections,
        certificates: Certificates,
        make: Callable[[], Connection],
    ) -> None:
        self.connections = connections
        self.certificates = certificates
        self.make = make
        self._sockets = sockets
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Accepts connections from now on."""
        for listener in self._sockets:
            listener.setblocking(False)
            self.keep(asyncio.get_running_loop().create_task(self._accept(listener)))

    def stop(self) -> None:
        """Accepts no more, and ends the handshakes under way."""
        for task in self._tasks:
            task.cancel()

    def keep(self, task: asyncio.Task[None]) -> None:
        """Holds a task until it is done: the event loop itself would not."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptor is left, or the client is gone already
                LOG.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            _Handshake(accepted, self).start()


class _Handshake:
    """A connection until its handshake is over."""

    def __init__(self, accepted: socket.socket, listeners: Listeners) -> None:
        self._accepted = accepted
        self._listeners = listeners
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._listeners.connections.admit(self):
            self._task = self._loop.create_task(self._shake())
            self._listeners.keep(self._task)
        else:
            self._accepted.close()

    def check(self, now: float) -> None:
        """Ends it if the handshake takes too long. `now` is the event loop's time, in seconds."""
        if now - self._since >= self._listeners.connections.limits.head_seconds:
            self.drop()

    def drop(self) -> None:
        """Ends it at once."""
        self._is_over()
        if self._task is not None:
            self._task.cancel()

    async def _shake(self) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make, self._accepted, ssl=self._listeners.certificates.context
            )
        except (OSError, ssl.SSLError) as error:
            LOG.debug("a TLS handshake failed: %s", error)
        finally:
            self._is_over()

    def _make(self) -> asyncio.Protocol:
        connection = self._listeners.make()
        connection.before_made = self._is_over  # lest both count
        return connection

    def _is_over(self) -> None:
        self._listeners.connections.forget(self)
