"""Outputs that jump where no node looks: the answer finds the jump, or says that it did not converge.

r(t) is clip(400 t, 0, 1): a ramp on a 400th of the way, flat before and behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.domain import Explanation, Floats

if TYPE_CHECKING:
    from tests.methods.conftest import ModelOf, PlanFor, Run


class OneJump(nn.Module):
    """r(a - 0.37) + 0.001 b."""

    def forward(self, rows: Tensor) -> Tensor:
        score = torch.clamp(400 * (rows[:, :1] - 0.37), 0, 1) + 0.001 * rows[:, 1:2]
        return torch.cat([-score, score], dim=1)


class UpAndDown(nn.Module):
    """r(a - 0.37) - r(b - 0.81) + 0.001 c; `slope` and `up` are other numbers for 400 and 0.37."""

    def __init__(self, slope: float = 400, up: float = 0.37) -> None:
        super().__init__()
        self._slope = slope
        self._up = up

    def forward(self, rows: Tensor) -> Tensor:
        up, down = (torch.clamp(self._slope * (rows[:, k : k + 1] - at), 0, 1) for k, at in ((0, self._up), (1, 0.81)))
        score = up - down + 0.001 * rows[:, 2:]
        return torch.cat([-score, score], dim=1)


JUMPS: list[tuple[type[nn.Module], Floats]] = [
    (OneJump, np.array([1.0, 0.001])),
    (UpAndDown, np.array([1.0, -1.0, 0.001])),
]


@pytest.fixture
def explained(model_of: ModelOf, plan_for: PlanFor, run: Run) -> Any:
    def make(network: nn.Module, baselines: Floats, method: str, options: Any = None, **fields: Any) -> Explanation:
        model = model_of(network, baselines)
        plan = plan_for(model, np.ones(baselines.shape[1]), method, options, **{"max_evaluations": 8192, **fields})
        (result,) = run(model, [plan])
        return result

    return make


def off(result: Explanation, truth: Floats) -> float:
    """The true relative error."""
    assert result.attributions is not None
    return float(np.abs(result.attributions - truth).sum() / np.abs(result.attributions).sum())


@pytest.mark.parametrize(("network", "truth"), JUMPS)
@pytest.mark.parametrize("method", ["integrated_gradients", "expected_gradients", "guided_ig", "idgi"])
def test_no_answer_has_converged_that_is_wrong(explained: Any, network: Any, truth: Floats, method: str) -> None:
    result = explained(network(), np.zeros((1, len(truth))), method)
    assert off(result, truth) <= result.attribution_error
    assert result.reason in (None, "steps", "budget")
    assert result.converged == (result.attribution_error <= 0.01)


@pytest.mark.parametrize(("network", "truth"), JUMPS)
@pytest.mark.parametrize("rule", ["auto", "exact", "midpoint"])
def test_what_refines_finds_the_jump(explained: Any, network: Any, truth: Floats, rule: str) -> None:
    result = explained(network(), np.zeros((1, len(truth))), "integrated_gradients", {"rule": rule})
    assert result.converged
    assert off(result, truth) <= result.attribution_error
    np.testing.assert_allclose(result.attributions, truth, atol=0.01)


@pytest.mark.parametrize("budget", [16, 40, 64, 32768])
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("rows", [1, 16])
def test_paths_do_not_hide_it_from_each_other(explained: Any, rows: int, spread: float, budget: int) -> None:
    baselines = spread * np.random.default_rng(0).uniform(size=(rows, 3))
    truth = np.array([1.0, -1.0, 0.001 * (1 - baselines[:, 2].mean())])
    result = explained(UpAndDown(40, 0.32), baselines, "expected_gradients", tolerance=0.05, max_evaluations=budget)
    assert (result.converged, result.reason) == ((True, None) if budget == 32768 else (False, "budget"))
    if result.converged:
        assert off(result, truth) <= result.attribution_error
    else:
        assert result.attribution_error > 0.25


def test_short_steps_of_idgi_converge(explained: Any) -> None:
    result = explained(OneJump(), np.zeros((1, 2)), "idgi", {"steps": 4000}, tolerance=0.1)  # which end at the bends
    assert result.converged
    assert off(result, np.array([1.0, 0.001])) <= result.attribution_error
