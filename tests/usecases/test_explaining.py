"""The use case over an engine that is counted and held: single flight, what is cached, and never without a record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from service.access.callers import Caller
from service.answers.cache import Cache
from service.catalog.inputs.instances import read_instance
from service.catalog.inputs.kind import Row
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.manifest import read_manifest
from service.catalog.traits import Traits
from service.catalog.versions import ModelVersion
from service.domain import Completeness, Context, Explanation, Plan, Priority, Timings, VersionRef
from service.errors import ComputationFailed, DeadlineExceeded, LedgerFull, LedgerUnavailable, NotConverged, Overloaded
from service.ledger import Entry, Ledger, Search, Vault, open_engine, upgrade
from service.ledger.append_queue import Room
from service.ledger.entries import Remembered
from service.monitoring.health import Health
from service.monitoring.metrics import Metrics
from service.usecases.explaining import Answer, Explaining, LedgerMode, Request
from service.usecases.planning import Parameters
from tests.conftest import MODELS
from tests.engine.stand_in import StandIn

if TYPE_CHECKING:
    from tests.conftest import MakeCache, Until

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOAN = MODELS / "loan" / "1"


@dataclass(slots=True)
class HeldEngine(StandIn):
    """Answers when it is told to, and counts. `left` are the seconds that were left of the deadline at each call."""

    outcome: Explanation | Exception
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[Plan] = field(default_factory=list)
    left: list[float | None] = field(default_factory=list)
    cancelled: int = 0

    async def explain(
        self,
        version: VersionRef,  # noqa: ARG002
        plan: Plan,
        expected_points: int,  # noqa: ARG002
        priority: Priority = Priority.INTERACTIVE,  # noqa: ARG002
        seconds_left: float | None = None,
    ) -> tuple[Explanation, Timings]:
        self.asked.append(plan)
        self.left.append(seconds_left)
        try:
            await self.is_open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome, Timings(0.001, 0.002)


@dataclass(slots=True)
class ListLedger:
    """Keeps entries in a list, or is unavailable."""

    entries: list[Entry] = field(default_factory=list)
    is_available: bool = True

    def room(self, entries: int) -> AbstractContextManager[Room]:
        return nullcontext(Room(entries))

    async def append(self, entries: Sequence[Entry], kept: Remembered | None, room: Room | None) -> None:
        assert kept is None
        assert room is not None
        if not self.is_available:
            raise LedgerUnavailable("the disk is full")
        self.entries.extend(entries)


@pytest.fixture(scope="module")
def version() -> ModelVersion:
    manifest, key, digest = read_manifest(LOAN)
    traits = Traits(TabularInputs.axes, manifest.inputs.shape, 2, None, ("relu",), True, False, "minimum")
    return ModelVersion(key, manifest, LOAN, digest, environment={"answerable": "test"}, traits=traits)


@pytest.fixture
def explanation(version: ModelVersion) -> Explanation:
    features = len(version.manifest.inputs.names)
    return Explanation(
        outputs=(0.25, 0.75),
        target=1,
        output=0.75,
        baseline_output=0.1,
        attributions=tuple(0.65 / features for _ in range(features)),
        shape=(features,),
        standard_error=None,
        completeness=Completeness.EXACT,
        completeness_error=1e-7,
        attribution_error=2e-7,
        converged=True,
        reason=None,
        evaluations=17,
        rule="exact",
        small_difference=False,
        chunk_rows="64+512",
    )


@dataclass(slots=True)
class UnderTest:
    """The use case and all that surrounds it."""

    explaining: Explaining
    engine: HeldEngine
    ledger: ListLedger
    cache: Cache
    version: ModelVersion
    tenant: str

    def request(self, tenant: str | None = None, use_cache: bool = True, rows: int = 1, **parameters: Any) -> Request:
        row = read_instance(self.version.manifest, self.version.manifest.example)
        return Request(
            version=self.version,
            rows=[Row(row)] * rows,
            parameters=Parameters(**parameters),
            contexts=[Context()] * rows,
            caller=Caller(tenant or self.tenant, "key"),
            use_cache=use_cache,
            received=time.monotonic(),
        )

    def ask(self, **options: Any) -> asyncio.Task[list[Answer]]:
        return asyncio.create_task(self.explaining.explain(self.request(**options)))

    async def written(self) -> None:
        await self.cache.written()


Make = Callable[..., UnderTest]


@pytest.fixture
def make(
    make_cache: MakeCache, version: ModelVersion, explanation: Explanation, request: pytest.FixtureRequest
) -> Make:
    """Makes use cases whose engine answers `outcome`, an explanation or an error; each test has a tenant of its own."""

    def made(
        outcome: Explanation | Exception = explanation,
        *,
        mode: LedgerMode = "required",
        held: bool = False,
        real_ledger: Ledger | None = None,
    ) -> UnderTest:
        engine, ledger, cache = HeldEngine(outcome), ListLedger(), make_cache().cache
        if not held:
            engine.is_open.set()
        known = None if mode == "off" else real_ledger or cast(Ledger, ledger)
        health = Health(engine, 0)
        explaining = Explaining(engine, cache, known, mode, Metrics(), health, max_points=200_000)
        return UnderTest(explaining, engine, ledger, cache, version, request.node.name)

    return made


async def test_100_identical_cold_requests_compute_once(make: Make, until: Until) -> None:
    one = make(held=True)
    asking = [one.ask() for _ in range(100)]
    await until(lambda: len(one.engine.asked) > 0)
    one.engine.is_open.set()
    answers = [answer for (answer,) in await asyncio.gather(*asking)]

    late = await asyncio.gather(*(one.ask() for _ in range(100)))
    assert all(answer.explanation.cached for (answer,) in late)
    assert len(one.engine.asked) == 1
    assert len({answer.explanation.id for answer in answers}) == 100
    assert len(one.ledger.entries) == 200
    assert len({str(answer.explanation.attributions) for answer in answers}) == 1
    await one.written()
    (later,) = await one.ask()
    assert later.explanation.cached is True
    assert len(one.engine.asked) == 1


async def test_500_identical_cold_requests_compute_once_however_soon_it_is_done(make: Make) -> None:
    """What is asked of Redis travels in several calls: the first of them may be answered, and the computation done,
    before the last is sent."""
    one = make()
    answers = [answer for (answer,) in await asyncio.gather(*(one.ask() for _ in range(500)))]

    assert len(one.engine.asked) == 1
    assert len({answer.explanation.id for answer in answers}) == len(one.ledger.entries) == 500
    await one.written()
    assert all(answer.explanation.cached for (answer,) in await asyncio.gather(*(one.ask() for _ in range(500))))
    assert len(one.engine.asked) == 1


async def test_500_identical_cold_requests_of_two_hosts_compute_at_most_once_on_each(make: Make) -> None:
    """They have nothing but Redis in common."""
    hosts = [make(), make()]
    answers = await asyncio.gather(*(hosts[number % 2].ask() for number in range(500)))

    computed = [len(host.engine.asked) for host in hosts]
    assert max(computed) == 1
    assert len({str(answer.explanation.attributions) for (answer,) in answers}) == 1
    assert [len(host.ledger.entries) for host in hosts] == [250, 250]
    await hosts[0].written()
    await hosts[1].written()
    later = [answer.explanation.cached for host in hosts for answer in await host.ask()]
    assert later == [True, True]
    assert [len(host.engine.asked) for host in hosts] == computed


async def test_requests_that_come_one_after_another_compute_once(make: Make) -> None:
    """Each at another moment of the first: before, while and after it is looked up, computed, kept and written."""
    one = make()
    asking = []
    for _ in range(500):
        asking.append(one.ask())
        await asyncio.sleep(0)
    await asyncio.gather(*asking)
    assert len(one.engine.asked) == 1


async def test_other_tenants_compute_their_own(make: Make) -> None:
    one = make()
    await asyncio.gather(*(one.ask(tenant=f"bank {number}") for number in range(3)))
    assert len(one.engine.asked) == 3


async def test_identical_rows_of_one_request_compute_once(make: Make) -> None:
    one = make()
    answers = await one.ask(rows=5)
    assert len(one.engine.asked) == 1
    assert len({answer.explanation.id for answer in answers}) == len(one.ledger.entries) == 5


async def test_a_waiter_that_leaves_disturbs_nobody(make: Make, until: Until) -> None:
    one = make(held=True)
    asking = [one.ask() for _ in range(5)]
    await until(lambda: one.explaining.waiting == (5,))
    asking[0].cancel()
    asking[3].cancel()
    await asyncio.wait([asking[0], asking[3]])
    one.engine.is_open.set()

    for number in (1, 2, 4):
        (answer,) = await asking[number]
        assert answer.explanation.converged
    assert (len(one.engine.asked), one.engine.cancelled) == (1, 0)
    assert one.explaining.waiting == ()


async def test_the_last_waiter_that_leaves_ends_the_computation(make: Make, until: Until) -> None:
    one = make(held=True)
    asking = [one.ask() for _ in range(5)]
    await until(lambda: one.explaining.waiting == (5,))
    await until(lambda: len(one.engine.asked) == 1)
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    await until(lambda: one.engine.cancelled == 1)

    assert one.explaining.waiting == ()
    assert not one.ledger.entries
    one.engine.is_open.set()
    (answer,) = await one.ask()
    assert answer.explanation.converged
    assert len(one.engine.asked) == 2


@pytest.mark.parametrize("error", [ComputationFailed("the model failed"), Overloaded("full"), DeadlineExceeded("late")])
async def test_a_failed_computation_fails_all_and_is_not_kept(
    make: Make, until: Until, error: Exception, explanation: Explanation
) -> None:
    one = make(error, held=True)
    asking = [one.ask() for _ in range(5)]
    await until(lambda: one.explaining.waiting == (5,))
    one.engine.is_open.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)

    assert outcomes == [error] * 5
    assert not one.ledger.entries
    assert one.explaining.waiting == ()
    one.engine.outcome = explanation
    (answer,) = await one.ask()
    assert answer.explanation.cached is False
    assert len(one.engine.asked) == 2


@pytest.mark.parametrize(("reason", "is_kept"), [("deadline", False), ("non_finite", False), ("budget", True)])
async def test_what_chance_stopped_is_not_kept(
    make: Make, explanation: Explanation, reason: str, is_kept: bool
) -> None:
    one = make(replace(explanation, converged=False, reason=reason))
    await one.ask()
    await one.written()
    (again,) = await one.ask()

    assert again.explanation.cached is is_kept
    assert again.explanation.reason == reason
    assert len(one.engine.asked) == (1 if is_kept else 2)


async def test_what_was_begun_before_somebody_was_erased_is_not_kept(make: Make, until: Until) -> None:
    one = make(held=True)
    asking = one.ask()
    await until(lambda: len(one.engine.asked) == 1)
    await one.cache.forget_results()
    one.engine.is_open.set()
    await asking

    (later,) = await one.ask()
    (again,) = await one.ask()

    assert (later.explanation.cached, again.explanation.cached) == (False, True)


async def test_one_with_a_deadline_computes_for_itself_and_may_be_kept(make: Make, until: Until) -> None:
    one = make(held=True)
    asking = [one.ask(deadline_ms=60_000) for _ in range(2)]
    await until(lambda: len(one.engine.asked) == 2)
    assert all(left is not None and 0 < left <= 60 for left in one.engine.left)
    one.engine.is_open.set()
    await asyncio.gather(*asking)
    await one.written()
    (again,) = await one.ask(deadline_ms=60_000)
    assert again.explanation.cached is True


async def test_without_the_cache_nothing_is_read_or_kept(make: Make) -> None:
    one = make()
    await one.ask(use_cache=False)
    await one.written()
    (again,) = await one.ask()
    assert again.explanation.cached is False
    (fresh,) = await one.ask(use_cache=False)
    assert fresh.explanation.cached is False


async def test_no_record_no_answer(make: Make) -> None:
    one = make(mode="required")
    one.ledger.is_available = False
    with pytest.raises(LedgerUnavailable):
        await one.ask()


async def test_room_for_the_records_is_taken_before_anything_is_computed(
    make: Make, until: Until, tmp_path: Path
) -> None:
    database = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    upgrade(database)
    ledger = Ledger(database, Vault(bytes(32)), waiting_limit=20)
    one = make(held=True, real_ledger=ledger)
    try:
        asking = [one.ask(rows=8) for _ in range(2)]
        await until(lambda: len(one.engine.asked) == 1)
        for rows in (5, 8):
            with pytest.raises(LedgerFull) as refused:
                await one.ask(rows=rows, seed=1)
            assert int(refused.value.headers["Retry-After"]) >= 1
        asking.append(one.ask(rows=4))
        left = one.ask(rows=20, tenant="another")
        with pytest.raises(LedgerFull):
            await left
        one.engine.is_open.set()
        answers = [answer for found in asking for answer in await found]

        assert len(answers) == 20
        assert len(one.engine.asked) == 1
        assert len(await one.ask(rows=30)) == 30  # more than it ever holds, when nobody else is there
        assert len((await ledger.search(one.tenant, Search(), limit=100)).entries) == 50
        one.engine.outcome = ComputationFailed("the model failed")
        with pytest.raises(ComputationFailed):
            await one.ask(rows=20, use_cache=False)
        assert (ledger.queue.waiting, ledger.queue.reserved) == (0, 0)
    finally:
        await ledger.close()
        database.dispose()


async def test_best_effort_answers_where_there_is_no_room(make: Make, tmp_path: Path) -> None:
    database = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    upgrade(database)
    ledger = Ledger(database, Vault(bytes(32)), waiting_limit=2)
    one = make(mode="best_effort", real_ledger=ledger)
    with ledger.room(2):
        assert len(await one.ask(rows=3)) == 3  # there was none at first, but some in the end
    await ledger.close()
    database.dispose()


async def test_best_effort_answers_without_a_record_and_says_so(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    one = make(mode="best_effort")
    one.ledger.is_available = False
    (answer,) = await one.ask()
    assert answer.explanation.converged
    assert "without a record" in caplog.text

    one.ledger.is_available = True
    await one.ask()
    assert len(one.ledger.entries) == 1


async def test_off_has_no_ledger(make: Make) -> None:
    one = make(mode="off")
    (answer,) = await one.ask()
    assert answer.explanation.converged
    assert not one.ledger.entries


async def test_strict_refuses_and_records_nothing(make: Make, explanation: Explanation) -> None:
    one = make(replace(explanation, converged=False, reason="budget"))
    with pytest.raises(NotConverged):
        await one.ask(strict=True)
    assert not one.ledger.entries


async def test_one_failing_row_cancels_the_others_of_its_request(make: Make, until: Until) -> None:
    one = make(held=True)
    rows = [Row(tuple(float(number) for _ in one.version.manifest.inputs.names)) for number in range(3)]
    asking = asyncio.create_task(one.explaining.explain(replace(one.request(rows=3), rows=rows)))
    await until(lambda: len(one.engine.asked) == 3)
    asking.cancel()
    await asyncio.wait([asking])
    await until(lambda: one.engine.cancelled == 3)
    assert one.explaining.waiting == ()
