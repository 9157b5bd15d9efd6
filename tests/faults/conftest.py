"""The whole program as a user runs it: a command in a process of its own, its output read, its children looked up."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.__main__ import main
from tests.conftest import MODELS, NO_AUTHORITIES, PATIENCE_SECONDS, is_alive

ADDRESS = re.compile(r"^Answerable listens on (http://\S+)$", re.MULTILINE)
WORKER, WRITER, REDIS = "service.engine.worker.worker", "service.ledger.writer_process", "redis-server"
KEY = re.compile(r"^The key made on this first start, shown once: (\S+)$", re.MULTILINE)


def _until(condition: Callable[[], bool]) -> None:
    """Waits for a condition; fails when it never happens."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


async def wait_until_gone(pids: list[int]) -> None:
    """Waits until none of the processes runs."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while any(map(is_alive, pids)):  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.01)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


@dataclass(slots=True)
class Program:
    """A running `answerable` command."""

    process: subprocess.Popen[str]
    output_file: Path
    errors_file: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """All it has printed so far."""
        return self.output_file.read_text()

    @property
    def errors(self) -> str:
        """All it has logged so far."""
        return self.errors_file.read_text()

    @property
    def address(self) -> str:
        """Where it listens; waits for it to say so."""
        _until(lambda: ADDRESS.search(self.output) is not None or self.process.poll() is not None)
        found = ADDRESS.search(self.output)
        assert found is not None, f"it ended with {self.process.returncode}: {self.errors}"
        return found[1]

    @property
    def printed_key(self) -> str | None:
        """The key it printed, if it did."""
        found = KEY.search(self.output)
        return None if found is None else found[1]

    def children(self, word: str = "") -> list[int]:
        """Process ids of its live children whose command line has `word`.

        A child that has not yet become another program, and still has this one's command line, is none.
        """
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
        mine = [pid for pid in pids if _parent(pid) == self.pid and is_alive(pid)]
        own = _command(self.pid)
        return [pid for pid in mine if (command := _command(pid)) != own and word in command]

    def end(self, number: signal.Signals) -> int:
        """Sends the signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def client(self, key: str | None) -> httpx.AsyncClient:
        """A client of the service; close it."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(
            base_url=self.address, headers=headers, timeout=PATIENCE_SECONDS, trust_env=False, verify=NO_AUTHORITIES
        )


def _command(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


async def computed(client: httpx.AsyncClient) -> int:
    """How many explanations the service's process has computed."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    counts = (s for family in families for s in family.samples if s.name == "answerable_points_per_explanation_count")
    return int(sum(sample.value for sample in counts))


Start = Callable[..., Program]


@pytest.fixture(scope="session")
def loan_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one version of the loan model: a worker that loads all models starts in twice the time."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "loan").mkdir()
    (folder / "loan" / "1").symlink_to((MODELS / "loan" / "1").resolve())
    return folder


@pytest.fixture
def start(tmp_path: Path, loan_only: Path) -> Iterator[Start]:
    """Starts commands: `start("serve", key="secret")`, with stores under `tmp_path/data`, on a port that is free."""
    with starting(tmp_path, loan_only) as run:
        yield run


@contextmanager
def starting(folder: Path, models: Path) -> Iterator[Start]:
    """As the fixture `start`, with stores under `folder/data`: for services that several tests share."""
    started: list[Program] = []

    def run(command: str, *arguments: str, key: str | None = None, **settings: str) -> Program:
        environment = environment_of(key, **settings)
        options = ["--port", "0", "--data", str(folder / "data"), "--models", str(models), "--workers", "1"]
        output, errors = (folder / f"{len(started)}.{name}" for name in ("out", "err"))
        with output.open("w") as stdout, errors.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", command, *options, *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                text=True,
            )
        started.append(Program(process, output, errors))
        return started[-1]

    try:
        yield run
    finally:
        for program in started:
            _kill(program)


def _kill(program: Program) -> None:
    if program.process.poll() is None:
        children = program.children()
        program.process.kill()
        program.process.wait()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def environment_of(key: str | None = None, **settings: str) -> dict[str, str]:
    """This process's environment with other ANSWERABLE_* settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSWERABLE_")}
    environment |= {f"ANSWERABLE_{name.upper()}": value for name, value in settings.items()}
    if key is not None:
        environment["ANSWERABLE_KEY"] = key
    return environment


@pytest.fixture
def run_command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs commands to their end: `run_command("keys", "list")`."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "service", *arguments],
            cwd=tmp_path,
            env=environment_of(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    return run


@pytest.fixture
def run_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `run_command`, but in this process, which spares the start of another."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with patch.dict(os.environ, environment_of(), clear=True):  # commands prepare their process in it, too
            code = main(arguments)
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits for a condition: `until(lambda: "done" in program.output)`; fails when it never happens."""
    return _until


@dataclass(slots=True)
class Load:
    """Requests that go on until the load ends. `statuses` of those that were answered, `ids` of those with 200.

    `retry_after` are the times after which those that were answered 503 may ask again. `broken` counts those whose
    connection ended without an answer.
    """

    statuses: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    retry_after: set[str | None] = field(default_factory=set)
    broken: int = 0
    is_over: bool = False

    async def reaches(self, answers: int) -> None:
        """Waits for so many more answers."""
        goal = len(self.statuses) + answers
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.statuses) < goal:  # noqa: ASYNC110 - what is waited for happens in another process
                await asyncio.sleep(0.005)

    async def meets(self, status: int) -> None:
        """Waits for an answer of this status that comes from now on."""
        start = len(self.statuses)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while status not in self.statuses[start:]:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


UnderLoad = Callable[..., Any]
Measure = Callable[[str, float, float], None]


@pytest.fixture
def measure(record_property: Callable[[str, object], None]) -> Measure:
    """`measure("slowest refusal, in ms", 12.5, 50)`: what was seen of a time or a ratio of times, and what it may be.

    Kept for the table of `make faults`, and judged where FAULTS_TIMES is set: on a machine that has nothing else to do.
    """

    def measured(what: str, seen: float, most: float) -> None:
        record_property(what, f"{seen:.3g} (at most {most:g})")
        if "FAULTS_TIMES" in os.environ:
            assert seen <= most, what

    return measured


async def p99_of(ask: Callable[[], Awaitable[object]], count: int) -> float:
    """The 99th percentile of the seconds that so many calls take, one after the other."""
    seconds = []
    for _ in range(count):
        begun = time.perf_counter()
        await ask()
        seconds.append(time.perf_counter() - begun)
    return sorted(seconds)[-max(1, count // 100)]


@pytest.fixture(scope="session")
def under_load() -> UnderLoad:
    """`async with under_load(program, key) as load:` keeps 16 clients asking for different explanations.

    `pause` is how many seconds each waits before it asks again: some 100 requests a second in all, which leave the
    processor to what is to recover and to other tests.
    """
    example = yaml.safe_load((MODELS / "loan" / "1" / "manifest.yaml").read_bytes())["example"]
    amounts = itertools.count(1)

    @asynccontextmanager
    async def loaded(program: Program, key: str, clients: int = 16, pause: float = 0.15) -> AsyncIterator[Load]:
        load = Load()

        async def ask(client: httpx.AsyncClient) -> None:
            while not load.is_over:
                instance = {**example, "loan_amount": 1 + next(amounts) % 9000 / 10}
                body = {
                    "instances": [instance],
                }
                try:
                    reply = await client.post("/v1/models/loan/versions/1:explain", json=body)
                except httpx.TransportError:
                    load.broken += 1
                    if program.process.poll() is not None or load.broken > 1000:
                        return
                    continue
                load.statuses.append(reply.status_code)
                if reply.status_code == 503:
                    load.retry_after.add(reply.headers.get("retry-after"))
                if reply.status_code == 200:
                    load.ids.extend(explanation["id"] for explanation in reply.json()["explanations"])
                await asyncio.sleep(pause)

        async with program.client(key) as client, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(ask(client))
            try:
                yield load
            finally:
                load.is_over = True

    return loaded


@pytest.fixture(scope="session")
def body() -> dict[str, Any]:
    """The body that explains the loan model's example."""
    example = yaml.safe_load((MODELS / "loan" / "1" / "manifest.yaml").read_bytes())["example"]
    return {"instances": [example]}
