"""Requests to registries that speak HTTP, with errors whose sentences hold no address and no token."""

from __future__ import annotations

from functools import partial
from typing import Any

import httpx

from service.lifecycle.serving.registries.files import BLOCK_BYTES, NoSuchFile, RegistryUnreachable

TIMEOUT = httpx.Timeout(30, connect=5)


class HttpRegistry:
    """A server that is asked with a token, if there is one; redirects to another host do not take it along."""

    def __init__(self, server: str, shown: str, token: str | None, user: tuple[str, str] | None = None) -> None:
        self._shown = shown
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = partial(
            httpx.Client, base_url=server, headers=headers, auth=user, timeout=TIMEOUT, follow_redirects=True
        )

    def json(self, path: str, **query: str) -> Any:
        """What the server answers, as JSON. Raises RegistryUnreachable, or NoSuchFile for 404."""
        try:
            with self._client() as client:
                reply = client.get(path, params=query)
            self._check(reply, path)
            return reply.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise self._unreachable(type(error).__name__) from None

    def size(self, path: str) -> int:
        """Bytes of a file. Raises RegistryUnreachable or NoSuchFile."""
        try:
            with self._client() as client:
                reply = client.head(path, headers={"Accept-Encoding": "identity"})
            self._check(reply, path)
            return int(reply.headers["Content-Length"])
        except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError) as error:
            raise self._unreachable(type(error).__name__) from None

    def read(self, path: str, start: int, length: int) -> bytes:
        """The part of a file, or from a server without ranges more of it, but of no more than is asked for at once."""
        headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        try:
            with self._client() as client, client.stream("GET", path, headers=headers) as reply:
                self._check(reply, path)
                content = b""
                for part in reply.iter_bytes():
                    content += part
                    if len(content) > BLOCK_BYTES:
                        break
                return content
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(type(error).__name__) from None

    def _check(self, reply: httpx.Response, path: str) -> None:
        if reply.status_code == 404:
            raise NoSuchFile(f"there is no {path.rpartition('/')[2]} in {self._shown}")
        if reply.status_code in (401, 403):
            raise RegistryUnreachable(f"{self._shown} may not be read: check the service's credentials for it")
        if not reply.is_success:
            raise self._unreachable(f"status {reply.status_code}")

    def _unreachable(self, why: str) -> RegistryUnreachable:
        return RegistryUnreachable(f"{self._shown} cannot be reached ({why}): check the network and the server")
