"""The loan model on this process's CPU, plans for it, and ways to have them explained: a scheduler, and engines."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from safetensors.numpy import load_file

from service.catalog.calibrations import Calibration
from service.catalog.manifest import read_manifest
from service.catalog.outputs.classes import Classes
from service.domain import BaselineChoice, ChunkShapes, Explanation, Floats, OutputSpace, Plan, Priority, VersionRef
from service.engine.client.local_engine import LocalEngine
from service.engine.client.worker_handle import WorkerHandle
from service.engine.client.worker_processes import StartedWorker, start_worker
from service.engine.kernels.kernel import Kernel, Kernels, Segment
from service.engine.messages import Done, Failed, Outcome
from service.engine.protocol import ChunkReport, Engine, Source
from service.engine.worker.device import DeviceModel, put_on_device
from service.engine.worker.explanation import explain
from service.engine.worker.packing import Live
from service.engine.worker.scheduler import Scheduler
from tests.conftest import MODELS
from tests.forked import fork_worker

SHAPES = ChunkShapes(128, 512)
CALIBRATION = Calibration(SHAPES)
LOAN = MODELS / "loan" / "1"

MakePlan = Callable[..., Plan]


@pytest.fixture(scope="session")
def device_model() -> DeviceModel:
    """The loan model, as a worker holds it."""
    torch.set_num_threads(1)
    return put_on_device(LOAN, torch.device("cpu"), {}, CALIBRATION)


@pytest.fixture(scope="session")
def rows() -> Floats:
    """Held-out applications: [389, features]."""
    found: Floats = load_file(LOAN / "heldout.safetensors")["rows"].astype(float)
    return found


@pytest.fixture(scope="session")
def make_plan(device_model: DeviceModel, rows: Floats) -> MakePlan:
    """Makes plans: `make_plan(7, rule="midpoint", tolerance=0.1)` for the seventh application."""
    sets = {baseline.name: baseline for baseline in device_model.manifest.baselines}

    def make(
        number: int, *, rule: str = "auto", baseline: str = "training", inline: int | None = None, **fields: Any
    ) -> Plan:
        chosen = sets[baseline]
        choice = BaselineChoice(chosen.name, chosen.version, "sha256:" + chosen.sha256, chosen.size)
        if inline is not None:
            choice = BaselineChoice("inline", "1", f"sha256:{inline}", 1, tuple(rows[inline].tolist()))
        method = fields.get("method", "integrated_gradients")
        usual: dict[str, Any] = {
            "model": device_model.key,
            "method": method,
            "options": (("rule", rule),) if method == "integrated_gradients" else (),
            "input": tuple(rows[number % len(rows)].tolist()),
            "target": 1,
            "output_space": OutputSpace.PROBABILITY,
            "baseline": choice,
            "tolerance": 0.01,
            "max_evaluations": 4096,
            "seed": 0,
            "floor": None,
        }
        return Plan(**usual | fields)

    return make


@pytest.fixture(scope="session")
def various(make_plan: MakePlan) -> list[Plan]:
    """64 plans, no two alike: rows, targets, baselines, methods, rules, output spaces and tolerances."""
    kinds: list[dict[str, Any]] = [
        {"rule": "auto"},
        {"rule": "midpoint", "baseline": "approved"},
        {"rule": "gauss_legendre"},
        {"method": "expected_gradients"},
        {"rule": "auto", "inline": 300},
        {"rule": "gauss_legendre", "baseline": "approved", "tolerance": 0.001},
        {"method": "expected_gradients", "baseline": "approved", "tolerance": 0.1},
        {"rule": "midpoint", "tolerance": 0.05},
    ]
    spaces, targets = Classes.spaces, (0, 1, None)
    return [
        make_plan(number, output_space=spaces[number // 8 % 2], target=targets[number % 3], **kinds[number % 8])
        for number in range(64)
    ]


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a kernel was given: how many slots of how many questions."""

    kernel: str
    slots: int
    questions: int


@dataclass(slots=True)
class WrappedKernel(Kernel):
    """A kernel of the model that may fail first: `before` is called with the segments of every chunk."""

    wrapped: Kernel
    before: Callable[[WrappedKernel, Sequence[Segment]], None]
    name: str = field(init=False)
    capacity: int = field(init=False)
    chunks: list[Chunk] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name, self.capacity = self.wrapped.name, self.wrapped.capacity

    # Kernels are compared, and found in the scheduler's queues, by identity.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def run(self, segments: Sequence[Segment]) -> list[object]:
        self.chunks.append(Chunk(self.name, sum(len(segment) for segment in segments), len(segments)))
        self.before(self, segments)
        self.wrapped.capacity = self.capacity
        return self.wrapped.run(segments)

    def join(self, parts: Sequence[object]) -> object:
        return self.wrapped.join(parts)

    def identity_of(self, question: object) -> Hashable:
        return self.wrapped.identity_of(question)


@dataclass(slots=True)
class Driver:
    """A scheduler in this process, stepped by hand."""

    model: DeviceModel
    scheduler: Scheduler = field(default_factory=Scheduler)
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def add(
        self, task: int, plan: Plan, priority: Priority = Priority.INTERACTIVE, deadline: float | None = None
    ) -> Live:
        model, name = self.model.for_plan(plan), str(self.model.key)
        live = Live(task, explain(plan, model), model.kernels, name, priority, deadline, time.monotonic())
        self.scheduler.add(live)
        return live

    def step(self) -> ChunkReport | None:
        """One chunk; its report, if there was anything to do."""
        before = len(self.scheduler.reports)
        self.scheduler.step()
        self.outcomes |= {outcome.task: outcome for outcome in self.scheduler.outcomes()}
        reports: list[ChunkReport] = self.scheduler.reports[before:]
        return reports[0] if reports else None

    def finish(self) -> dict[int, Outcome]:
        """Steps until nothing waits."""
        while self.scheduler:
            self.step()
        return self.outcomes

    def result(self, task: int) -> Explanation:
        outcome = self.outcomes[task]
        assert isinstance(outcome, Done), outcome
        assert isinstance(outcome.result, Explanation)
        return outcome.result

    def error(self, task: int) -> Exception:
        outcome = self.outcomes[task]
        assert isinstance(outcome, Failed), outcome
        return outcome.error


MakeDriver = Callable[..., Driver]


@pytest.fixture
def driver(device_model: DeviceModel) -> MakeDriver:
    """Makes drivers: `driver(kernels={Points: kernel})` with some of the model's kernels replaced."""

    def make(kernels: Mapping[type, Kernel] | None = None) -> Driver:
        given = {kind: [kernel] for kind, kernel in (kernels or {}).items()}
        return Driver(replace(device_model, kernels=Kernels({**device_model.kernels, **given})))

    return make


@pytest.fixture
def wrap(device_model: DeviceModel) -> Callable[..., WrappedKernel]:
    """Wraps the model's largest kernel for a type of question: `wrap(Points, before)`; see `WrappedKernel`."""

    def make(
        question: type, before: Callable[[WrappedKernel, Sequence[Segment]], None] = lambda _kernel, _segments: None
    ) -> WrappedKernel:
        return WrappedKernel(_copied(device_model.kernels[question][-1]), before)

    return make


def _copied(kernel: Kernel) -> Kernel:
    """The same kernel with a capacity of its own, which a test may shrink."""
    copied: Kernel = object.__new__(type(kernel))
    copied.__dict__.update(kernel.__dict__)
    return copied


@pytest.fixture
def alone(device_model: DeviceModel) -> Callable[..., Explanation]:
    """Explains one plan with nothing else under way: `alone(plan)`, or `alone(plan, model)`."""

    def compute(plan: Plan, model: DeviceModel = device_model) -> Explanation:
        single = Driver(model)
        single.add(0, plan)
        single.finish()
        return single.result(0)

    return compute


def ref_of(folder: Path) -> VersionRef:
    """How an engine knows the version in `folder`."""
    _, key, digest = read_manifest(folder)
    return VersionRef(key.name, key.version, digest)


def source_of(folder: Path) -> Source:
    """The files of the version in `folder`; sets that are attached later lie beside its manifest."""
    return Source(folder, folder)


LOAN_REF = ref_of(LOAN)


@dataclass(slots=True)
class EngineUnderTest:
    """An engine that has loaded the loan model, and what it reported."""

    engine: Engine
    chunks: list[ChunkReport] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)

    async def explain(
        self, plan: Plan, points: int = 64, version: VersionRef = LOAN_REF, **options: Any
    ) -> Explanation:
        explanation, _ = await self.engine.explain(version, plan, points, **options)
        return explanation


@dataclass(slots=True)
class LocalEngineUnderTest(EngineUnderTest):
    """One with worker processes."""

    engine: LocalEngine

    @property
    def workers(self) -> list[WorkerHandle]:
        """The workers that share all versions."""
        return [*self.engine.separation.shared.supervisor.workers.values()]

    @property
    def worker(self) -> WorkerHandle:
        """The only one."""
        (worker,) = self.workers
        return worker


async def start_local(
    workers: int = 1, max_queued_points: int = 10**9, start: Callable[[int], StartedWorker] = start_worker
) -> LocalEngineUnderTest:
    """A local engine whose workers have the loan model."""
    chunks: list[ChunkReport] = []
    restarts: list[str] = []
    engine = LocalEngine(workers, max_queued_points, chunks.append, restarts.append, start=start)
    await engine.start()
    await engine.load(LOAN_REF, source_of(LOAN), {}, CALIBRATION)
    return LocalEngineUnderTest(engine, chunks, restarts)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[LocalEngineUnderTest]:
    """One engine for the tests of a module, which leave it as they found it."""
    started = await start_local(start=fork_worker)
    yield started
    await started.engine.close()
