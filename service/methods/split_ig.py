"""Split IG, the left part of integrated gradients: the path up to where the output has made most of its way.

Miglani, Kokhlikyan, Alsallakh, Martin and Reblitz-Richardson, "Investigating saturation effects in integrated
gradients", ICML workshop on human interpretability 2020. With D = x - x', x' the mean of the baseline set,

    alpha* = the first alpha with (f(x' + alpha D) - f(x')) / (f(x) - f(x')) > phi
    values_i = D_i int from 0 to alpha* of df/dx_i (x' + alpha D) dalpha

which are the integrated gradients of the point x' + alpha* D, and are computed as these are, see
`service.methods.shared.straight_path`. What lies behind, where the output is saturated, is left out. So the values sum
to phi times the change f(x) - f(x') and not to the change, and with the right part they are integrated gradients. The
path is not split, alpha* is 1, where no point makes more than phi of the way, and where the whole change is smaller
than the floor of relative errors, so that shares of it are noise.

On a piecewise-linear network alpha* is exact: the logits are linear between two bends, and their softmax, whose
logarithm is concave there, turns back at most once. Elsewhere the deployed outputs on a grid bracket the first
crossing, and finer grids narrow it down; an output that is past phi between two nodes of the first grid only is missed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from service.domain import Completeness, Contrast, Floats, Similarity, read_target
from service.methods.problem import Method, Problem
from service.methods.questions import Breakpoints, Steps, outputs_at, pieces_of
from service.methods.shared.straight_path import straight_path
from service.methods.spec import MethodSpec, Number, one_point
from service.numerics.softmax_pieces import softmax

GRID = 65
"""Nodes of a grid; each narrows the crossing down by 64."""
ROUNDS = 4
"""64^-4 is 6e-8, the resolution of float32."""
HALVINGS = 60


def split_ig(problem: Problem) -> Method:
    """One explanation by Split IG; see the module's docstring."""
    change = problem.output - problem.center_output
    split = 1.0
    if change != 0 and abs(change) >= problem.floor:
        split = yield from _split(problem)
    left_part = problem
    if split < 1:
        end = problem.center + split * (problem.input - problem.center)
        left_part = replace(problem, input=end, output=problem.center_output + problem.number("phi") * change)
    attribution = yield from straight_path(left_part, "auto")
    rule = f"{attribution.rule}, to {split:.6g} of the path"
    return replace(attribution, completeness=Completeness.NONE, path_error=None, rule=rule)


def _split(problem: Problem) -> Steps[float]:
    """alpha*; 1 where the output never makes more than phi of its way."""
    if problem.traits.is_piecewise_linear and not _turns_often(problem):
        pieces = yield from pieces_of(Breakpoints(problem.center, problem.input, problem.max_evaluations))
        if pieces.alphas is not None and pieces.logits is not None:
            return _split_of_pieces(problem, pieces.alphas, pieces.logits)
    low, high = 0.0, 1.0
    for _ in range(ROUNDS):
        alphas = np.linspace(low, high, GRID)
        rows = problem.center + alphas[:, None] * (problem.input - problem.center)
        answer = yield from outputs_at(rows)
        beyond = _excess(problem, problem.read(answer)) > 0
        first = int(np.argmax(beyond))
        if not beyond[first]:
            return high
        if first == 0:
            return low
        low, high = alphas[first - 1], alphas[first]
    return float(low + high) / 2


def _turns_often(problem: Problem) -> bool:
    """Whether the output may turn back on a piece, or more than once where that is known: the difference of two of
    several probabilities, or a cosine."""
    return problem.is_linked and isinstance(problem.target, Contrast | Similarity) and not problem.traits.is_pair


def _excess(problem: Problem, outputs: Floats) -> Floats:
    """The share of its way that the output has made at `outputs`, less phi."""
    change = problem.output - problem.center_output
    return (outputs - problem.center_output) / change - problem.number("phi")


def _split_of_pieces(problem: Problem, alphas: Floats, logits: Floats) -> float:
    """alpha* from the bends `alphas` [n] and the `logits` [n, labels] there."""
    link = problem.traits.link
    if problem.is_linked and link.is_shared:
        alphas, logits = _with_turns(alphas, logits, problem.target_index)

    def excess(at: Floats) -> Floats:
        if not problem.is_linked:
            return _excess(problem, problem.logit_of(at))
        return _excess(problem, read_target(link.probabilities(at), problem.target))

    beyond = excess(logits) > 0
    first = int(np.argmax(beyond))
    if not beyond[first] or first == 0:
        return float(alphas[first]) if beyond[first] else 1.0
    start, step = logits[first - 1 : first], logits[first : first + 1] - logits[first - 1 : first]
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(start + middle * step)[0] > 0 else (middle, high)
    return float(alphas[first - 1] + high * (alphas[first] - alphas[first - 1]))


def _with_turns(alphas: Floats, logits: Floats, target: int) -> tuple[Floats, Floats]:
    """With the points added at which the target's probability turns back inside a piece."""
    steps = np.diff(logits, axis=0)
    low, high = np.zeros(len(steps)), np.ones(len(steps))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        chances = softmax(logits[:-1] + middle[:, None] * steps)
        rises = steps[:, target] > (chances * steps).sum(axis=1)
        low, high = np.where(rises, middle, low), np.where(rises, high, middle)
    piece = np.flatnonzero((low > 0) & (high < 1))
    turns = alphas[piece] + low[piece] * np.diff(alphas)[piece]
    turn_logits = logits[piece] + low[piece, None] * steps[piece]
    return np.insert(alphas, piece + 1, turns), np.insert(logits, piece + 1, turn_logits, axis=0)


SPLIT_IG = MethodSpec(
    name="split_ig",
    attribute=split_ig,
    completeness=(Completeness.NONE,),
    least_points=one_point,
    usual_points=lambda _facts: 64,
    cost="as integrated_gradients",
    options=(Number("phi", 0.9, 0.01, 1.0, "the share of the output's change at which the path is cut"),),
    description="integrated gradients on the path up to where the output has made most of its way",
    citation="Miglani et al., ICML workshop on human interpretability 2020",
)
