"""What Deconvnet, Guided Backprop and RectGrad share: one backward pass with another rule at every ReLU."""

from __future__ import annotations

from collections.abc import Callable

from service.domain import Floats
from service.methods.problem import Problem
from service.methods.questions import BackwardRule, BackwardRuleRows, Steps, evaluated
from service.methods.spec import Facts


def passed_back(problem: Problem, rule: BackwardRule, percentile: float = 0.0) -> Steps[Floats]:
    """What arrives at the input, [inputs], when `rule` stands at every ReLU in the place of its gradient."""
    question = BackwardRuleRows(problem.input[None], problem.readout, problem.target, rule, percentile)
    here = yield from evaluated(question)
    arriving: Floats = here.contributions[0]
    return arriving


def needs_relu(method: str) -> Callable[[Facts], str | None]:
    """The `not_applicable` of a method that is the plain gradient where there is no ReLU."""

    def not_applicable(facts: Facts) -> str | None:
        if facts.traits.has_relu:
            return None
        return f"{method} replaces the gradient of every ReLU, and this network has none; use integrated_gradients"

    return not_applicable
