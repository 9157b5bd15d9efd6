"""What `service.engine.protocol` promises, of every implementation.

Bits are compared with those of a scheduler that is driven by hand (`alone`). The last test closes the engine.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from safetensors.numpy import load_file, save

from service.catalog.manifest import BaselineSet, read_manifest
from service.domain import (
    BaselineChoice,
    ChunkShapes,
    Conditions,
    Explanation,
    OutputSpace,
    Plan,
    Priority,
    VersionRef,
)
from service.engine.protocol import ChunkReport
from service.engine.worker.device import DeviceModel
from service.errors import (
    CatalogError,
    ComputationFailed,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
    WorkerLost,
)
from tests.engine.conftest import CALIBRATION, LOAN, LOAN_REF, SHAPES, EngineUnderTest, ref_of, source_of, start_local
from tests.engine.in_process import InProcessEngine
from tests.engine.spoiling import SPOILT, copy_of_loan

if TYPE_CHECKING:
    from tests.conftest import Until
    from tests.engine.conftest import MakePlan

Alone = Callable[..., Explanation]

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT = 10**6
"""The points that an engine under test holds at most."""
UNKNOWN = VersionRef("loan", "1", "sha256:" + "0" * 64)


async def local() -> EngineUnderTest:
    return await start_local(max_queued_points=LIMIT)


async def in_process() -> EngineUnderTest:
    chunks: list[ChunkReport] = []
    engine = InProcessEngine(LIMIT, chunks.append)
    await engine.start()
    await engine.load(LOAN_REF, source_of(LOAN), {}, CALIBRATION)
    return EngineUnderTest(engine, chunks)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[in_process, local])
async def one(request: pytest.FixtureRequest) -> AsyncIterator[EngineUnderTest]:
    """An engine that has the loan model. Tests leave it as they found it, but the last one."""
    started: EngineUnderTest = await request.param()
    yield started
    await started.engine.close()


def big(make_plan: MakePlan, number: int = 0) -> Plan:
    """Hundreds of thousands of points: seconds of work."""
    return make_plan(number, method="expected_gradients", tolerance=1e-9, max_evaluations=400_000)


def gradient_points(one: EngineUnderTest) -> int:
    return sum(chunk.slots for chunk in one.chunks if chunk.kernel == "gradient")


async def test_64_explanations_at_once_are_what_each_is_alone(
    one: EngineUnderTest, various: Sequence[Plan], alone: Alone
) -> None:
    one_by_one = [await one.explain(plan) for plan in various]
    one.chunks.clear()
    together = await asyncio.gather(*(one.explain(plan) for plan in various))

    assert together == one_by_one == [alone(plan) for plan in various]
    assert max(chunk.explanations for chunk in one.chunks if chunk.kernel == "gradient") >= 8
    assert one.engine.stats().queued_points == 0


async def test_where_the_time_went(one: EngineUnderTest, make_plan: MakePlan) -> None:
    _, timings = await one.engine.explain(LOAN_REF, make_plan(0), 64)
    assert timings.queue >= 0
    assert timings.compute > 0


async def test_a_prediction_is_the_explained_output(one: EngineUnderTest, make_plan: MakePlan) -> None:
    plan = make_plan(5)
    prediction = await one.engine.predict(LOAN_REF, plan.input)

    assert prediction.outputs[OutputSpace.PROBABILITY] == (await one.explain(plan)).outputs


@pytest.mark.parametrize("shapes", [SHAPES, ChunkShapes(64, 256)])
async def test_what_is_repeated_is_equal_in_every_bit(
    one: EngineUnderTest, make_plan: MakePlan, alone: Alone, device_model: DeviceModel, shapes: ChunkShapes
) -> None:
    plan = make_plan(3, method="expected_gradients", tolerance=0.001)
    again = await one.engine.repeat(LOAN_REF, plan, 64, Conditions(shapes, None))

    assert again.chunk_rows == str(shapes)
    assert again == alone(plan, device_model if shapes == SHAPES else device_model.at(shapes))


async def test_what_a_deadline_ended_is_repeated_up_to_there(one: EngineUnderTest, make_plan: MakePlan) -> None:
    plan = make_plan(0, method="expected_gradients", tolerance=1e-12, max_evaluations=1_000_000)
    seconds = 0.2
    while True:
        try:
            ended = await one.explain(plan, seconds_left=seconds)
            break
        except DeadlineExceeded:  # on a busy machine
            seconds *= 2
    again = await one.engine.repeat(LOAN_REF, plan, 64, Conditions(SHAPES, ended.answers))

    assert (ended.converged, ended.reason) == (False, "deadline")
    assert ended.attributions is not None
    assert replace(again, answers=ended.answers) == ended


async def test_a_deadline_that_has_passed(one: EngineUnderTest, make_plan: MakePlan) -> None:
    calls = [
        one.explain(make_plan(0), seconds_left=-1.0),
        one.engine.predict(LOAN_REF, make_plan(0).input, 0.0),
        one.explain(make_plan(1)),
    ]
    late, late_too, other = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(late, DeadlineExceeded)
    assert isinstance(late_too, DeadlineExceeded)
    assert isinstance(other, Explanation)


async def test_cancelling_one_of_four_leaves_three(one: EngineUnderTest, make_plan: MakePlan, until: Until) -> None:
    plans = [make_plan(number, method="expected_gradients") for number in range(3)]
    before = [await one.explain(plan) for plan in plans]
    cancelled = asyncio.create_task(one.explain(big(make_plan)))
    others = [asyncio.create_task(one.explain(plan)) for plan in plans]
    await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
    assert not cancelled.done()
    cancelled.cancel()

    assert await asyncio.gather(*others) == before
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert one.engine.stats().queued_points == 0
    # A worker takes what was sent before the cancellation in order, so behind this one nothing of it is left.
    await one.explain(plans[0])
    one.chunks.clear()
    again = await one.explain(plans[0])
    await until(lambda: gradient_points(one) >= again.evaluations)
    assert gradient_points(one) == again.evaluations


async def test_small_ones_finish_while_a_large_bulk_one_runs(one: EngineUnderTest, make_plan: MakePlan) -> None:
    large = asyncio.create_task(one.explain(big(make_plan), priority=Priority.BULK))
    small = [await one.explain(make_plan(number)) for number in range(20)]

    assert not large.done()
    assert all(explanation.converged for explanation in small)
    large.cancel()
    await asyncio.wait([large])


async def test_a_row_of_the_wrong_length_fails_alone(one: EngineUnderTest, make_plan: MakePlan) -> None:
    plans = [make_plan(number) for number in range(31)]
    before = [await one.explain(plan) for plan in plans]
    bad = replace(plans[0], input=plans[0].input[:-1])
    *good, failed = await asyncio.gather(*(one.explain(plan) for plan in [*plans, bad]), return_exceptions=True)

    assert good == before
    assert isinstance(failed, ComputationFailed)


async def test_over_the_limit_exactly_the_surplus_is_refused(one: EngineUnderTest, make_plan: MakePlan) -> None:
    capacity, surplus = 100, 37
    turns: list[Explanation | Overloaded] = []

    async def ask(number: int) -> None:
        try:
            turns.append(await one.explain(make_plan(number), LIMIT // capacity))
        except Overloaded as refused:
            turns.append(refused)

    await asyncio.gather(*(ask(number) for number in range(capacity + surplus)))

    refused = [turn for turn in turns if isinstance(turn, Overloaded)]
    assert len(refused) == surplus
    assert turns[:surplus] == refused, "the refusals did not come at once"
    assert all(int(error.headers["Retry-After"]) >= 1 for error in refused)
    assert one.engine.stats().queued_points == 0


async def test_more_than_the_whole_limit_is_taken_when_nothing_else_is_there(
    one: EngineUnderTest, make_plan: MakePlan
) -> None:
    assert (await one.explain(make_plan(0), 2 * LIMIT)).converged


async def test_a_version_that_is_not_loaded(one: EngineUnderTest, make_plan: MakePlan) -> None:
    with pytest.raises(ModelNotReady):
        await one.explain(make_plan(0), version=UNKNOWN)
    with pytest.raises(ModelNotReady):
        await one.engine.repeat(UNKNOWN, make_plan(0), 64, Conditions(SHAPES, None))
    with pytest.raises(ModelNotReady):
        await one.engine.predict(UNKNOWN, make_plan(0).input)
    with pytest.raises(CatalogError, match="not loaded"):
        await one.engine.attach(UNKNOWN, read_manifest(LOAN)[0].baselines[0], None)
    assert one.engine.stats().queued_points == 0


async def test_what_is_known_of_a_version(one: EngineUnderTest, device_model: DeviceModel, tmp_path: Path) -> None:
    folder = copy_of_loan(tmp_path, "2")
    loaded = await one.engine.load(ref_of(folder), source_of(folder), {}, CALIBRATION)

    assert (loaded.key.name, loaded.key.version, loaded.key.digest) == ("loan", "2", device_model.key.digest)
    assert (loaded.calibration, loaded.traits) == (CALIBRATION, device_model.traits)
    assert loaded.environment["dtype"] == "float32"
    assert loaded.parity == device_model.parity
    assert loaded.chunk_seconds > 0
    for digest, baseline in device_model.baselines.items():
        for space, values in loaded.baseline_outputs[digest].items():
            assert values[:-1].tobytes() == baseline.outputs[space].tobytes()
            assert values[-1].tobytes() == baseline.center_outputs[space].tobytes()
    one.engine.unload(ref_of(folder))


async def test_known_baseline_outputs_are_taken_as_they_are(one: EngineUnderTest, tmp_path: Path) -> None:
    first, second = (copy_of_loan(tmp_path, version) for version in ("2", "3"))
    loaded = await one.engine.load(ref_of(first), source_of(first), {}, CALIBRATION)
    known = {
        digest: {space: values + 1e-3 for space, values in spaces.items()}
        for digest, spaces in loaded.baseline_outputs.items()
    }
    again = await one.engine.load(ref_of(second), source_of(second), known, CALIBRATION)

    assert known.keys() == again.baseline_outputs.keys()
    for digest, spaces in known.items():
        for space, values in spaces.items():
            assert values.tobytes() == again.baseline_outputs[digest][space].tobytes()
    one.engine.unload(ref_of(first))
    one.engine.unload(ref_of(second))


async def test_a_version_without_shapes_is_calibrated(
    one: EngineUnderTest, make_plan: MakePlan, tmp_path: Path
) -> None:
    folder = copy_of_loan(tmp_path, "2")
    loaded = await one.engine.load(ref_of(folder), source_of(folder), {})
    explained = await one.explain(replace(make_plan(0), model=loaded.key), version=ref_of(folder))

    assert 1 <= loaded.calibration.whole.brief <= loaded.calibration.whole.long
    assert explained.chunk_rows == str(loaded.calibration.whole)
    one.engine.unload(ref_of(folder))


async def test_a_version_is_unloaded_as_often_as_it_was_loaded(
    one: EngineUnderTest, make_plan: MakePlan, tmp_path: Path
) -> None:
    folder = copy_of_loan(tmp_path, "2")
    ref = ref_of(folder)
    loaded = await one.engine.load(ref, source_of(folder), {}, CALIBRATION)
    assert await one.engine.load(ref, source_of(folder), {}, CALIBRATION) is loaded
    plan = replace(make_plan(0), model=loaded.key)

    one.engine.unload(ref)
    assert (await one.explain(plan, version=ref)).converged
    under_way = asyncio.create_task(one.explain(replace(make_plan(1), model=loaded.key), version=ref))
    await asyncio.sleep(0)
    one.engine.unload(ref)
    assert (await under_way).converged
    with pytest.raises(ModelNotReady):
        await one.explain(plan, version=ref)
    assert one.engine.stats().is_complete
    assert (await one.explain(make_plan(0))).converged

    assert (await one.engine.load(ref, source_of(folder), {}, CALIBRATION)).key == loaded.key
    assert (await one.explain(plan, version=ref)).converged
    one.engine.unload(ref)


async def test_files_of_another_digest_are_not_loaded(one: EngineUnderTest, tmp_path: Path) -> None:
    folder = copy_of_loan(tmp_path, "2")
    named = replace(ref_of(folder), digest=UNKNOWN.digest)
    with pytest.raises(CatalogError, match="digest differs"):
        await one.engine.load(named, source_of(folder), {}, CALIBRATION)
    with pytest.raises(ModelNotReady):
        await one.engine.predict(named, (0.0,) * 38)


@pytest.mark.parametrize("spoil", SPOILT)
async def test_a_bad_version_does_not_load_and_the_others_go_on(
    one: EngineUnderTest, make_plan: MakePlan, tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    folder = copy_of_loan(tmp_path)
    ref = ref_of(folder)
    spoil(folder)
    if (folder / "manifest.yaml").exists():
        ref = ref_of(folder)
    plan = make_plan(0)
    before = await one.explain(plan)

    with pytest.raises(CatalogError):
        await one.engine.load(ref, source_of(folder), {})

    assert await one.explain(plan) == before
    assert one.engine.stats().is_complete
    assert not one.restarts


async def test_a_set_that_is_attached_is_there_until_it_is_detached(
    one: EngineUnderTest, make_plan: MakePlan, alone: Alone, tmp_path: Path
) -> None:
    folder = copy_of_loan(tmp_path, "2")
    ref = ref_of(folder)
    loaded = await one.engine.load(ref, source_of(folder), {}, CALIBRATION)
    rows = load_file(LOAN / "heldout.safetensors")["rows"][:16]
    content = save({"rows": rows})
    (folder / "mine.safetensors").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    mine = BaselineSet(name="mine", version="1", size=16, file="mine.safetensors", sha256=sha256)
    choice = BaselineChoice("mine", "1", mine.digest, 16)
    plan = replace(make_plan(1, method="expected_gradients"), model=loaded.key, baseline=choice)
    other_shapes = Conditions(ChunkShapes(64, 256), None)

    async def explained() -> list[Any]:
        calls = [one.explain(plan, version=ref), one.engine.repeat(ref, plan, 64, other_shapes)]
        return await asyncio.gather(*calls, return_exceptions=True)

    outputs = await one.engine.attach(ref, mine, None)
    predictions = [await one.engine.predict(ref, tuple(row.tolist())) for row in rows.astype(float)]
    for space, values in outputs.items():
        assert values[:-1].tolist() == [list(prediction.outputs[space]) for prediction in predictions]
    first, repeated = await explained()
    assert (first.converged, repeated.converged) == (True, True)

    one.engine.detach(mine.digest)
    for refused in await explained():
        assert isinstance(refused, InvalidRequest)
        assert "mine@1" in str(refused)
    for listed in read_manifest(LOAN)[0].baselines:
        one.engine.detach(listed.digest)
    assert (await one.explain(make_plan(0))) == alone(make_plan(0))

    known = {space: values + 0.25 for space, values in outputs.items()}
    again = await one.engine.attach(ref, mine, known)
    assert {space: values.tolist() for space, values in again.items()} == {
        space: values.tolist() for space, values in known.items()
    }
    (moved, _) = await explained()
    assert moved.baseline_output == pytest.approx(first.baseline_output + 0.25)
    one.engine.unload(ref)


async def test_a_set_whose_file_is_another_is_not_attached(one: EngineUnderTest, tmp_path: Path) -> None:
    folder = copy_of_loan(tmp_path, "2")
    ref = ref_of(folder)
    await one.engine.load(ref, source_of(folder), {}, CALIBRATION)
    rows = save({"rows": load_file(LOAN / "heldout.safetensors")["rows"][:16]})
    (folder / "mine.safetensors").write_bytes(rows)
    mine = BaselineSet(name="mine", version="1", size=16, file="mine.safetensors", sha256="0" * 64)
    with pytest.raises(CatalogError, match="sha256"):
        await one.engine.attach(ref, mine, None)
    absent = BaselineSet(name="absent", version="1", size=16, file="absent.safetensors", sha256="0" * 64)
    with pytest.raises(CatalogError, match="cannot be read"):
        await one.engine.attach(ref, absent, None)
    one.engine.unload(ref)


async def test_the_state_of_the_engine(one: EngineUnderTest, make_plan: MakePlan, until: Until) -> None:
    stats = one.engine.stats()
    assert {"answerable", "python", "torch", "onnxruntime", "numpy", "device", "mkl_cbwr"} <= stats.environment.keys()
    assert (stats.is_complete, stats.ready_workers, stats.queued_points) == (True, 1, 0)
    await until(lambda: one.engine.stats().memory.keys() == {0} and one.engine.stats().memory[0] > 10**7)

    asking = asyncio.create_task(one.explain(make_plan(0), 64))
    await asyncio.sleep(0)
    assert one.engine.stats().queued_points == 64
    await asking
    assert one.engine.stats().queued_points == 0


async def test_closing_fails_what_is_in_flight_and_whatever_is_asked_from_then_on(
    one: EngineUnderTest, make_plan: MakePlan
) -> None:
    asking = asyncio.create_task(one.explain(big(make_plan)))
    await asyncio.sleep(0)
    one.engine.stop()
    with pytest.raises(WorkerLost):
        await asking
    await one.engine.close()
    await one.engine.close()

    with pytest.raises(WorkerLost):
        await one.explain(make_plan(0))
    with pytest.raises(WorkerLost):
        await one.engine.predict(LOAN_REF, make_plan(0).input)
    with pytest.raises(CatalogError):
        await one.engine.load(UNKNOWN, source_of(LOAN), {})
    with pytest.raises(CatalogError):
        await one.engine.attach(LOAN_REF, read_manifest(LOAN)[0].baselines[0], None)
    assert one.engine.stats().queued_points == 0
