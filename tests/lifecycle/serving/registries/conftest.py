"""Servers of registries: S3 (moto's) behind a proxy that can be cut, and files over HTTP with ranges."""

from __future__ import annotations

import hashlib
import re
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from service.lifecycle.serving.registries import fetching

Answer = tuple[int, bytes]


class Proxy:
    """Passes TCP connections on to `target`. After `left` bytes of its answers, if that is set, everything is cut."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.left: int | None = None
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._ends: dict[socket.socket, tuple[socket.socket, bool]] = {}
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._wake.send(b".")
        self._thread.join()
        for one in (*self._ends, self._listener, self._wake, self._woken):
            one.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._ends:
                    self._pass_on(key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self.left == 0:
            client.close()
            return
        server = socket.create_connection(self._target)
        for one, other, is_answer in ((client, server, False), (server, client, True)):
            self._ends[one] = other, is_answer
            self._selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, one: socket.socket) -> None:
        other, is_answer = self._ends[one]
        try:
            data = one.recv(65536)
            if is_answer and self.left is not None:
                data = data[: self.left]
                self.left -= len(data)
            other.sendall(data)
        except OSError:
            data = b""
        if not data or self.left == 0:
            for end in (one, other):
                self._ends.pop(end)
                self._selector.unregister(end)
                end.close()


class S3:
    """A bucket, and the proxy through which the service sees it."""

    bucket = "models"

    def __init__(self, client: Any, proxy: Proxy) -> None:
        self.client = client
        self.proxy = proxy

    def publish(self, folder: Path, to: str) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{to}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def remove(self, prefix: str) -> None:
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", ())
        for one in found:
            self.client.delete_object(Bucket=self.bucket, Key=one["Key"])


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    proxy = Proxy((host, port))
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="the-secret-of-the-test",
    )
    client.create_bucket(Bucket=S3.bucket)
    yield S3(client, proxy)
    proxy.close()
    client.close()
    server.stop()


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSE_SECONDS", 0)


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An empty bucket, which can be reached; the environment has the credentials for it."""
    s3_server.proxy.left = None
    s3_server.remove("")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-of-the-test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return s3_server


@contextmanager
def http_server(answer: Callable[[str, dict[str, str]], Answer]) -> Iterator[str]:
    """Serves what `answer` makes of a path and the headers, in ranges where these are asked for; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, content = answer(self.path, dict(self.headers))
            etag = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": "c" * 40, "Accept-Ranges": "bytes"}
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if status == 200 and asked:
                status, first, total = 206, int(asked[1]), len(content)
                content = content[first : int(asked[2]) + 1]
                headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{total}"
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815 - the name is the base class's

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()
