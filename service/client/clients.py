"""The clients, sync and async: they send what `calls` says, and again where that may help."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from . import calls
from .answers import Explanation, Prediction, Record, Verification
from .calls import Call, Context, Parameters, TargetOf
from .descriptions import ModelDescription
from .errors import ClientError, Refused, UnexpectedAnswer, Unreachable, refusal
from .retries import NO_RETRIES, Attempts, Retries, read_retry_after

T = TypeVar("T")

BATCH = 100
"""Instances in one request: the service takes 1,000, of which one that is wrong has all of them refused."""
SECONDS = 300.0
"""How long an answer may take; an explanation of a large network by a method of many steps takes minutes."""
CONNECT_SECONDS = 10.0
"""How long a connection may take, which no computation makes longer."""


class _Connection:
    """What both clients know of the service: how a request looks, and what its answer says."""

    def __init__(self, url: str, key: str | None, retries: Retries | None, seconds: float) -> None:
        self.url = url.rstrip("/")
        self.retries = retries or NO_RETRIES
        self.options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {} if key is None else {"Authorization": f"Bearer {key}"},
            "timeout": httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS)),
            # reading all certificates takes 40 ms, which plain HTTP saves
            "verify": not self.url.lower().startswith("http:"),
        }

    def request(self, http: httpx.Client | httpx.AsyncClient, call: Call[T]) -> httpx.Request:
        """One for all attempts, so that they have the same idempotency key."""
        headers = call.all_headers(may_repeat=self.retries.attempts > 1)
        return http.build_request(call.method, call.path, json=call.body, headers=headers)

    def read(self, call: Call[T], response: httpx.Response) -> T:
        """Raises Refused, UnexpectedAnswer, DamagedRecord."""
        try:
            content = response.json()
        except ValueError:
            if response.is_success:
                raise UnexpectedAnswer(f"what {self.url} answers is no JSON; is it the service?") from None
            content = None
        if not response.is_success:
            raise refusal(response.status_code, content, read_retry_after(response.headers.get("Retry-After")))
        return call.read(content)

    def lost(self, error: httpx.TransportError) -> Unreachable:
        """The error of a request without an answer."""
        if (failure := _tls_failure(error)) is not None:
            return Unreachable(
                f"TLS with {self.url} failed: {failure}; the environment's SSL_CERT_FILE names "
                "authorities of your own, and `transport` takes a client certificate"
            )
        if isinstance(error, httpx.ConnectError):
            return Unreachable(f"nothing answers at {self.url}; is the service running, and is that its address?")
        if isinstance(error, httpx.TimeoutException):
            return Unreachable(f"{self.url} did not answer in time")
        return Unreachable(f"the connection to {self.url} was lost: {error}")


class Client:
    """A service, asked one thing at a time.

    `url` is its address, `key` a key of it. With `retries` None nothing is sent twice. `transport` is httpx's, for
    those who have their own. Close it, or use it in a `with`.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        retries: Retries | None = Retries(),  # noqa: B008 - it is frozen
        seconds: float = SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = _Connection(url, key, retries, seconds)
        self._http = httpx.Client(**self._connection.options, transport=transport)

    def models(self) -> list[str]:
        """The names of all models."""
        return self.send(calls.list_models())

    def model(self, name: str, version: str | None = None) -> Model:
        """A model, to be asked; the version that its bare name means if none is named. Nothing is sent yet."""
        return Model(self, name, version)

    def explanation(self, id: str) -> Record:
        """A stored explanation. Raises NotFound, Erased, DamagedRecord."""
        return self.send(calls.show(id))

    def verify(self, id: str) -> Verification:
        """Holds a stored explanation against the signed log. Raises NotFound."""
        return self.send(calls.verify(id))

    def send(self, call: Call[T]) -> T:
        """Sends a request, and again as `retries` says. Raises ClientError."""
        attempts, request = Attempts(self._connection.retries), self._connection.request(self._http, call)
        while True:
            try:
                try:
                    response = self._http.send(request)
                except httpx.TransportError as error:
                    raise self._connection.lost(error) from error
                return self._connection.read(call, response)
            except ClientError as error:
                pause = attempts.pause_after(error)
            time.sleep(pause)

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Model:
    """A model of a service, or one version of it."""

    def __init__(self, client: Client, name: str, version: str | None) -> None:
        self._client = client
        self.name = name
        self.version = version

    def describe(self) -> ModelDescription:
        """What it takes and gives."""
        return self._client.send(calls.describe(self.name, self.version))

    def predict(self, instances: Sequence[Any], *, output_space: str | None = None) -> list[Prediction]:
        """One prediction for each instance; nothing is recorded."""
        parameters = {} if output_space is None else {"output_space": output_space}
        return self._client.send(calls.predict(self.name, self.version, instances, **parameters))

    def explain(
        self, instance: Any, *, context: Context | None = None, fresh: bool = False, **parameters: Unpack[Parameters]
    ) -> Explanation:
        """The explanation of one instance, on record; a `fresh` one is computed even if it is in the cache."""
        call = calls.explain(
            calls.read_explanations, self.name, self.version, [instance], context, parameters, fresh=fresh
        )
        return self._client.send(call)[0]

    def explain_many(
        self,
        instances: Iterable[Any],
        *,
        contexts: Iterable[Context] | Context | None = None,
        batch: int = BATCH,
        fresh: bool = False,
        **parameters: Unpack[Parameters],
    ) -> Iterator[Explanation]:
        """The explanations of instances, in their order, asked for as they are taken, `batch` in a request.

        `contexts` are one for all instances, or one for each. The faults of a refusal count the instances from the
        first; those before its batch are explained by then.
        """
        read = calls.read_explanations
        yield from self._in_batches(read, instances, contexts, batch, parameters, fresh=fresh)

    def explain_targets(
        self,
        instance: Any,
        targets: Sequence[TargetOf],
        *,
        context: Context | None = None,
        fresh: bool = False,
        **parameters: Unpack[Parameters],
    ) -> list[Explanation]:
        """Explanations of one instance, one for each of at most 20 targets, in one request, which shares work; of both
        sides of a similarity, two."""
        asked = {**parameters, "targets": list(targets)}
        return self._client.send(
            calls.explain(calls.read_explanations, self.name, self.version, [instance], context, asked, fresh=fresh)
        )

    def explain_where(
        self,
        instances: Iterable[Any],
        when: str,
        *,
        contexts: Iterable[Context] | Context | None = None,
        batch: int = BATCH,
        fresh: bool = False,
        **parameters: Unpack[Parameters],
    ) -> Iterator[Explanation | Prediction]:
        """As `explain_many`, of the instances for whose prediction `when` holds (`probability > 0.8`, or
        `label == denied`); of the others the prediction, and no record."""
        asked = {**parameters, "when": when}
        yield from self._in_batches(calls.read_either, instances, contexts, batch, asked, fresh=fresh)

    def _in_batches(
        self,
        read: Callable[[Any], list[T]],
        instances: Iterable[Any],
        contexts: Iterable[Context] | Context | None,
        size: int,
        parameters: Mapping[str, Any],
        *,
        fresh: bool,
    ) -> Iterator[T]:
        for first, some, theirs in _batches(instances, contexts, size):
            call = calls.explain(read, self.name, self.version, some, theirs, parameters, fresh=fresh)
            try:
                answered = self._client.send(call)
            except Refused as error:
                raise error.after(first) from error
            yield from answered


class AsyncClient:
    """The same for asyncio: a service, asked many things at a time. Close it, or use it in an `async with`."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        retries: Retries | None = Retries(),  # noqa: B008 - it is frozen
        seconds: float = SECONDS,
        connections: int = 100,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._connection = _Connection(url, key, retries, seconds)
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx.AsyncClient(**self._connection.options, limits=limits, transport=transport)

    async def models(self) -> list[str]:
        """The names of all models."""
        return await self.send(calls.list_models())

    def model(self, name: str, version: str | None = None) -> AsyncModel:
        """A model, to be asked; the version that its bare name means if none is named. Nothing is sent yet."""
        return AsyncModel(self, name, version)

    async def explanation(self, id: str) -> Record:
        """A stored explanation. Raises NotFound, Erased, DamagedRecord."""
        return await self.send(calls.show(id))

    async def verify(self, id: str) -> Verification:
        """Holds a stored explanation against the signed log. Raises NotFound."""
        return await self.send(calls.verify(id))

    async def send(self, call: Call[T]) -> T:
        """Sends a request, and again as `retries` says. Raises ClientError."""
        attempts, request = Attempts(self._connection.retries), self._connection.request(self._http, call)
        while True:
            try:
                try:
                    response = await self._http.send(request)
                except httpx.TransportError as error:
                    raise self._connection.lost(error) from error
                return self._connection.read(call, response)
            except ClientError as error:
                pause = attempts.pause_after(error)
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncModel:
    """A model of a service, or one version of it."""

    def __init__(self, client: AsyncClient, name: str, version: str | None) -> None:
        self._client = client
        self.name = name
        self.version = version

    async def describe(self) -> ModelDescription:
        """What it takes and gives."""
        return await self._client.send(calls.describe(self.name, self.version))

    async def predict(self, instances: Sequence[Any], *, output_space: str | None = None) -> list[Prediction]:
        """One prediction for each instance; nothing is recorded."""
        parameters = {} if output_space is None else {"output_space": output_space}
        return await self._client.send(calls.predict(self.name, self.version, instances, **parameters))

    async def explain(
        self, instance: Any, *, context: Context | None = None, fresh: bool = False, **parameters: Unpack[Parameters]
    ) -> Explanation:
        """The explanation of one instance, on record; a `fresh` one is computed even if it is in the cache."""
        call = calls.explain(
            calls.read_explanations, self.name, self.version, [instance], context, parameters, fresh=fresh
        )
        return (await self._client.send(call))[0]

    async def explain_many(
        self,
        instances: Iterable[Any],
        *,
        contexts: Iterable[Context] | Context | None = None,
        batch: int = BATCH,
        fresh: bool = False,
        **parameters: Unpack[Parameters],
    ) -> AsyncIterator[Explanation]:
        """As of `Model`: the explanations of instances, in their order, asked for as they are taken."""
        read = calls.read_explanations
        async for explanation in self._in_batches(read, instances, contexts, batch, parameters, fresh=fresh):
            yield explanation

    async def explain_targets(
        self,
        instance: Any,
        targets: Sequence[TargetOf],
        *,
        context: Context | None = None,
        fresh: bool = False,
        **parameters: Unpack[Parameters],
    ) -> list[Explanation]:
        """As of `Model`: one explanation for each target, in one request."""
        asked = {**parameters, "targets": list(targets)}
        return await self._client.send(
            calls.explain(calls.read_explanations, self.name, self.version, [instance], context, asked, fresh=fresh)
        )

    async def explain_where(
        self,
        instances: Iterable[Any],
        when: str,
        *,
        contexts: Iterable[Context] | Context | None = None,
        batch: int = BATCH,
        fresh: bool = False,
        **parameters: Unpack[Parameters],
    ) -> AsyncIterator[Explanation | Prediction]:
        """As of `Model`: explanations where `when` holds, and predictions where it does not."""
        asked = {**parameters, "when": when}
        async for one in self._in_batches(calls.read_either, instances, contexts, batch, asked, fresh=fresh):
            yield one

    async def _in_batches(
        self,
        read: Callable[[Any], list[T]],
        instances: Iterable[Any],
        contexts: Iterable[Context] | Context | None,
        size: int,
        parameters: Mapping[str, Any],
        *,
        fresh: bool,
    ) -> AsyncIterator[T]:
        for first, some, theirs in _batches(instances, contexts, size):
            call = calls.explain(read, self.name, self.version, some, theirs, parameters, fresh=fresh)
            try:
                answered = await self._client.send(call)
            except Refused as error:
                raise error.after(first) from error
            for one in answered:
                yield one


def _tls_failure(error: BaseException) -> ssl.SSLError | None:
    """What of TLS an error comes from, which httpx passes on as one of the connection."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _batches(
    instances: Iterable[Any], contexts: Iterable[Context] | Context | None, size: int
) -> Iterator[tuple[int, list[Any], list[Context] | Context | None]]:
    """The number of its first instance, the instances and the contexts of each request."""
    all_of_them, first = iter(instances), 0
    each = None if contexts is None or isinstance(contexts, Context) else iter(contexts)
    while some := list(islice(all_of_them, size)):
        yield first, some, contexts if each is None else list(islice(each, len(some)))  # type: ignore[misc]
        first += len(some)
