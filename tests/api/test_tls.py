"""TLS without a proxy, with certificates of an authority made here: real handshakes, by Python's own client."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import trustme
import uvloop
from fastapi import FastAPI

from service.api.connections import Connections, Limits
from service.api.tls import Certificates
from service.cli.serve import Server, configured
from service.errors import SetupError
from service.settings import Settings
from tests.conftest import PATIENCE_SECONDS

LARGE = "x" * 3_000_000


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> tuple[Path, Path]:
    """The certificate of this machine and its key."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    write(authority, certificate, key)
    return certificate, key


def write(authority: trustme.CA, certificate: Path, key: Path) -> None:
    issued = authority.issue_cert("127.0.0.1")
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())


class Served:
    """A server on a thread and an event loop of its own."""

    def __init__(self, certificates: Certificates, limits: Limits) -> None:
        self.connections = Connections(limits)
        self.certificates = certificates
        config = configured(self._app(), self.connections, Settings(_env_file=None))
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.server = Server(config, [self.socket], self.connections, certificates)
        self.url = self.server.address
        self.thread = threading.Thread(target=self._run)

    def _app(self) -> FastAPI:
        app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})

        @app.post("/echo")
        async def echo(text: str) -> str:
            return text

        @app.get("/large")
        async def large() -> str:
            return LARGE

        return app

    def _run(self) -> None:
        async def serve() -> None:
            watching = asyncio.create_task(self.connections.watch())
            await self.server.serve()
            watching.cancel()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())


@contextmanager
def served(certificates: Certificates, limits: Limits | None = None) -> Iterator[Served]:
    serving = Served(certificates, limits or Limits())
    serving.thread.start()
    try:
        yield serving
    finally:
        serving.server.should_exit = True
        serving.thread.join(PATIENCE_SECONDS)


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_requests_over_tls(files: tuple[Path, Path], authority: trustme.CA) -> None:
    with served(Certificates(*files, None)) as serving:
        with httpx.Client(base_url=serving.url, verify=trusting(authority)) as client:
            for turn in range(20):  # over one connection
                assert client.post("/echo", params={"text": f"{turn}"}).json() == f"{turn}"
            assert client.get("/large").json() == LARGE
        with httpx.Client(base_url=serving.url, verify=trusting(authority)) as client:
            assert client.get("/large").json() == LARGE
        with httpx.Client(base_url=serving.url) as stranger, pytest.raises(httpx.ConnectError):
            stranger.get("/large")
        with pytest.raises(httpx.HTTPError):
            httpx.get(serving.url.replace("https", "http") + "/large")


def test_what_is_sent_with_the_end_of_the_handshake_is_not_lost(
    files: tuple[Path, Path], authority: trustme.CA
) -> None:
    """The request travels in the same packet as the client's last message of the handshake."""
    with served(Certificates(*files, None)) as serving:
        for _ in range(10):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = trusting(authority).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
            address = serving.socket.getsockname()
            with socket.create_connection(address, timeout=PATIENCE_SECONDS) as connection:
                while True:
                    try:
                        client.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        connection.sendall(outgoing.read())
                        incoming.write(connection.recv(65_536))
                client.write(b"POST /echo?text=early HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
                connection.sendall(outgoing.read())
                answer = b""
                while b"early" not in answer:
                    piece = connection.recv(65_536)
                    assert piece, answer
                    incoming.write(piece)
                    try:
                        answer += client.read()
                    except ssl.SSLWantReadError:
                        continue


def test_a_client_needs_a_certificate_where_an_authority_is_named(
    tmp_path: Path, files: tuple[Path, Path], authority: trustme.CA
) -> None:
    clients = trustme.CA()
    (tmp_path / "clients.pem").write_bytes(clients.cert_pem.bytes())
    known, stranger = trusting(authority), trusting(authority)
    clients.issue_cert("app.example").configure_cert(known)
    trustme.CA().issue_cert("app.example").configure_cert(stranger)

    with served(Certificates(*files, tmp_path / "clients.pem")) as serving:
        assert httpx.get(f"{serving.url}/large", verify=known).json() == LARGE
        for context in (stranger, trusting(authority)):
            with pytest.raises(httpx.HTTPError):
                httpx.get(f"{serving.url}/large", verify=context)
        assert httpx.get(f"{serving.url}/large", verify=known).json() == LARGE


def test_renewed_files_are_used_for_new_connections(
    files: tuple[Path, Path], authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    certificates, renewed = Certificates(*files, None), trustme.CA()
    with served(certificates) as serving:
        old = httpx.Client(base_url=serving.url, verify=trusting(authority))
        assert old.get("/large").json() == LARGE

        files[1].write_text("no key")
        certificates.follow()
        assert "are not used" in caplog.text
        assert httpx.get(f"{serving.url}/large", verify=trusting(authority)).json() == LARGE

        write(renewed, *files)
        certificates.follow()
        assert httpx.get(f"{serving.url}/large", verify=trusting(renewed)).json() == LARGE
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{serving.url}/large", verify=trusting(authority))
        assert old.get("/large").json() == LARGE  # on the connection that it has
        old.close()


def test_handshakes_that_do_not_come_count_and_end(files: tuple[Path, Path], authority: trustme.CA) -> None:
    limits = Limits(connections=5, head_seconds=0.3, check_seconds=0.01)
    with served(Certificates(*files, None), limits) as serving:
        silent = [socket.create_connection(serving.socket.getsockname(), timeout=PATIENCE_SECONDS) for _ in range(20)]
        assert httpx.get(f"{serving.url}/large", verify=trusting(authority)).json() == LARGE
        assert serving.connections.count <= 5
        for one in silent:
            with one, suppress(ConnectionResetError):
                assert one.recv(1) == b""


def test_a_client_that_keeps_its_connection_does_not_hold_up_the_end(
    files: tuple[Path, Path], authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    """It reads nothing until its next request, so it does not agree to the end of the connection."""
    limits = Limits(check_seconds=0.01, closing_seconds=0.05)
    with httpx.Client(verify=trusting(authority)) as client:
        with served(Certificates(*files, None), limits) as serving:
            assert client.get(f"{serving.url}/large").json() == LARGE
        assert not serving.thread.is_alive()
        assert serving.connections.count == 0
    assert "timeout graceful shutdown exceeded" not in caplog.text


def test_files_that_do_not_fit_end_the_start(files: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(trustme.CA().issue_cert("127.0.0.1").private_key_pem.bytes())

    for pair in ((files[0], other), (files[0], tmp_path / "none.pem"), (files[1], files[1])):
        with pytest.raises(SetupError, match="TLS cannot be set up"):
            Certificates(*pair, None)
