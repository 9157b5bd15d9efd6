"""What a tolerance is of: effects that cancel are known well although their sum is small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from service.domain import Explanation, ToleranceOf

if TYPE_CHECKING:
    from tests.methods.conftest import ModelOf, PlanFor, Run

TRUTH = np.array([1.0, 2.0, -3.0])


class Cancelling(nn.Module):
    """Three labels; the second's logit is a^2 + 2 b^4 - 3 c^6, which is 0 at zeros and at ones."""

    def forward(self, rows: Tensor) -> Tensor:
        score = rows[:, :1] ** 2 + 2 * rows[:, 1:2] ** 4 - 3 * rows[:, 2:] ** 6
        return torch.cat([torch.zeros_like(score), score, -torch.ones_like(score)], dim=1)


def test_effects_that_cancel_converge_unless_the_sum_is_asked_for(
    model_of: ModelOf, plan_for: PlanFor, run: Run
) -> None:
    model = model_of(Cancelling(), np.zeros((1, 3)))

    def explained(of: ToleranceOf, budget: int) -> Explanation:
        plan = plan_for(model, np.ones(3), "integrated_gradients", tolerance_of=of, floor=0.01, max_evaluations=budget)
        (result,) = run(model, [plan])
        return result

    result = explained(ToleranceOf.ATTRIBUTION, 4096)
    error = np.abs(np.array(result.attributions) - TRUTH).sum() / np.abs(TRUTH).sum()
    assert (result.converged, result.reason) == (True, None)
    assert error <= (result.attribution_error or 0.0) <= 0.01
    strict = explained(ToleranceOf.COMPLETENESS, result.evaluations)
    assert (strict.converged, strict.reason) == (False, "budget"), "the same points miss too much of the change, 0"
    enough = explained(ToleranceOf.COMPLETENESS, 4096)
    assert enough.converged
    assert (enough.completeness_error or 0.0) <= 0.01
    assert enough.evaluations > result.evaluations
