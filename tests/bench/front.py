"""Where the front's time goes, a step at a time: `python -m tests.bench.front [rounds]`, 40 by default.

The service runs in this process, with its Redis, its ledger and its worker beside it, and answers explanations of the
loan model, `TOGETHER` at a time, from the cache and computed, without a socket: what the HTTP server takes comes on
top. Figures are microseconds of CPU of the event loop's thread for each request: the means of the round with the least
whole, since whatever else the machine does can only add to it. Steps are timed within requests, by a timer around the
functions named in `steps`; of one that waits, only what it does itself. The timers add to it, most to the handler's
step, so the whole is measured without them too.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr
from inspect import iscoroutinefunction
from itertools import cycle, islice
from operator import itemgetter
from pathlib import Path
from types import coroutine
from typing import Any
from unittest.mock import patch

import orjson
import yaml
from fastapi import FastAPI
from starlette.types import Message

from service.api import explain, routing
from service.api.routing import Route
from service.api.schemas import ExplainParameters
from service.api.services import Services
from service.app import create_app
from service.catalog.inputs.tabular import TabularInputs
from service.processes.tuning import front_listens, share_interpreter
from service.settings import Settings
from service.usecases import explaining
from tests.conftest import MODELS

TOGETHER = 16
CALLS = 10 * TOGETHER
KEY = "a key of the benchmark's own"
PATH = "/v1/models/loan/versions/1:explain"
LOAN = MODELS / "loan"
EXAMPLE: Mapping[str, Any] = yaml.safe_load((LOAN / "1" / "manifest.yaml").read_bytes())["example"]

LOOP = "the event loop: tasks, timers, sockets of Redis, worker and writer"
WHOLE = "the whole request"
UNTIMED = "the same without the timers"

Call = Callable[[], Coroutine[Any, Any, object]]


def steps(services: Services) -> Mapping[str, Sequence[tuple[Any, str]]]:
    """The functions of each step, by where they are looked up. A step within another does not count for that one."""
    return {
        "routing and middleware": [(FastAPI, "__call__")],
        "authenticate": [(routing, "authorise")],
        "read and validate the body": [(routing, "read_json"), (routing, "validated")],
        "read the row and the parameters": [(TabularInputs, "read"), (ExplainParameters, "parameters")],
        "plan": [(explaining, "make_plans"), (explaining, "expected_points"), (explaining, "plan_cache_digest")],
        "look up in Redis": [(services.cache, "result")],
        "to the worker and back": [(services.engine, "explain")],
        "keep for Redis": [(services.cache, "keep_result")],
        "answer: attributions, reasons, flags": [(explaining, "answered")],
        "record: its two parts as bytes": [(explaining, "ledger_entry")],
        "to the ledger's writer and back": [(services.need_ledger().ledger, "append")],
        "reply: what the policy shows, as bytes": [(explaining, "limited_answer"), (explain, "encode")],
        "line of the log": [(services.request_log, "add")],
        "what the handler and the use case do besides": [(Route, "handle")],
    }


class Timer:
    """Adds up the seconds of this thread's CPU of functions, by their step."""

    def __init__(self) -> None:
        self.seconds = dict[str, float]()
        self._within: list[float] = []

    def _begin(self) -> float:
        self._within.append(0.0)
        return time.thread_time()

    def _end(self, step: str, began: float) -> None:
        took = time.thread_time() - began
        self.seconds[step] = self.seconds.get(step, 0.0) + took - self._within.pop()
        if self._within:
            self._within[-1] += took

    def timed(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function; of one that waits, what it does itself is timed."""

        def call(*arguments: Any, **named: Any) -> Any:
            began = self._begin()
            try:
                return function(*arguments, **named)
            finally:
                self._end(step, began)

        @coroutine
        def run(work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
            while True:
                began = self._begin()
                try:
                    waiting_for = work.send(None)
                except StopIteration as ended:
                    return ended.value
                finally:
                    self._end(step, began)
                yield waiting_for

        async def call_and_wait(*arguments: Any, **named: Any) -> Any:
            return await run(function(*arguments, **named))

        return call_and_wait if iscoroutinefunction(function) else call


def fresh_bodies() -> Iterator[bytes]:
    """Requests of which no two are of the same input."""
    name = next(name for name, value in EXAMPLE.items() if isinstance(value, float))
    number = 0
    while True:
        number += 1
        instance = {**EXAMPLE, name: EXAMPLE[name] * (1 + number * 1e-6)}
        yield orjson.dumps({"instances": [instance], "context": {"subject": "s-1", "decision_id": "d-1"}})


def scope_of(body: bytes) -> dict[str, Any]:
    """The request, as the HTTP server passes it on."""
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json", "content-length": str(len(body))}
    return {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": PATH, "root_path": "",
        "raw_path": PATH.encode(), "query_string": b"", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()], "state": {},
    }  # fmt: skip


async def request(app: FastAPI, body: bytes, *, cached: bool) -> None:
    """One request. Raises AssertionError where the answer is none, or comes from where it is not meant to."""
    arriving: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        return arriving.pop() if arriving else await asyncio.Future()  # the client stays

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope_of(body), receive, send)
    assert sent[0]["status"] == 200, sent[1]["body"]
    assert cached == (b'"cached":true' in sent[1]["body"]), "Redis did not answer in time"


async def round_of(call: Call) -> float:
    """Microseconds of this thread's CPU for each of `CALLS`; infinite where one did not end as meant."""

    async def in_a_row() -> None:
        for _ in range(CALLS // TOGETHER):
            await call()

    began = time.thread_time()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(TOGETHER):
                group.create_task(in_a_row())
    except* AssertionError:
        began = -float("inf")
    return (time.thread_time() - began) / CALLS * 1e6


async def parts_of(call: Call, services: Services) -> dict[str, float]:
    """The same of each step, of the event loop besides, and of the `WHOLE` with the timers."""
    timer = Timer()
    with ExitStack() as patched:
        for step, functions in steps(services).items():
            for place, name in functions:
                patched.enter_context(patch.object(place, name, timer.timed(step, getattr(place, name))))
        whole = await round_of(call)
    parts = {step: spent / CALLS * 1e6 for step, spent in timer.seconds.items()}
    return {**parts, LOOP: whole - sum(parts.values()), WHOLE: whole}


async def table(app: FastAPI, rounds: int) -> str:
    """Steps, and the whole of a request, cached and computed."""
    services: Services = app.state.services
    fresh = fresh_bodies()
    known = cycle([*islice(fresh, TOGETHER)])  # all different, or those of one time would share one look-up
    for _ in range(TOGETHER):
        await request(app, next(known), cached=False)
    kinds: Sequence[Call] = (
        lambda: request(app, next(known), cached=True),
        lambda: request(app, next(fresh), cached=False),
    )
    front_listens()
    least = [{WHOLE: float("inf"), UNTIMED: float("inf")} for _ in kinds]
    for _ in range(rounds):
        for at, call in enumerate(kinds):
            parts, untimed = await parts_of(call, services), await round_of(call)
            least[at] = {**min(least[at], parts, key=itemgetter(WHOLE)), UNTIMED: min(least[at][UNTIMED], untimed)}
    rows = [(name, [figures.get(name) for figures in least]) for name in [*steps(services), LOOP, WHOLE, UNTIMED]]
    return "\n".join(["| step | cached | computed |", "| --- | --- | --- |", *(_row(*row) for row in rows)])


def _row(name: str, figures: Sequence[float | None]) -> str:
    return f"| {name} | {' | '.join('' if figure is None else f'{figure:.0f}' for figure in figures)} |"


async def main(rounds: int) -> str:
    """The table, of a service in a folder of its own."""
    share_interpreter()
    with tempfile.TemporaryDirectory(prefix="bench-front-") as folder:
        models = Path(folder) / "models"
        models.mkdir()
        (models / "loan").symlink_to(LOAN)
        data = Path(folder) / "data"
        app = create_app(Settings(_env_file=None, data=data, models=models, key=KEY, workers=1, stability_share=0))
        async with app.router.lifespan_context(app):
            await app.state.services.loading
            return await table(app, rounds)


if __name__ == "__main__":
    with Path(os.devnull).open("w") as nothing, redirect_stderr(nothing):  # where the lines of the log go
        written = asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 40))
    print(written)
