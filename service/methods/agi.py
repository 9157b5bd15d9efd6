"""Adversarial Gradient Integration: the gradient integrated on walks from the input to adversarial examples.

Pan, Li and Zhu, "Explaining deep neural network models with adversarial gradient integration", IJCAI 2021, algorithm 1.
For a class i other than the target t, from x_0 = x by steepest ascent of f_i, of the same length for every input,

    x_k+1 = x_k + eps * range * sign(df_i/dx (x_k))

until i is predicted or `steps` are spent, and along this polyline gamma, from x to its end,

    values of i = - int df_t/dgamma dgamma     (elementwise)

The classes are those with the largest outputs at x, at most `classes` of them. The values are the mean over them, where
the authors' code has the sum. Positive values support the target.

They sum to f_t(x) minus the mean over the classes of f_t at the ends of the walks, which is the `baseline_output`; the
integral is refined until that and the path error hold the tolerance. The paper takes the gradient once a step, at its
beginning, which at its `eps` of 0.05 misses 29% of the change of the probability on the digits in the median, and 55%
on the loan model. All walks are refined together, each a step further in the same time, so that the corners, where the
integrand jumps, are ends of panels: a panel a step to begin with, of one node where the network itself bends, else of
three. With these a smooth network of the digits takes 206 points to 0.1% of a logit, with midpoints 556.

Walks are not clipped to the range of the inputs; inputs without a range stay. The authors' code takes every step from x
again and so never walks; this follows the paper. The examples found are not the nearest. A class that is predicted at x
already has a walk of no steps and counts with zeros: ask for the predicted class. The walks may take half the budget,
then they end where they are; a budget too small for all classes takes the first of them. A deadline that passes before
the walks have ended leaves nothing to return, since they know no gradient of the target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.domain import Completeness, Floats, Indices
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import Rows, Steps, evaluated, outputs_at
from service.methods.shared.refined_path import RefinedPath
from service.methods.shared.refining import next_aim
from service.methods.spec import Facts, MethodSpec, Number, needs_classes
from service.numerics.refinement import Refinement

MIN_STEPS_A_CLASS = 2
"""One step, and the gradient in its middle."""
USUAL_A_CLASS = 100
"""To 1% the loan model takes 95 in the median, and 90 for a logit; the digits 61 and 85 for each of nine classes."""
NODES_OF_A_SMOOTH_STEP = 3


def agi(problem: Problem) -> Method:
    """One explanation by Adversarial Gradient Integration; see the module's docstring."""
    walks = yield from _walked(problem)
    outputs = walks.outputs.mean(axis=1)
    baseline_output = float(outputs[-1])
    if not walks.moves.any():
        nothing = np.zeros_like(problem.input)
        return _attribution(nothing, baseline_output, 0.0, walks.evaluations, "none", walks.stopped)
    path = _AlongWalks(problem, walks)
    order = path.first_order()
    refinement = _FromCornerToCorner(outputs, order)

    def values() -> Floats:
        return -path.weighted_sum(refinement.weights())

    def aim() -> float | None:
        return next_aim(problem, refinement.error(), values(), baseline_output)

    stopped = yield from path.refine(problem, refinement, aim)
    rule = "midpoint" if order == 1 else "gauss_legendre"
    return _attribution(values(), baseline_output, refinement.error(), path.spent, rule, stopped or walks.stopped)


def _attribution(
    values: Floats, baseline_output: float, path_error: float, evaluations: int, rule: str, stopped: str | None
) -> Attribution:
    return Attribution(
        values=values,
        baseline_output=baseline_output,
        completeness=Completeness.ASYMPTOTIC,
        path_error=path_error,
        evaluations=evaluations,
        rule=rule,
        stopped=stopped,
    )


@dataclass(frozen=True, slots=True)
class _Walks:
    """Walks to k classes: their `corners` [steps + 1, k, inputs], those that have ended staying at their ends, and the
    target's deployed `outputs` [steps + 1, k] there."""

    corners: Floats
    outputs: Floats
    evaluations: int
    stopped: str | None

    @property
    def moves(self) -> NDArray[np.bool_]:
        """Which walks move in which step: [steps, k]."""
        result: NDArray[np.bool_] = (np.diff(self.corners, axis=0) != 0).any(axis=2)
        return result


def _walked(problem: Problem) -> Steps[_Walks]:
    """Walks to all classes at once."""
    at_input = yield from outputs_at(problem.input[None])
    (outputs,) = at_input[problem.output_space]
    wanted = min(int(problem.number("classes")), problem.labels - 1)
    classes = _largest_others(outputs, problem.target_index, wanted)[: problem.max_evaluations // MIN_STEPS_A_CLASS]
    stopped = None if len(classes) == wanted else "budget"
    corners = [np.tile(problem.input, (len(classes), 1))]
    at_corners = [np.full(len(classes), problem.output)]
    live: Indices = np.flatnonzero(classes != outputs.argmax())
    evaluations = 0
    while len(live) and len(corners) <= problem.number("steps"):
        if evaluations + len(live) > problem.max_evaluations // 2:
            stopped = "budget"
            break
        uphill = yield from evaluated(Rows(corners[-1][live], problem.readout, classes[live]))
        evaluations += len(live)
        steps = problem.number("eps") * (problem.high - problem.low) * np.sign(uphill.contributions)
        goes_on = steps.any(axis=1)
        live = live[goes_on]
        if not len(live):
            break
        corners.append(corners[-1].copy())
        corners[-1][live] += steps[goes_on]
        outputs_there = yield from outputs_at(corners[-1][live])
        at_corners.append(at_corners[-1].copy())
        at_corners[-1][live] = problem.read(outputs_there)
        live = live[outputs_there[problem.output_space].argmax(axis=1) != classes[live]]
    return _Walks(np.stack(corners), np.stack(at_corners), evaluations, stopped)


def _largest_others(outputs: Floats, target: int, most: int) -> Indices:
    """The labels other than the target with the largest outputs, largest first."""
    order = np.argsort(-outputs, kind="stable")
    others: Indices = order[order != target][:most]
    return others


class _AlongWalks(RefinedPath):
    """All walks as one path, of which outputs and contributions are the means over the walks.

    A step takes the same time in every walk. A node costs a gradient for each walk that has not ended there.
    """

    def __init__(self, problem: Problem, walks: _Walks) -> None:
        super().__init__()
        self._problem = problem
        self._walks = walks
        self._moves = walks.moves
        self.spent = walks.evaluations

    def first_order(self) -> int:
        """The nodes to begin with on each step; one always fits the budget, of which the walks took half at most."""
        if self._problem.traits.bends:
            return 1
        return min(NODES_OF_A_SMOOTH_STEP, (self._problem.max_evaluations - self.spent) // int(self._moves.sum()))

    def affordable(self, problem: Problem) -> int:
        return (problem.max_evaluations - self.spent) // int(self._moves[0].sum())

    def ask(self, alphas: Floats) -> Steps[tuple[Floats, Floats]]:
        problem, corners = self._problem, self._walks.corners
        times = alphas * len(self._moves)
        step = times.astype(np.intp)
        node, walk = np.nonzero(self._moves[step])
        starts = corners[step[node], walk]
        ways = corners[step[node] + 1, walk] - starts
        rows = starts + (times - step)[node, None] * ways
        known = yield from evaluated(problem.rows(rows))
        self.spent += len(rows)
        outputs = np.tile(self._walks.outputs[-1], (len(alphas), 1))
        outputs[node, walk] = known.outputs
        contributions = np.zeros((len(alphas), rows.shape[1]))
        np.add.at(contributions, node, known.contributions * ways * len(self._moves))
        return outputs.mean(axis=1), contributions / outputs.shape[1]


class _FromCornerToCorner(Refinement):
    """A refinement that knows the `outputs` [panels + 1] at the ends of its first panels.

    A walk along a ridge crosses it before a corner and again behind it. What is missed before and behind would cancel
    in a single gap between the nodes on both sides.
    """

    def __init__(self, outputs: Floats, order: int) -> None:
        super().__init__(float(outputs[0]), float(outputs[-1]), order, len(outputs) - 1)
        self._corners = self._left[1:]
        self._at_corners = outputs[1:-1]

    def stencils(self) -> None:
        """None: contributions jump at corners, where no rule errs, which their differences cannot tell from kinks."""

    def defects(self) -> tuple[Floats, Floats]:
        gaps, of_panel = super().defects()
        panel = np.searchsorted(self._left, self._corners)
        border = panel - len(of_panel) - 1  # the borders' gaps are the last
        before = self._at_corners - self._outputs[self._nodes[panel - 1, -1]] - self._reach(panel - 1, -1)
        behind = self._outputs[self._nodes[panel, 0]] - self._at_corners - self._reach(panel, 0)
        of_panel[panel - 1] += np.abs(before) - np.abs(gaps[border])
        of_panel[panel] += np.abs(behind) - np.abs(gaps[border])
        gaps[border] = before
        return np.concatenate([behind, gaps]), of_panel

    def _reach(self, panel: Indices, gap: int) -> Floats:
        """By how much the outputs change between the first or last node of each `panel` and its end, says the rule."""
        change: Floats = self._width[panel] * (self._derivatives[self._nodes[panel]] @ self._rule.gaps[gap])
        return change


def _usual_points(facts: Facts) -> int:
    return USUAL_A_CLASS * min(int(facts.number("classes")), facts.traits.labels - 1)


AGI = MethodSpec(
    name="agi",
    attribute=agi,
    completeness=(Completeness.ASYMPTOTIC,),
    least_points=lambda _facts: MIN_STEPS_A_CLASS,
    usual_points=_usual_points,
    cost="one a step and class, the steps one after the other; then what the tolerance takes, from as many again",
    options=(
        Number("eps", 0.05, 0.0001, 1.0, "the length of a step, as a share of each input's range"),
        Number("steps", 50, 1, 1000, "the most steps of a walk"),
        Number("classes", 20, 1, 100, "the most classes that are walked to"),
    ),
    not_applicable=needs_classes("agi"),
    description="the gradient integrated on walks from the input to an adversarial example of each other class",
    citation="Pan, Li and Zhu, IJCAI 2021",
)
