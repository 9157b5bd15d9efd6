"""Deconvnet, Guided Backprop and RectGrad on the real kernels: Captum, closed forms, and what they promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.catalog.outputs.classes import Classes
from service.domain import Completeness, Explanation, Floats, OptionValue, OutputSpace
from service.engine.worker.device import DeviceModel
from service.methods.deconvnet import DECONVNET
from service.methods.guided_backprop import GUIDED_BACKPROP
from service.methods.questions import DeadlinePassed
from service.methods.rectgrad import RECTGRAD
from service.methods.spec import Facts, MethodSpec

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, ModelOf, PlanFor, Pose, Run

ENTRIES = [DECONVNET, GUIDED_BACKPROP, RECTGRAD]
IMAGE, TABLE = (3, 10, 10), (6,)


def mlp() -> nn.Sequential:
    torch.manual_seed(1)
    layers = (nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 4))
    return nn.Sequential(*layers).eval()


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    lower = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU())
    upper = (nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 4))
    return nn.Sequential(*lower, *upper).eval()


@pytest.fixture(scope="module")
def models(model_of: ModelOf) -> dict[str, DeviceModel]:
    return {"mlp": model_of(mlp(), np.zeros((1, *TABLE))), "cnn": model_of(cnn(), np.zeros((1, *IMAGE)))}


def drawn(shape: tuple[int, ...], seed: int = 0) -> Floats:
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32).astype(np.float64)


def values_of(explanation: Explanation) -> Floats:
    assert explanation.attributions is not None
    return np.array(explanation.attributions)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
@pytest.mark.parametrize("space", Classes.spaces)
@pytest.mark.parametrize(("name", "network", "shape"), [("mlp", mlp, TABLE), ("cnn", cnn, IMAGE)])
@pytest.mark.parametrize("method", ["deconvnet", "guided_backprop"])
def test_they_agree_with_captum(
    models: dict[str, DeviceModel],
    plan_for: PlanFor,
    run: Run,
    method: str,
    name: str,
    network: Callable[[], nn.Module],
    shape: tuple[int, ...],
    space: OutputSpace,
) -> None:
    from captum.attr import Deconvolution, GuidedBackprop

    theirs_of = {"deconvnet": Deconvolution, "guided_backprop": GuidedBackprop}[method]
    whole = network() if space is OutputSpace.LOGIT else nn.Sequential(network(), nn.Softmax(dim=1))
    plans = [plan_for(models[name], drawn(shape, k), method, target=k % 4, output_space=space) for k in range(8)]
    for k, explanation in enumerate(run(models[name], plans)):
        rows = torch.from_numpy(drawn(shape, k)).float()[None].requires_grad_()
        theirs = theirs_of(whole).attribute(rows, target=k % 4)[0].detach().numpy().ravel()
        assert theirs.any()
        np.testing.assert_allclose(values_of(explanation), theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())


def test_deconvnet_sees_the_input_through_the_switches_alone(
    models: dict[str, DeviceModel], plan_for: PlanFor, run: Run
) -> None:
    rows = [drawn(TABLE, k) for k in range(2)]
    first, second = run(models["mlp"], [plan_for(models["mlp"], row, "deconvnet") for row in rows])
    np.testing.assert_allclose(values_of(first), values_of(second), rtol=1e-5)
    images = [drawn(IMAGE, k) for k in range(2)]
    first, second = run(models["cnn"], [plan_for(models["cnn"], image, "deconvnet") for image in images])
    assert np.abs(values_of(first) - values_of(second)).max() > 0.1 * np.abs(values_of(first)).max()


def by_hand(first: list[list[float]], last: list[float]) -> nn.Sequential:
    """Units that add up the inputs, and a logit that adds up the units; the other logit is zero."""
    network = nn.Sequential(nn.Linear(2, len(first), False), nn.ReLU(), nn.Linear(len(first), 2, False))
    network.load_state_dict({"0.weight": Tensor(first), "2.weight": Tensor([[0.0] * len(last), last])})
    return network


TWO = [[1.0, 2.0], [3.0, -1.0]]
"""At (1, 1) the units are 3 and 2."""


@pytest.mark.parametrize(
    ("first", "last", "percentile", "expected"),
    [
        (TWO, [1.0, 4.0], 50, [12, -4]),  # A R = (3, 8), tau 5.5: the second passes its 4
        (TWO, [1.0, 4.0], 0, [12, -4]),  # tau is the least: it is cut off itself
        (TWO, [1.0, 4.0], 100, [0, 0]),  # tau is the largest
        (TWO, [4.0, 1.0], 50, [4, 8]),  # A R = (12, 2), tau 7: the first passes its 4
        (TWO, [-1.0, -4.0], 50, [-1, -2]),  # A R = (-3, -8): against the label; the lesser evil passes
        ([*TWO, [-1.0, -1.0]], [1.0, 4.0, 5.0], 0, [13, -2]),  # the least is an inactive unit: all else passes
        ([*TWO, [-1.0, -1.0]], [1.0, 4.0, 5.0], 50, [12, -4]),  # A R = (3, 8, 0), tau 3
    ],
)
def test_rectgrad_of_few_units_by_hand(
    model_of: ModelOf,
    plan_for: PlanFor,
    run: Run,
    first: list[list[float]],
    last: list[float],
    percentile: float,
    expected: list[float],
) -> None:
    model = model_of(by_hand(first, last), np.zeros((1, 2)))
    plan = plan_for(model, np.ones(2), "rectgrad", {"percentile": float(percentile)})
    twice = replace(plan, input=(2.0, 2.0))  # the gradient of a ReLU without biases stays, the input doubles
    one, two = run(model, [plan, twice])
    assert values_of(one).tolist() == expected
    assert values_of(two).tolist() == [2 * value for value in expected]


def test_where_nothing_is_below_zero_rectgrad_at_percentile_zero_is_input_x_gradient(
    model_of: ModelOf, plan_for: PlanFor, run: Run
) -> None:
    torch.manual_seed(0)
    hidden, last = nn.Linear(6, 20), nn.Linear(20, 4)
    last.weight.data.abs_()  # no unit speaks against a label
    model = model_of(nn.Sequential(hidden, nn.ReLU(), last), np.zeros((1, *TABLE)))
    for k in range(5):
        x = drawn(TABLE, k) - 0.5
        assert (hidden(torch.from_numpy(x).float()) < 0).any()
        plans = [plan_for(model, x, "rectgrad", {"percentile": 0.0}), plan_for(model, x, "input_x_gradient")]
        rectified, plain = run(model, plans)
        np.testing.assert_allclose(values_of(rectified), values_of(plain), rtol=1e-5, atol=1e-7)


def test_the_larger_the_percentile_the_less_of_the_input_rectgrad_keeps(
    models: dict[str, DeviceModel], plan_for: PlanFor, run: Run
) -> None:
    model, x = models["cnn"], drawn(IMAGE)
    chosen: list[dict[str, OptionValue]] = [{"percentile": q} for q in (0.0, 50.0, 98.0, 100.0)]
    kept = [np.count_nonzero(values_of(e)) for e in run(model, [plan_for(model, x, "rectgrad", o) for o in chosen])]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[2] > kept[3] == 0


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_they_take_one_gradient_and_promise_no_sum(
    models: dict[str, DeviceModel], plan_for: PlanFor, run: Run, entry: MethodSpec
) -> None:
    model = models["cnn"]
    (result,) = run(model, [plan_for(model, drawn(IMAGE), entry.name, max_evaluations=1)])
    assert (result.evaluations, result.converged, result.shape) == (1, True, IMAGE)
    assert (result.completeness, result.completeness_error) == (Completeness.NONE, None)
    assert result.attribution_error is None


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_deadline_before_the_answer_passes_through(pose: Pose, drive: Drive, entry: MethodSpec) -> None:
    network = mlp().double()
    problem = pose(network, drawn(TABLE), np.zeros((1, *TABLE)), options=entry.defaults())
    with pytest.raises(DeadlinePassed):
        drive(entry.attribute(problem), network, answers=0)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_without_a_relu_they_do_not_apply(models: dict[str, DeviceModel], entry: MethodSpec) -> None:
    traits = models["mlp"].traits
    assert entry.not_applicable(Facts(traits, 1, entry.defaults())) is None
    reason = entry.not_applicable(Facts(replace(traits, has_relu=False), 1, entry.defaults()))
    assert reason is not None
    assert reason.startswith(f"{entry.name} replaces the gradient of every ReLU")
    assert "integrated_gradients" in reason
