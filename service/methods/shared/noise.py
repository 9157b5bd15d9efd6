"""Noise around any method: the mean or the variance of the attributions of noisy copies of the input.

Smilkov, Thorat, Kim, Viegas and Wattenberg, "SmoothGrad: removing noise by adding noise", 2017, and Adebayo, Gilmer,
Goodfellow and Kim, "Local explanation methods for deep neural networks lack sensitivity to parameter values", 2018
(VarGrad). The noise is Gaussian and independent, of a deviation that is a share of each input's range; copies may leave
the range. Means, and variances (divided by the number of copies), are gathered as the copies come (Welford, "Note on a
method for calculating corrected sums of squares and products", Technometrics 1962): E[x^2] - E[x]^2 cancels, and no
copy's attributions need be kept. Each copy gets an equal share of the budget, and a seed of its own for what the method
draws.

A mean sums to the mean of the copies' changes in the sense of the least strict copy, and the mean of their errors
bounds its own. A variance promises no sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from service.domain import Completeness, Floats, Noise, NoiseKind
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import DeadlinePassed, Steps, outputs_at

COPIES_AT_ONCE = 32
"""So many copies are drawn, and their outputs asked for, together."""
STRICTEST_FIRST = [Completeness.EXACT, Completeness.BY_CONSTRUCTION, Completeness.ASYMPTOTIC, Completeness.NONE]


def noisy(attribute: Callable[[Problem], Method], problem: Problem, noise: Noise) -> Method:
    """One explanation of every copy, and their mean or their variance.

    After a deadline it speaks of the copies done until then; where one is too few, of a variance, the deadline passes
    through.
    """
    gathered = _Gathered(noise.kind, problem)
    try:
        yield from _gather(attribute, problem, noise, gathered)
    except DeadlinePassed:
        gathered.stopped = "deadline"
        if gathered.count < (2 if noise.kind is NoiseKind.VARGRAD else 1):
            raise
    return gathered.attribution()


def _gather(attribute: Callable[[Problem], Method], problem: Problem, noise: Noise, gathered: _Gathered) -> Steps[None]:
    """Solves copy by copy. Raises DeadlinePassed, also after a copy that was left unfinished for it."""
    generator = np.random.default_rng(problem.seed)
    seeds = generator.integers(2**63, size=noise.samples).tolist()
    budget = problem.max_evaluations // noise.samples
    deviation = noise.scale * (problem.high - problem.low)
    for start in range(0, noise.samples, COPIES_AT_ONCE):
        now = seeds[start : start + COPIES_AT_ONCE]
        copies = problem.input + deviation * generator.standard_normal((len(now), problem.input.size))
        outputs = yield from outputs_at(copies)
        for copy, seed, output in zip(copies, now, problem.read(outputs).tolist(), strict=True):
            noisy_problem = replace(problem, input=copy, output=output, seed=seed, max_evaluations=budget)
            attribution = yield from attribute(noisy_problem)
            gathered.add(attribution, output)
            if attribution.stopped == "deadline":
                raise DeadlinePassed


@dataclass(slots=True)
class _Running:
    """Mean, and sum of squared differences from it, of arrays that come one by one."""

    count: int = 0
    mean: Floats = field(default_factory=lambda: np.zeros(()))
    squares: Floats = field(default_factory=lambda: np.zeros(()))

    def add(self, values: Floats) -> None:
        self.count += 1
        difference = values - self.mean
        self.mean = self.mean + difference / self.count
        self.squares = self.squares + difference * (values - self.mean)


class _Gathered:
    """What is kept of the copies' attributions; `stopped` is the first reason of one that was not finished."""

    def __init__(self, kind: NoiseKind, problem: Problem) -> None:
        self._kind = kind
        self._problem = problem
        self._values, self._interactions, self._groups, self._scalars = (_Running() for _ in range(4))
        self._evaluations = 0
        self._completeness = STRICTEST_FIRST[0]
        self._rules: dict[str, None] = {}
        self._last: Attribution | None = None
        self.stopped: str | None = None

    @property
    def count(self) -> int:
        """The number of copies."""
        return self._values.count

    def add(self, attribution: Attribution, output: float) -> None:
        """Takes the attribution of a copy with that output."""
        self._last = attribution
        self._values.add(self._by_component(attribution.values))
        if attribution.interactions is not None:
            self._interactions.add(attribution.interactions)
        self._groups.add(np.array([[group.dividend, group.value] for group in attribution.groups]))
        end = output if attribution.output is None else attribution.output
        error = np.nan if attribution.path_error is None else attribution.path_error
        self._scalars.add(np.array([end, attribution.baseline_output, error]))
        self._evaluations += attribution.evaluations
        self._completeness = max(self._completeness, attribution.completeness, key=STRICTEST_FIRST.index)
        self._rules.setdefault(attribution.rule)
        self.stopped = self.stopped or attribution.stopped

    def _by_component(self, values: Floats) -> Floats:
        """What the variance is taken of: the attribution of a token or a category, not those of its parts."""
        is_whole = self._kind is NoiseKind.SMOOTHGRAD or self._problem.traits.has_channels
        return values if is_whole else self._problem.per_component(values)

    def attribution(self) -> Attribution:
        """The mean or the variance of at least one."""
        last = self._last
        assert last is not None
        is_mean = self._kind is NoiseKind.SMOOTHGRAD
        output, baseline_output, path_error = self._scalars.mean.tolist()
        groups = zip(last.groups, self._result(self._groups).tolist(), strict=True)
        return Attribution(
            values=self._result(self._values),
            baseline_output=baseline_output,
            completeness=self._completeness if is_mean else Completeness.NONE,
            path_error=path_error if is_mean and not np.isnan(path_error) else None,
            evaluations=self._evaluations,
            rule=" or ".join(self._rules),
            stopped=self.stopped,
            interactions=None if last.interactions is None else self._result(self._interactions),
            groups=tuple(replace(group, dividend=dividend, value=value) for group, (dividend, value) in groups),
            output=output,
        )

    def _result(self, running: _Running) -> Floats:
        return running.mean if self._kind is NoiseKind.SMOOTHGRAD else running.squares / running.count
