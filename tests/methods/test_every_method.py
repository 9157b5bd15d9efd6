"""What holds for all methods, on every kind of model that each applies to, through the real kernels and scheduler."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
import torch

from service.answers.encoding import encode
from service.answers.explanation import answered
from service.catalog.calibrations import Calibration
from service.catalog.inputs.instances import read_instance
from service.catalog.manifest import read_manifest
from service.catalog.outputs.classes import Classes
from service.catalog.versions import ModelVersion
from service.domain import ChunkShapes, Completeness, Plan, Priority
from service.engine.messages import Done, Outcome
from service.engine.protocol import ChunkReport
from service.engine.worker.device import DeviceModel, put_on_device
from service.engine.worker.explanation import explain
from service.engine.worker.packing import Live
from service.engine.worker.scheduler import Scheduler
from service.errors import InvalidRequest
from service.methods.registry import BY_NAME, METHODS
from service.methods.spec import Choice, Facts, Number
from service.usecases.planning import Parameters, make_plan
from tests.conftest import MODELS

if TYPE_CHECKING:
    from tests.methods.conftest import Run

KINDS = ("loan", "digits", "words")
NAMES = [entry.name for entry in METHODS]
BRIEF = {"guided_ig": {"steps": 20}}
"""Options where a test is not about how close an answer comes."""


class Served:
    """A model on a device, as the front knows it, and instances for it."""

    def __init__(self, folder: Path, model: DeviceModel) -> None:
        self.model = model
        manifest, key, digest = read_manifest(folder)
        self.version = ModelVersion(key, manifest, folder, digest, environment={}, traits=model.traits)
        example = read_instance(manifest, manifest.example)
        low, high = (8, manifest.inputs.vocabulary) if manifest.inputs.kind == "tokens" else (0, 0)
        generator = np.random.default_rng(1)
        self.rows = [example]
        for _ in range(7):
            if manifest.inputs.kind == "tokens":
                row = tuple(t if t < 4 else float(generator.integers(low, high)) for t in example)
            else:
                least, most = (np.array(limit) for limit in manifest.inputs.bounds)
                mixed = np.array(example) + 0.02 * (most - least) * generator.standard_normal(len(example))
                row = tuple(np.clip(mixed, least, most).tolist())
            self.rows.append(row)

    def plan(self, method: str, number: int = 0, **parameters: Any) -> Plan:
        return make_plan(self.version, self.rows[number], Parameters(method=method, **parameters))


@pytest.fixture(scope="module")
def served(model: DeviceModel, token_model: DeviceModel, token_folder: Path) -> dict[str, Served]:
    shapes = ChunkShapes(32, 128)
    digits = put_on_device(MODELS / "digits" / "1", torch.device("cpu"), {}, Calibration(shapes))
    return {
        "loan": Served(MODELS / "loan" / "1", model),
        "digits": Served(MODELS / "digits" / "1", digits),
        "words": Served(token_folder, token_model),
    }


def applicable(served: Served, name: str) -> bool:
    entry = BY_NAME[name]
    return entry.not_applicable(Facts(served.model.traits, 1, entry.defaults())) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_method_answers_or_says_why_not(served: dict[str, Served], run: Run, name: str, kind: str) -> None:
    one = served[kind]
    if not applicable(one, name):
        with pytest.raises(InvalidRequest, match=r"use |ask for|needs"):
            one.plan(name)
        return
    plan = one.plan(name, max_evaluations=8192)
    (explanation,) = run(one.model, [plan])
    assert explanation.attributions is not None
    assert np.isfinite(explanation.attributions).all()
    assert np.any(explanation.attributions)
    assert len(explanation.attributions) == np.prod(explanation.shape)
    assert 0 < explanation.evaluations <= plan.max_evaluations
    assert explanation.completeness in BY_NAME[name].completeness
    assert (explanation.completeness_error is None) == (explanation.completeness is Completeness.NONE)
    if explanation.converged and explanation.completeness_error is not None:
        assert explanation.completeness_error <= plan.tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_alone_and_amid_traffic_every_bit_is_the_same(served: dict[str, Served], run: Run, kind: str) -> None:
    one = served[kind]
    plans = [
        one.plan(name, number, options=BRIEF.get(name, {}), output_space=space, target=number % 2, tolerance=0.05)
        for name in NAMES
        if applicable(one, name)
        for number, space in enumerate(Classes.spaces)
    ]
    together = run(one.model, plans)
    assert together == [run(one.model, [plan])[0] for plan in plans]


@pytest.mark.parametrize("kind", KINDS)
def test_noise_works_around_every_method(served: dict[str, Served], run: Run, kind: str) -> None:
    one = served[kind]
    names = [name for name in NAMES if applicable(one, name)]
    for noise in ("smoothgrad", "vargrad"):
        asked = {"kind": noise, "samples": 2, "scale": 0.05}
        plans = [
            one.plan(name, options=BRIEF.get(name, {}), noise=asked, max_evaluations=16384, tolerance=0.05)
            for name in names
        ]
        for name, explanation in zip(names, run(one.model, plans), strict=True):
            assert explanation.attributions is not None, name
            assert np.isfinite(explanation.attributions).all(), name
            assert explanation.noisy_output is not None
            is_complete = noise == "smoothgrad" and explanation.completeness is not Completeness.NONE
            assert (explanation.completeness_error is not None) == is_complete


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_cost_is_known_before_the_start(served: dict[str, Served], run: Run, name: str, kind: str) -> None:
    one = served[kind]
    if not applicable(one, name):
        return
    entry = BY_NAME[name]
    size = one.plan(name, max_evaluations=65_536).baseline.size
    least = entry.least_points(Facts(one.model.traits, size, entry.defaults()))
    if least > 1:
        with pytest.raises(InvalidRequest, match=f"needs at least {least} evaluations"):
            one.plan(name, max_evaluations=least - 1)
    (explanation,) = run(one.model, [one.plan(name, max_evaluations=least)])
    assert explanation.attributions is not None
    assert explanation.evaluations <= least


@pytest.mark.parametrize("name", NAMES)
def test_options_have_bounds_that_are_kept(served: dict[str, Served], run: Run, name: str) -> None:
    one = next(each for each in served.values() if applicable(each, name))
    entry = BY_NAME[name]
    for option in entry.options:
        match option:
            case Choice():
                wrong: list[object] = ["nonsense", 1, None]
                right: list[object] = list(option.choices)
            case Number():
                wrong = [option.low - 1, option.high + 1, "1", True, float("nan")] + ([1.5] if option.is_whole else [])
                right = [option.low, option.high]
            case _:
                wrong, right = ["all", [["nonsense"]], [[]], [[-1]], 1], [[[0, 1]]]
        for value in wrong:
            with pytest.raises(InvalidRequest, match=option.name):
                one.plan(name, options={option.name: value})
        for value in right:
            refusal = refused(one, name, {option.name: value})
            assert refusal is None or "evaluations" in refusal or "use " in refusal
            if isinstance(option, Choice) and refusal is None:
                plan = one.plan(name, options={option.name: value}, max_evaluations=65_536)
                assert run(one.model, [plan])[0].attributions is not None


def refused(served: Served, name: str, options: dict[str, object]) -> str | None:
    """Why a plan with these options is refused; None where it is not."""
    try:
        served.plan(name, options=options, max_evaluations=65_536)
    except InvalidRequest as error:
        return str(error)
    return None


def chunks_of(model: DeviceModel, plans: Sequence[Plan]) -> list[ChunkReport]:
    """The chunks in which plans are explained that are all under way at once."""
    scheduler = Scheduler()
    for task, plan in enumerate(plans):
        steps = explain(plan, model)
        live = Live(task, steps, model.kernels, str(model.key), Priority.INTERACTIVE, None, time.monotonic())
        scheduler.add(live)
    ended: list[Outcome] = []
    while scheduler:
        scheduler.step()
        ended += scheduler.outcomes()
    assert all(isinstance(outcome, Done) for outcome in ended)
    assert len(ended) == len(plans)
    return scheduler.reports


@pytest.mark.parametrize("name", ["guided_ig", "agi", "boundary_ig"])
def test_sequential_methods_of_many_requests_advance_together(served: dict[str, Served], name: str) -> None:
    one, requests = served["loan"], 32
    plans = [one.plan(name, task % len(one.rows), seed=task, options=BRIEF.get(name, {})) for task in range(requests)]
    chunks = [chunk for chunk in chunks_of(one.model, plans) if chunk.kernel == "gradient"]
    points = sum(chunk.slots for chunk in chunks)
    assert points / len(chunks) >= requests / 2


@pytest.mark.parametrize(
    ("kernel", "names"),
    [
        ("gradient", ("saliency", "integrated_gradients", "guided_ig", "neflag", "decision_ig")),
        ("rule", ("deconvnet", "guided_backprop", "rectgrad")),
        ("feature_maps", ("grad_cam", "grad_cam_pp", "smooth_grad_cam_pp")),
    ],
)
def test_points_of_different_methods_share_a_chunk(
    served: dict[str, Served], kernel: str, names: Sequence[str]
) -> None:
    one = served["digits"]
    options = {"integrated_gradients": {"rule": "midpoint"}}
    plans = [one.plan(name, options=options.get(name, {})) for name in names]
    first = next(chunk for chunk in chunks_of(one.model, plans) if chunk.kernel == kernel)
    assert first.explanations == len(names)


def test_tokens_are_answered_one_by_one_and_padding_and_special_tokens_get_nothing(
    served: dict[str, Served], run: Run
) -> None:
    one = served["words"]
    for name in ("integrated_gradients", "sequential_ig"):
        plan = one.plan(name)
        (explanation,) = run(one.model, [plan])
        body = orjson.loads(encode(answered(one.version, plan, explanation, id="1", cached=False)))
        shown = body["attributions"]
        assert [item["token"] for item in shown] == [2, 7, 9, 12, 3, 0]
        assert [item["attribution"] for item in shown] == list(explanation.attributions or ())
        assert [item["attribution"] != 0 for item in shown] == [False, True, True, True, False, False]
        assert body["baseline"]["name"] == "mask"
