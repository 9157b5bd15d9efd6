"""The integral of the gradient on the straight path from the mean baseline to the input: exact, or refined.

Integrated gradients are this integral; a method with another start gives it a problem whose `center` and
`center_output` are replaced. What the rules are, and what each promises, is said in
`service.methods.integrated_gradients`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.domain import Completeness, Floats, OutputSpace
from service.methods.oracle import (
    Attribution,
    Breakpoints,
    DeadlinePassed,
    Method,
    Pieces,
    Points,
    Problem,
    Readout,
    evaluated,
    pieces_of,
)
from service.numerics.errors import PATH_SAFETY, completeness_error
from service.numerics.quadrature import gauss_legendre, softmax_piece_weights
from service.numerics.refinement import Refinement, Stagnation

GAUSS_NODES = 6
"""With 4 to begin with, smooth networks would take 5.6 points to 1% and not 7.5, but stated errors would not hold."""
MIDPOINT_PANELS = 8
NODES_PER_SMOOTH_PIECE = 3
FEW_PIECES = 256
"""With more, `auto` refines: lines of the digits model have some 850 pieces, whose gradients take 70 to 140 ms, where a
refined answer to 1% takes 15 ms."""


def straight_path(problem: Problem, rule: str) -> Method:
    """The attributions on the straight path by `rule`: auto, exact, gauss_legendre or midpoint."""
    if rule == "exact" or (rule == "auto" and problem.traits.is_piecewise_linear):
        most = problem.max_evaluations if rule == "exact" else min(problem.max_evaluations, FEW_PIECES)
        found = yield from pieces_of(Breakpoints(problem.center, problem.input, most))
        pieces = _pieces(problem, found)
        if pieces is not None:
            return (yield from _exact(problem, pieces))
    order = {"gauss_legendre": GAUSS_NODES, "midpoint": 1}.get(rule, 1 if problem.traits.bends else GAUSS_NODES)
    return (yield from _refined(problem, order))


@dataclass(frozen=True, slots=True)
class _ExactRule:
    """Nodes, weights [n] and readout of the exact rule, and the change of the output over each node's piece."""

    alphas: Floats
    weights: Floats
    readout: Readout
    changes: Floats
    nodes_per_piece: int


def _pieces(problem: Problem, found: Pieces) -> _ExactRule | None:
    """The exact rule for the pieces that were found; None when they do not fit the budget."""
    if found.alphas is None or found.logits is None:
        return None
    length = np.diff(found.alphas)
    keep = length > 0
    length, left = length[keep], found.alphas[:-1][keep]
    target = found.logits[:, problem.target]
    if problem.output_space is OutputSpace.LOGIT:
        changes = np.diff(target)[keep]
        return _ExactRule(left + length / 2, length, Readout.LOGIT, changes, 1)
    if problem.labels == 2:
        margin = target - found.logits[:, 1 - problem.target]
        weights = softmax_piece_weights(margin[:-1][keep], margin[1:][keep], length)
        changes = weights / length * np.diff(margin)[keep]
        return _ExactRule(left + length / 2, weights, Readout.MARGIN, changes, 1)
    rule = gauss_legendre(NODES_PER_SMOOTH_PIECE)
    if NODES_PER_SMOOTH_PIECE * len(length) > problem.max_evaluations:
        return None
    shifted = np.exp(found.logits - found.logits.max(axis=1, keepdims=True))
    probability = shifted[:, problem.target] / shifted.sum(axis=1)
    alphas = left[:, None] + length[:, None] * rule.nodes
    return _ExactRule(
        alphas.ravel(),
        (length[:, None] * rule.weights).ravel(),
        Readout.PROBABILITY,
        np.diff(probability)[keep],
        NODES_PER_SMOOTH_PIECE,
    )


def _line(problem: Problem, alphas: Floats, readout: Readout) -> Points:
    """Points on the one line from the mean baseline to the input."""
    line = np.zeros(len(alphas), dtype=np.intp)
    return Points(problem.center[None], problem.input, line, alphas, readout, problem.target)


def _exact(problem: Problem, rule: _ExactRule) -> Method:
    known = yield from evaluated(_line(problem, rule.alphas, rule.readout))
    integrals = (rule.weights * known.derivatives).reshape(-1, rule.nodes_per_piece).sum(axis=1)
    return Attribution(
        values=known.weighted_sum(rule.weights),
        baseline_output=problem.center_output,
        completeness=Completeness.EXACT,
        path_error=PATH_SAFETY * float(np.abs(rule.changes - integrals).sum()),
        evaluations=len(rule.alphas),
        rule="exact",
    )


def _refined(problem: Problem, order: int) -> Method:
    nodes = min(MIDPOINT_PANELS if order == 1 else order, problem.max_evaluations)
    panels, order = (nodes, 1) if order == 1 else (1, nodes)
    refinement = Refinement(problem.center_output, problem.output, order, panels)
    stopped = None
    answer = yield from evaluated(_line(problem, refinement.pending, problem.readout))
    refinement.learn(answer.outputs, answer.derivatives)
    known = answer
    values = known.weighted_sum(refinement.weights())
    stagnation = Stagnation()
    while (target := _target(problem, refinement, values)) is not None:
        if stagnation.after(refinement.sum_of_defects()):
            stopped = "precision"
            break
        if not refinement.split(target, problem.max_evaluations - len(known.outputs)):
            stopped = "budget"
            break
        try:
            answer = yield from evaluated(_line(problem, refinement.pending, problem.readout))
        except DeadlinePassed:
            stopped = "deadline"
            break
        refinement.learn(answer.outputs, answer.derivatives)
        known = known.joined(answer)
        values = known.weighted_sum(refinement.weights())
    return Attribution(
        values=values,
        baseline_output=problem.center_output,
        completeness=Completeness.ASYMPTOTIC,
        path_error=PATH_SAFETY * refinement.sum_of_defects(),
        evaluations=len(known.outputs),
        rule="midpoint" if order == 1 else "gauss_legendre",
        stopped=stopped,
    )


def _target(problem: Problem, refinement: Refinement, values: Floats) -> float | None:
    """The sum of defects to aim at next; None when the tolerance holds for both errors, or can never hold."""
    error = refinement.sum_of_defects()
    if not np.isfinite(error):
        return None
    residual = completeness_error(values, problem.output, problem.center_output, problem.floor)
    accepted = problem.tolerance * max(float(np.abs(values).sum()), problem.floor)
    if residual <= problem.tolerance and error <= accepted:
        return None
    return min(accepted, error) / 3
