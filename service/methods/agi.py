"""Adversarial Gradient Integration: the gradient integrated on walks from the input to adversarial examples.

Pan, Li and Zhu, "Explaining deep neural network models with adversarial gradient integration", IJCAI 2021, algorithm 1.
For a class i other than the target t, from x_0 = x by steepest ascent of f_i, of the same length for every input,

    s_k = eps * range * sign(df_i/dx (x_k)),   x_k+1 = x_k + s_k,
    values of i = - sum over k of df_t/dx (x_k) s_k     (elementwise)

until i is predicted or `steps` are spent. The classes are those with the largest outputs at x, at most `classes`. The
values are the mean over them, where the authors' code has the sum. Positive values support the target.

In the limit of short steps they sum to f_t(x) minus the mean over the classes of f_t at the ends of the walks, which is
the `baseline_output`. What each step misses of the change of f_t is known, and `path_error` comes of it. At the paper's
`eps` of 0.05 walks have few steps and that is much: on the digits the sum misses a third of the change of a probability
in the median, and at an `eps` of 0.005, for six times the points, 4%.

Walks are not clipped to the range of the inputs; inputs without a range stay. The authors' code takes every step from x
again and so never walks; this follows the paper. The examples found are not the nearest. A class that is predicted at x
already has a walk of no steps and counts with zeros: ask for the predicted class. After a deadline or with a spent
budget the walks end where they are; a budget too small for all classes takes the first of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.domain import Completeness, Floats, Indices
from service.methods.entry import Facts, MethodEntry, Number
from service.methods.oracle import Attribution, DeadlinePassed, Method, Problem, Rows, Steps, evaluated, outputs_at
from service.numerics.errors import PATH_SAFETY

ROWS_A_STEP = 2
"""The gradients of the class walked to and of the target."""
USUAL_STEPS = 10
"""A class of the digits is reached in 5 at the default `eps`, the other label of the loan model in 3."""


def agi(problem: Problem) -> Method:
    """One explanation by Adversarial Gradient Integration; see the module's docstring."""
    at_input = yield from outputs_at(problem.input[None])
    wanted = min(int(problem.number("classes")), problem.labels - 1)
    classes = _largest_others(at_input[problem.output_space][0], problem.target, wanted)
    classes = classes[: problem.max_evaluations // ROWS_A_STEP]
    stopped = None if len(classes) == wanted else "budget"
    walks = _Walks(problem, classes)
    try:
        for _ in range(int(problem.number("steps"))):
            if not len(walks.live):
                break
            if walks.evaluations + ROWS_A_STEP * len(walks.live) > problem.max_evaluations:
                stopped = "budget"
                break
            yield from walks.step()
        yield from walks.end()
    except DeadlinePassed:
        if not walks.have_moved:
            raise
        stopped = "deadline"
    return Attribution(
        values=walks.values / len(classes),
        baseline_output=float(walks.outputs.mean()),
        completeness=Completeness.ASYMPTOTIC,
        path_error=PATH_SAFETY * walks.missed / len(classes),
        evaluations=walks.evaluations,
        rule="steepest_ascent",
        stopped=stopped,
    )


def _largest_others(outputs: Floats, target: int, most: int) -> Indices:
    """The labels other than the target with the largest outputs, largest first."""
    order = np.argsort(-outputs, kind="stable")
    others: Indices = order[order != target][:most]
    return others


class _Walks:
    """Walks from the input, one a class of `classes` [k], that advance together.

    A step counts once the output at its end is known: `values` [inputs] is the sum over all walks of the steps that
    count, `outputs` [k] the target's output at their ends, and `missed` the sum over the steps of what each missed of
    its change.
    """

    def __init__(self, problem: Problem, classes: Indices) -> None:
        self._problem = problem
        self._classes = classes
        self._ends = np.tile(problem.input, (len(classes), 1))
        self._pending = np.zeros_like(self._ends)
        self.live: Indices = np.arange(len(classes))
        self.values = np.zeros_like(problem.input)
        self.outputs = np.full(len(classes), problem.output)
        self.missed = 0.0
        self.evaluations = 0
        self.have_moved = False

    def step(self) -> Steps[None]:
        """Takes a step of every walk that is under way."""
        live, problem = self.live, self._problem
        rows = self._ends[live]
        targets = np.concatenate([self._classes[live], np.full(len(live), problem.target)])
        known = yield from evaluated(Rows(np.tile(rows, (ROWS_A_STEP, 1)), problem.readout, targets))
        self.evaluations += len(targets)
        of_class, of_target = np.split(known.outputs, 2)
        self._arrive(live, of_target)
        there = yield from self._predicted(live, of_class >= of_target)
        uphill, slopes = np.split(known.contributions, 2)
        steps = problem.number("eps") * (problem.high - problem.low) * np.sign(uphill)
        goes_on = ~there & steps.any(axis=1)
        self.live = live[goes_on]
        self._ends[self.live] += steps[goes_on]
        self._pending[self.live] = -slopes[goes_on] * steps[goes_on]

    def end(self) -> Steps[None]:
        """Takes the deployed outputs at the ends of the walks."""
        ends = yield from outputs_at(self._ends)
        self._arrive(np.arange(len(self._ends)), ends[self._problem.output_space][:, self._problem.target])

    def _predicted(self, live: Indices, is_possible: NDArray[np.bool_]) -> Steps[NDArray[np.bool_]]:
        """Whether each walk's class is predicted where it is; asked only where it outdoes the target."""
        there = np.zeros(len(live), dtype=bool)
        if is_possible.any():
            asked = live[is_possible]
            answer = yield from outputs_at(self._ends[asked])
            there[is_possible] = answer[self._problem.output_space].argmax(axis=1) == self._classes[asked]
        return there

    def _arrive(self, walks: Indices, outputs: Floats) -> None:
        """Counts the pending steps of `walks`, at whose ends the target's `outputs` are now known."""
        pending = self._pending[walks]
        self.have_moved = self.have_moved or bool(pending.any())
        self.values += pending.sum(axis=0)
        self.missed += float(np.abs(self.outputs[walks] - outputs - pending.sum(axis=1)).sum())
        self.outputs[walks] = outputs
        self._pending[walks] = 0


def _usual_points(facts: Facts) -> int:
    classes = min(int(facts.number("classes")), facts.traits.labels - 1)
    return ROWS_A_STEP * min(int(facts.number("steps")), USUAL_STEPS) * classes


AGI = MethodEntry(
    name="agi",
    attribute=agi,
    completeness=(Completeness.ASYMPTOTIC,),
    least_points=lambda _facts: ROWS_A_STEP,
    usual_points=_usual_points,
    cost="two a step and class; the steps one after the other, all classes at once",
    options=(
        Number("eps", 0.05, 0.0001, 1.0, "the length of a step, as a share of each input's range"),
        Number("steps", 50, 1, 1000, "the most steps of a walk"),
        Number("classes", 20, 1, 100, "the most classes that are walked to"),
    ),
    description="the gradient integrated on walks from the input to an adversarial example of each other class",
    citation="Pan, Li and Zhu, IJCAI 2021",
)
