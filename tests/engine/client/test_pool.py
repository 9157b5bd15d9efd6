"""The pool with a real worker process: sharing, cancelling, admission, deadlines, death and recovery, bad models."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
import pytest_asyncio
import torch
import yaml
from safetensors.numpy import load_file, save

from service.catalog.manifest import BaselineSet, read_manifest
from service.domain import (
    BaselineChoice,
    ChunkShapes,
    Conditions,
    Explanation,
    Noise,
    NoiseKind,
    OutputSpace,
    Plan,
    Priority,
)
from service.engine.client import pool as pool_module
from service.engine.client import worker_supervisor as crew
from service.engine.client.pool import Pool
from service.engine.client.worker_processes import StartedWorker, start_worker
from service.engine.worker.device import put_on_device
from service.errors import (
    CatalogError,
    ComputationFailed,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
    WorkerLost,
)
from tests.conftest import MODELS, PATIENCE_SECONDS
from tests.engine.conftest import start_pool

if TYPE_CHECKING:
    from tests.conftest import Until
    from tests.engine.conftest import MakePlan, PoolUnderTest

LOAN = MODELS / "loan" / "1"
SHAPES = ChunkShapes(128, 512)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def big(make_plan: MakePlan, number: int = 0) -> Plan:
    """Hundreds of thousands of points: seconds of work."""
    return make_plan(number, method="expected_gradients", tolerance=1e-9, max_evaluations=400_000)


async def test_64_concurrent_explanations_are_what_each_is_alone(
    shared: PoolUnderTest, various: Sequence[Plan]
) -> None:
    alone = [await shared.explain(plan) for plan in various]
    shared.chunks.clear()
    together = await asyncio.gather(*(shared.explain(plan) for plan in various))

    assert together == alone
    gradients = [chunk for chunk in shared.chunks if chunk.kernel == "gradient"]
    assert max(chunk.explanations for chunk in gradients) >= 8
    assert shared.pool.queued_points == 0


async def test_a_prediction_is_the_explained_output(shared: PoolUnderTest, make_plan: MakePlan) -> None:
    plan = make_plan(5)
    prediction = await shared.pool.predict(LOAN, plan.input, None)
    explained = await shared.explain(plan)

    assert prediction.outputs[OutputSpace.PROBABILITY] == explained.outputs


async def test_cancelling_one_of_four_leaves_three(shared: PoolUnderTest, make_plan: MakePlan, until: Until) -> None:
    plans = [make_plan(number, method="expected_gradients") for number in range(3)]
    alone = [await shared.explain(plan) for plan in plans]
    cancelled = asyncio.create_task(shared.explain(big(make_plan)))
    others = [asyncio.create_task(shared.explain(plan)) for plan in plans]
    await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
    assert not cancelled.done()
    cancelled.cancel()

    assert await asyncio.gather(*others) == alone
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert shared.pool.queued_points == 0
    # The worker takes what was sent before the cancellation in order, so behind this one nothing of it is left.
    await shared.explain(plans[0])
    shared.chunks.clear()
    again = await shared.explain(plans[0])
    await until(lambda: sum(c.units for c in shared.chunks if c.kernel == "gradient") >= again.evaluations)
    assert sum(chunk.units for chunk in shared.chunks if chunk.kernel == "gradient") == again.evaluations
    assert not shared.worker.tasks


async def test_small_ones_finish_while_a_large_bulk_one_runs(shared: PoolUnderTest, make_plan: MakePlan) -> None:
    large = asyncio.create_task(shared.explain(big(make_plan), priority=Priority.BULK))
    small = [await shared.explain(make_plan(number)) for number in range(20)]

    assert not large.done()
    assert all(explanation.converged for explanation in small)
    large.cancel()
    await asyncio.wait([large])


async def test_a_row_of_the_wrong_length_fails_alone(shared: PoolUnderTest, make_plan: MakePlan) -> None:
    plans = [make_plan(number) for number in range(31)]
    alone = [await shared.explain(plan) for plan in plans]
    bad = replace(plans[0], input=plans[0].input[:-1])
    *good, failed = await asyncio.gather(*(shared.explain(p) for p in [*plans, bad]), return_exceptions=True)

    assert good == alone
    assert isinstance(failed, ComputationFailed)


async def test_a_model_that_is_not_loaded(shared: PoolUnderTest, make_plan: MakePlan) -> None:
    with pytest.raises(WorkerLost):
        await shared.explain(make_plan(0), folder=LOAN.parent / "2")
    assert shared.pool.queued_points == 0


async def test_a_deadline_that_has_passed(shared: PoolUnderTest, make_plan: MakePlan) -> None:
    late, other = await asyncio.gather(
        shared.explain(make_plan(0), deadline=time.monotonic() - 1),
        shared.explain(make_plan(1)),
        return_exceptions=True,
    )
    assert isinstance(late, DeadlineExceeded)
    assert isinstance(other, Explanation)


async def test_a_deadline_that_passes_under_way(shared: PoolUnderTest, make_plan: MakePlan) -> None:
    started = time.monotonic()
    await shared.explain(make_plan(0, method="expected_gradients"))
    enough_for_a_round = 0.3 + 10 * (time.monotonic() - started)
    plan = make_plan(0, method="expected_gradients", tolerance=1e-12, max_evaluations=1_000_000)
    cut = await shared.explain(plan, deadline=time.monotonic() + enough_for_a_round)

    assert (cut.converged, cut.reason) == (False, "deadline")
    assert cut.attributions is not None


async def test_a_deadline_holds_while_no_worker_answers(
    shared: PoolUnderTest, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "DEADLINE_GRACE_SECONDS", 0.0)
    stopped = shared.worker.process.pid
    os.kill(stopped, signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExceeded):
            await shared.explain(make_plan(0), deadline=time.monotonic() + 0.05)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert shared.pool.queued_points == 0
    assert (await shared.explain(make_plan(0))).converged


async def test_over_the_limit_exactly_the_surplus_is_refused(
    shared: PoolUnderTest, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.pool, "_max_queued_points", 6400)
    capacity, surplus = 100, 37
    turns: list[Explanation | Overloaded] = []

    async def ask(number: int) -> None:
        try:
            turns.append(await shared.explain(make_plan(number), 64))
        except Overloaded as refused:
            turns.append(refused)

    await asyncio.gather(*(ask(number) for number in range(capacity + surplus)))

    refused = [turn for turn in turns if isinstance(turn, Overloaded)]
    assert len(refused) == surplus
    assert turns[:surplus] == refused, "the refusals did not come at once"
    assert all(int(error.headers["Retry-After"]) >= 1 for error in refused)
    assert shared.pool.queued_points == 0


async def test_a_request_over_the_whole_limit_is_taken_when_nothing_else_is_there(
    shared: PoolUnderTest, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.pool, "_max_queued_points", 10)
    assert (await shared.explain(make_plan(0), 64)).converged


async def test_a_killed_worker_is_replaced_and_everything_answered_but_what_was_cancelled_meanwhile(
    shared: PoolUnderTest, make_plan: MakePlan, until: Until
) -> None:
    plans = [make_plan(number, method="expected_gradients") for number in range(16)]
    plans.append(make_plan(16, method="expected_gradients", tolerance=1e-9, max_evaluations=100_000))  # takes longest
    alone = [await shared.explain(plan) for plan in plans]
    first = shared.worker.process
    under_way = [asyncio.create_task(shared.explain(plan)) for plan in plans]
    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    assert not all(task.done() for task in under_way)
    first.kill()
    await until(lambda: not shared.pool.is_complete)
    meanwhile = [asyncio.create_task(shared.explain(plan)) for plan in plans[:8]]
    cancelled = asyncio.create_task(shared.explain(make_plan(0), 10_000))
    await until(lambda: shared.pool.queued_points > 10_000)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert shared.pool.queued_points < 10_000

    assert await asyncio.gather(*under_way) == alone
    assert await asyncio.gather(*meanwhile) == alone[:8]
    await until(lambda: shared.pool.is_complete)
    assert shared.worker.process.pid != first.pid
    assert shared.restarts == ["died"]
    shared.restarts.clear()
    await until(lambda: first.returncode is not None)
    assert shared.pool.queued_points == 0
    assert not shared.worker.tasks


async def test_a_worker_that_hangs_is_replaced_and_its_work_run_again_but_not_a_third_time(
    shared: PoolUnderTest, make_plan: MakePlan, until: Until
) -> None:
    hanging = shared.worker.process
    os.kill(hanging.pid, signal.SIGSTOP)
    small, large = (asyncio.create_task(shared.explain(plan)) for plan in (make_plan(0), big(make_plan)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "SILENCE_SECONDS", 0.5)
        await until(lambda: hanging not in [worker.process for worker in shared.pool._workers.values()])
    assert (await small).converged
    assert shared.restarts == ["died"]

    second = shared.worker.process
    assert second.pid != hanging.pid
    assert not large.done()
    second.kill()
    with pytest.raises(WorkerLost):
        await large
    await until(lambda: shared.pool.is_complete)
    assert shared.restarts == ["died", "died"]
    shared.restarts.clear()
    assert (await shared.explain(make_plan(0))).converged
    assert shared.pool.queued_points == 0


async def test_a_front_that_was_stopped_does_not_take_its_own_silence_for_the_workers(
    shared: PoolUnderTest, make_plan: MakePlan, until: Until
) -> None:
    clock, worker = shared.pool._clock, shared.worker
    os.kill(worker.process.pid, signal.SIGSTOP)
    waiting = asyncio.create_task(shared.explain(make_plan(0)))
    await until(lambda: bool(worker.tasks))
    started = clock.now
    clock._clock = lambda: time.monotonic() + 3600  # for good: it never goes back
    await until(lambda: clock.now > started)
    assert clock.now <= started + 2 * crew.SILENCE_SECONDS / crew.TICKS
    os.kill(worker.process.pid, signal.SIGCONT)

    assert (await waiting).converged
    assert shared.worker is worker
    assert shared.restarts == []


async def test_a_worker_that_cannot_start_is_an_error_not_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    pool = Pool(2, 1000)
    with pytest.raises(WorkerLost, match="before it was ready"):
        await pool.start()
    await pool.close()


# --- models that must not load, and must not take the worker with them ------------------------------------------------


def resigned(folder: Path) -> None:
    """Makes the manifest's digest that of the artefact as it is now."""
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["artefact"]["sha256"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    path.write_text(yaml.safe_dump(manifest))


def wrong_digest(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.onnx").write_bytes(content)


def no_onnx(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"this is no model" * 100)
    resigned(folder)


def empty(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"")
    resigned(folder)


def truncated(folder: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[: len(content) // 2])
    resigned(folder)


def external_data(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    resigned(folder)


def other_input(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    (given,) = model.graph.input
    given.type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(model, folder / "model.onnx")
    resigned(folder)


def renamed_input(folder: Path) -> None:
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["inputs"]["tensor"] = "nothing_of_this_name"
    path.write_text(yaml.safe_dump(manifest))


def renamed_output(folder: Path) -> None:
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["outputs"]["tensors"]["probability"] = "nothing_of_this_name"
    path.write_text(yaml.safe_dump(manifest))


def swapped_outputs(folder: Path) -> None:
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    tensors = manifest["outputs"]["tensors"]
    tensors["logit"], tensors["probability"] = tensors["probability"], tensors["logit"]
    path.write_text(yaml.safe_dump(manifest))


def third_label(folder: Path) -> None:
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["outputs"]["labels"].append("undecided")
    path.write_text(yaml.safe_dump(manifest))


def integer_input(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    cast = onnx.helper.make_node("Cast", [model.graph.input[0].name], ["as_float"], to=onnx.TensorProto.FLOAT)
    for node in model.graph.node:
        node.input[:] = ["as_float" if name == model.graph.input[0].name else name for name in node.input]
    model.graph.node.insert(0, cast)
    onnx.save(model, folder / "model.onnx")
    resigned(folder)


def no_manifest(folder: Path) -> None:
    (folder / "manifest.yaml").unlink()


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        wrong_digest,
        no_onnx,
        empty,
        truncated,
        external_data,
        other_input,
        renamed_input,
        renamed_output,
        swapped_outputs,
        third_label,
        integer_input,
        no_manifest,
        no_folder,
    ],
)
async def test_a_bad_model_does_not_load_and_the_others_go_on(
    shared: PoolUnderTest, make_plan: MakePlan, tmp_path: Path, spoil: Any
) -> None:
    folder = tmp_path / "loan" / "1"
    shutil.copytree(LOAN, folder)
    spoil(folder)
    worker = shared.worker
    plan = make_plan(0)
    before = await shared.explain(plan)

    with pytest.raises(CatalogError):
        await shared.pool.load(folder, {})

    assert await shared.explain(plan) == before
    assert shared.worker is worker
    assert shared.pool.is_complete
    assert not shared.restarts


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """The folder of a second version, with the same network."""
    folder = tmp_path / "loan" / "2"
    shutil.copytree(LOAN, folder)
    path = folder / "manifest.yaml"
    path.write_text(path.read_text().replace('version: "1"', 'version: "2"', 1))
    return folder


async def test_a_version_whose_file_was_spoilt_does_not_keep_the_worker_from_coming_back(
    shared: PoolUnderTest, make_plan: MakePlan, second: Path, until: Until
) -> None:
    loaded = await shared.pool.load(second, {}, SHAPES)
    plan = make_plan(0)
    assert (await shared.explain(replace(plan, model=loaded.key), folder=second)).converged
    wrong_digest(second)
    first = shared.worker.process
    first.kill()
    await until(lambda: not shared.pool.is_complete)

    assert (await shared.explain(plan)).converged
    assert not shared.pool.is_complete
    with pytest.raises(WorkerLost):
        await shared.explain(replace(plan, model=loaded.key), folder=second)
    shared.pool.unload(second)
    assert shared.pool.is_complete
    assert shared.restarts == ["died"]
    shared.restarts.clear()


async def test_unloading_ends_a_version(shared: PoolUnderTest, make_plan: MakePlan) -> None:
    plan = make_plan(0)
    under_way = asyncio.create_task(shared.explain(make_plan(1, method="expected_gradients")))
    await asyncio.sleep(0)
    shared.pool.unload(LOAN)

    assert (await under_way).converged
    with pytest.raises((ModelNotReady, WorkerLost)):
        await shared.explain(plan)
    assert shared.pool.is_complete
    await shared.pool.load(LOAN, {})
    assert (await shared.explain(plan)).converged


async def test_known_baseline_outputs_are_taken_as_they_are(shared: PoolUnderTest) -> None:
    shared.pool.unload(LOAN)
    loaded = await shared.pool.load(LOAN, {})
    shared.pool.unload(LOAN)
    again = await shared.pool.load(LOAN, loaded.baseline_outputs)

    assert loaded.baseline_outputs.keys() == again.baseline_outputs.keys()
    for digest, spaces in loaded.baseline_outputs.items():
        for space, values in spaces.items():
            assert values.tobytes() == again.baseline_outputs[digest][space].tobytes()


async def test_a_version_is_loaded_beside_what_is_under_way(
    shared: PoolUnderTest, make_plan: MakePlan, second: Path
) -> None:
    before = shared.worker
    loading = asyncio.create_task(shared.pool.load(second, {}, SHAPES, beside=True))

    async def keep_busy() -> int:
        rounds = 0
        while not loading.done():
            await asyncio.gather(*(shared.explain(make_plan(n, method="expected_gradients")) for n in range(8)))
            rounds += 1
        return rounds

    assert await keep_busy() > 5  # a worker that loads answers nothing
    loaded = await loading
    assert shared.worker is not before
    assert (await shared.explain(replace(make_plan(0), model=loaded.key), folder=second)).converged
    assert (await shared.explain(make_plan(0))).converged
    assert await asyncio.to_thread(before.process.wait, PATIENCE_SECONDS) == 0
    assert shared.restarts == []
    assert shared.pool.is_complete
    shared.pool.unload(second)


async def test_a_worker_that_dies_while_another_is_loaded_beside_it(
    shared: PoolUnderTest, make_plan: MakePlan, second: Path, until: Until
) -> None:
    loading = asyncio.create_task(shared.pool.load(second, {}, SHAPES, beside=True))
    await until(lambda: bool(shared.pool._coming))
    shared.worker.process.kill()
    parked = asyncio.create_task(shared.explain(make_plan(0)))
    loaded = await loading

    assert (await parked).converged
    assert (await shared.explain(replace(make_plan(0), model=loaded.key), folder=second)).converged
    await until(lambda: shared.pool.is_complete)
    assert shared.worker.folders == {LOAN, second}
    assert shared.restarts == ["died"]
    shared.restarts.clear()
    shared.pool.unload(second)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[PoolUnderTest]:
    """A pool of two workers for the two tests that follow, the second of which closes it."""
    started = await start_pool(workers=2)
    yield started
    await started.pool.close()


async def test_two_manifests_of_one_artefact_are_two_versions_on_every_worker(
    pair: PoolUnderTest, make_plan: MakePlan, alone: Callable[..., Explanation], tmp_path: Path
) -> None:
    folder = tmp_path / "loan" / "1"
    shutil.copytree(LOAN, folder)
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    for feature in manifest["inputs"]["features"]:
        feature["range"] = [feature["range"][0], 10 * feature["range"][1]]  # on which noise depends
    rows = save({"rows": load_file(LOAN / "heldout.safetensors")["rows"][:16]})
    (folder / "baselines" / "other.safetensors").write_bytes(rows)
    other = {"name": "other", "version": "1", "size": 16, "file": "baselines/other.safetensors"}
    manifest["baselines"].append({**other, "sha256": hashlib.sha256(rows).hexdigest()})
    path.write_text(yaml.safe_dump(manifest))
    after = put_on_device(folder, torch.device("cpu"), {}, SHAPES)
    noisy = make_plan(0, noise=Noise(NoiseKind.SMOOTHGRAD, 4, 0.1), rule="midpoint")
    digest = "sha256:" + hashlib.sha256(rows).hexdigest()
    new_set = replace(make_plan(1), baseline=BaselineChoice("other", "1", digest, 16))
    await pair.pool.load(folder, {}, SHAPES, beside=True)

    assert alone(noisy).attributions != pytest.approx(alone(noisy, after).attributions, rel=1e-2)
    # By turns on both workers, each of which has loaded the old files after the new ones.
    found = await asyncio.gather(*(pair.explain(noisy, folder=folder if at % 4 < 2 else LOAN) for at in range(8)))
    for at, explanation in enumerate(found):
        expected = alone(noisy, after) if at % 4 < 2 else alone(noisy)
        assert explanation.attributions == pytest.approx(expected.attributions, rel=1e-6)
    sets = await asyncio.gather(*(pair.explain(new_set, folder=folder) for _ in range(4)))
    assert all(one.attributions == pytest.approx(alone(new_set, after).attributions, rel=1e-6) for one in sets)
    pair.pool.unload(folder)
    assert (await pair.explain(noisy)).attributions == pytest.approx(alone(noisy).attributions, rel=1e-6)


async def test_a_set_that_was_taken_is_on_no_worker_and_on_none_that_comes(
    pair: PoolUnderTest, make_plan: MakePlan, alone: Callable[..., Explanation], tmp_path: Path, until: Until
) -> None:
    rows = save({"rows": load_file(LOAN / "heldout.safetensors")["rows"][:16]})
    sha256 = hashlib.sha256(rows).hexdigest()
    (tmp_path / "set.safetensors").write_bytes(rows)
    listed = BaselineSet(name="mine", version="1", size=16, file="set.safetensors", sha256=sha256)
    plan = replace(make_plan(1), baseline=BaselineChoice("mine", "1", "sha256:" + sha256, 16))
    outputs = await pair.pool.attach(LOAN, tmp_path, listed, None)
    other_shapes = Conditions(ChunkShapes(64, 256), None)

    async def asked() -> list[Any]:
        calls = [pair.explain(plan) for _ in range(4)]
        calls.append(pair.pool.repeat(LOAN, plan, 64, other_shapes))
        return await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(one, Explanation) for one in await asked())
    pair.pool.detach("sha256:" + sha256)
    for found in await asked():
        assert isinstance(found, InvalidRequest)
        assert "mine@1" in str(found)
    worker = next(iter(pair.pool._workers.values()))
    os.kill(worker.process.pid, signal.SIGKILL)
    await until(lambda: worker not in pair.pool._workers.values())
    await until(lambda: pair.pool.is_complete)
    assert all(isinstance(one, InvalidRequest) for one in await asked())

    for baseline in read_manifest(LOAN)[0].baselines:  # the manifest's are not given, and not taken
        pair.pool.detach("sha256:" + baseline.sha256)
    assert (await pair.explain(make_plan(0))).attributions == alone(make_plan(0)).attributions
    await pair.pool.attach(LOAN, tmp_path, listed, outputs)
    assert all(isinstance(one, Explanation) for one in await asked())
    pair.pool.detach("sha256:" + sha256)


async def test_closing_fails_what_is_in_flight_and_leaves_no_process_that_was_to_come(
    pair: PoolUnderTest, make_plan: MakePlan, until: Until
) -> None:
    spawned: list[subprocess.Popen[bytes]] = []
    start = start_worker

    def remember(index: int) -> StartedWorker:
        started = start(index)
        spawned.append(started.process)
        return started

    large = asyncio.create_task(pair.explain(big(make_plan)))
    workers = pair.pool._workers.values()
    await until(lambda: any(worker.tasks for worker in workers))
    (busy,) = (worker.process for worker in workers if worker.tasks)
    (idle,) = (worker.process for worker in workers if not worker.tasks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "start_worker", remember)
        idle.kill()
        await until(lambda: bool(spawned))
        await pair.pool.close()

    with pytest.raises(WorkerLost):
        await large
    with pytest.raises(WorkerLost):
        await pair.explain(make_plan(0))
    assert busy.returncode == 0
    assert [process.returncode is not None for process in spawned] == [True]


async def test_a_version_that_cannot_be_loaded_beside_changes_nothing(
    shared: PoolUnderTest, make_plan: MakePlan, tmp_path: Path
) -> None:
    folder = tmp_path / "loan" / "1"
    shutil.copytree(LOAN, folder)
    wrong_digest(folder)
    worker = shared.worker
    with pytest.raises(CatalogError, match="sha256"):
        await shared.pool.load(folder, {}, beside=True)

    assert shared.worker is worker
    assert shared.pool.is_complete
    assert (await shared.explain(make_plan(0))).converged
