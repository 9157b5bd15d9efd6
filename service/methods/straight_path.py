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
    Method,
    Pieces,
    Points,
    Problem,
    Readout,
    evaluated,
    pieces_of,
)
from service.methods.refined_lines import RefinedLines
from service.methods.refining import first_rule, next_aim, refine, rule_name
from service.numerics.errors import PATH_SAFETY
from service.numerics.quadrature import gauss_legendre, softmax, softmax_piece_weights

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
    is_bent = rule == "midpoint" or (rule != "gauss_legendre" and bool(problem.traits.bends))
    return (yield from _refined(problem, *first_rule(is_bent, problem.max_evaluations)))


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
        changes = np.diff(problem.logit_of(found.logits))[keep]
        return _ExactRule(left + length / 2, length, problem.logit_readout, changes, 1)
    if problem.labels == 2:
        margin = target - found.logits[:, 1 - problem.target]
        weights = softmax_piece_weights(margin[:-1][keep], margin[1:][keep], length)
        changes = weights / length * np.diff(margin)[keep]
        return _ExactRule(left + length / 2, weights, Readout.MARGIN, changes, 1)
    rule = gauss_legendre(NODES_PER_SMOOTH_PIECE)
    if NODES_PER_SMOOTH_PIECE * len(length) > problem.max_evaluations:
        return None
    probability = softmax(found.logits)[:, problem.target]
    alphas = left[:, None] + length[:, None] * rule.nodes
    return _ExactRule(
        alphas.ravel(),
        (length[:, None] * rule.weights).ravel(),
        Readout.PROBABILITY,
        np.diff(probability)[keep],
        NODES_PER_SMOOTH_PIECE,
    )


def _exact(problem: Problem, rule: _ExactRule) -> Method:
    line = np.zeros(len(rule.alphas), dtype=np.intp)
    points = Points(problem.center[None], problem.input, line, rule.alphas, rule.readout, problem.target)
    known = yield from evaluated(points)
    integrals = (rule.weights * known.derivatives).reshape(-1, rule.nodes_per_piece).sum(axis=1)
    return Attribution(
        values=known.weighted_sum(rule.weights),
        baseline_output=problem.center_output,
        completeness=Completeness.EXACT,
        path_error=PATH_SAFETY * float(np.abs(rule.changes - integrals).sum()),
        evaluations=len(rule.alphas),
        rule="exact",
    )


def _refined(problem: Problem, order: int, panels: int) -> Method:
    lines = RefinedLines(problem, problem.center[None], np.array([problem.center_output]), order, panels)

    def aim() -> float | None:
        return next_aim(problem, lines.error(), lines.values, problem.center_output)

    stopped = yield from refine(lines.learn, lines.error, aim, lines.split)
    return Attribution(
        values=lines.values,
        baseline_output=problem.center_output,
        completeness=Completeness.ASYMPTOTIC,
        path_error=PATH_SAFETY * lines.error(),
        evaluations=lines.evaluations,
        rule=rule_name(order),
        stopped=stopped,
    )
