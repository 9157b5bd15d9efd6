"""The integral of the gradient on the straight path from the mean baseline to the input: exact, or refined.

Integrated gradients are this integral; a method with another start gives it a problem whose `center` and
`center_output` are replaced. What the rules are, and what each promises, is said in
`service.methods.integrated_gradients`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.domain import Completeness, Contrast, Floats, Indices, Target, read_target
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import Breakpoints, Evaluated, Pieces, Points, Readout, evaluated, pieces_of
from service.methods.shared.refined_lines import RefinedLines
from service.methods.shared.refining import FIRST_OF_ONE_LINE, GAUSS_NODES, next_aim, refine
from service.numerics.errors import RESOLUTION, PieceGradients, rounding_error
from service.numerics.softmax_pieces import softmax_piece_weights

FEW_PIECES = 256
"""With more, `auto` refines: lines of the digits model have some 850 pieces, whose gradients take 70 to 140 ms, where a
refined answer to 1% takes 15 ms."""
FEW_GRADIENTS = 3 * FEW_PIECES
"""As many for the probabilities of three labels; of more, `auto` refines where the pieces are many."""


def straight_path(problem: Problem, rule: str) -> Method:
    """The attributions on the straight path by `rule`: auto, exact, gauss_legendre or midpoint."""
    if rule == "exact" or (rule == "auto" and problem.traits.is_piecewise_linear):
        pieces, gradients = (problem.max_evaluations,) * 2 if rule == "exact" else (FEW_PIECES, FEW_GRADIENTS)
        found = yield from pieces_of(Breakpoints(problem.center, problem.input, min(problem.max_evaluations, pieces)))
        exact = _exact_rule(problem, found)
        if exact is not None and exact.gradients <= min(problem.max_evaluations, gradients):
            return (yield from _exact(problem, exact))
    most = problem.max_evaluations
    if rule == "gauss_legendre":
        return (yield from _refined(problem, rule, min(GAUSS_NODES, most), 1))
    return (yield from _refined(problem, "midpoint", 1, min(FIRST_OF_ONE_LINE, most)))


@dataclass(frozen=True, slots=True)
class _Part:
    """Gradients of one readout and target in the middle of the pieces numbered `piece` [n], and their `weights` [n]."""

    readout: Readout
    target: Target
    piece: Indices
    weights: Floats


@dataclass(frozen=True, slots=True)
class _ExactRule:
    """The integral as a sum over parts. `middles` and `lengths` [pieces] of the pieces, and the `changes` [pieces] of
    the output.

    `spread` is how far apart the logits are that a softmax was taken of, 0 without one, and `largest` the largest.
    """

    parts: list[_Part]
    middles: Floats
    lengths: Floats
    changes: Floats
    spread: float
    largest: float

    @property
    def gradients(self) -> int:
        return sum(len(part.piece) for part in self.parts)


def _exact_rule(problem: Problem, found: Pieces) -> _ExactRule | None:
    """The exact rule for the pieces that were found; None where there were too many."""
    if found.alphas is None or found.logits is None:
        return None
    length = np.diff(found.alphas)
    keep = length > 0
    length, middles = length[keep], (found.alphas[:-1] + found.alphas[1:])[keep] / 2
    start, end = found.logits[:-1][keep].astype(np.float64), found.logits[1:][keep].astype(np.float64)
    every = np.arange(len(length))
    largest = float(np.abs(found.logits).max())
    if not problem.is_linked:
        changes = problem.logit_of(end) - problem.logit_of(start)
        part = _Part(problem.logit_readout, problem.target, every, length)
        return _ExactRule([part], middles, length, changes, 0.0, largest)
    link = problem.traits.link
    apart = link.spread(found.logits)
    if problem.traits.is_pair:
        return _of_two_labels(problem, start, end, length, middles, apart, largest)
    slopes = link.piece_slopes(start, end, length, problem.target)
    before, behind = (read_target(link.probabilities(logits), problem.target) for logits in (start, end))
    counts = _counting(slopes)
    parts = [
        _Part(Readout.LOGIT, label, np.flatnonzero(counts[:, label]), slopes[counts[:, label], label])
        for label in range(problem.labels)
    ]
    return _ExactRule([part for part in parts if len(part.piece)], middles, length, behind - before, apart, largest)


def _of_two_labels(
    problem: Problem, start: Floats, end: Floats, length: Floats, middles: Floats, apart: float, largest: float
) -> _ExactRule:
    """Of two labels that share a softmax: one gradient a piece, that of the log-odds, which all depends on."""
    target = problem.target_index
    before, behind = (logits[:, target] - logits[:, 1 - target] for logits in (start, end))
    weights = softmax_piece_weights(before, behind, length)
    if isinstance(problem.target, Contrast):
        weights = 2 * weights  # p_t - p_other = 2 p_t - 1
    changes = weights / length * (behind - before)
    part = _Part(Readout.MARGIN, target, np.arange(len(length)), weights)
    return _ExactRule([part], middles, length, changes, apart, largest)


def _counting(slopes: Floats) -> NDArray[np.bool_]:
    """Which of the `slopes` [pieces, labels] count: the smallest, that add up to less than float32 resolves, do not."""
    sizes = np.abs(slopes).ravel()
    order = np.argsort(sizes, kind="stable")
    counts = np.empty(len(sizes), dtype=bool)
    counts[order] = np.cumsum(sizes[order]) > RESOLUTION * sizes.sum()
    counts[order[-1]] = True  # also where nothing changes at all
    return counts.reshape(slopes.shape)


def _exact(problem: Problem, rule: _ExactRule) -> Method:
    known: Evaluated | None = None
    for part in rule.parts:
        line = np.zeros(len(part.piece), dtype=np.intp)
        alphas = rule.middles[part.piece]
        answer = yield from evaluated(
            Points(problem.center[None], problem.input, line, alphas, part.readout, part.target)
        )
        known = answer if known is None else known.joined(answer)
    assert known is not None
    weights = np.concatenate([part.weights for part in rule.parts])
    piece = np.concatenate([part.piece for part in rule.parts])
    integrals = np.bincount(piece, weights * known.derivatives, minlength=len(rule.changes))
    values = known.weighted_sum(weights)
    missed = problem.output - problem.center_output - float(values.sum())
    lengths = rule.lengths[piece]
    taken = PieceGradients(
        start=problem.center,
        end=problem.input,
        contributions=known.contributions,
        weights=weights,
        slopes=weights / lengths,
        changes=known.derivatives * lengths,
        follows=np.diff(piece, prepend=-1) == 1,
    )
    return Attribution(
        values=values,
        baseline_output=problem.center_output,
        completeness=Completeness.EXACT,
        path_error=rounding_error(
            taken,
            rule.changes - integrals,
            missed,
            rule.spread,
            rule.largest,
            has_double_rows=problem.traits.has_double_rows,
        ),
        evaluations=rule.gradients,
        rule="exact",
    )


def _refined(problem: Problem, rule: str, order: int, panels: int) -> Method:
    lines = RefinedLines(problem, problem.center[None], np.array([problem.center_output]), order, panels)

    def aim() -> float | None:
        return next_aim(problem, lines.error(), lines.values, problem.center_output)

    stopped = yield from refine(lines.learn, lines.error, aim, lines.split, lambda: lines.is_searching)
    return Attribution(
        values=lines.values,
        baseline_output=problem.center_output,
        completeness=Completeness.ASYMPTOTIC,
        path_error=lines.error(),
        evaluations=lines.evaluations,
        rule=rule,
        stopped=stopped,
        errors=lines.input_errors(),
    )
