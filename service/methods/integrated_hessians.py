"""Integrated Hessians: how much each pair of features contributes together, by integrated gradients of themselves.

Janizek, Sturmfels and Lee, "Explaining explanations: axiomatic feature interactions for deep networks", JMLR 2021.
With D = x - x', x' the mean of the baseline set, the paper's double integral over alpha and beta is one over u = alpha
beta, which has the density -ln u:

    Gamma_ij = D_i D_j int u (-ln u) d2f/dx_i dx_j du,  j other than i
    Gamma_ii = D_i^2 int u (-ln u) d2f/dx_i^2 du + D_i int (-ln u) df/dx_i du

all at x' + u D. Row i sums to the integrated gradient of i (integrate by parts), and so all of Gamma to f(x) - f(x').
The pairs are integrated with Gauss's rule for that density, the integrated gradients, which are the `values`, with
Gauss-Legendre; what the pairs of row i leave of its integrated gradient is Gamma_ii. That equals the second equation
where the Hessian is all there is, and it holds where an input is clipped on the way as well: there df/dx_i jumps.

The second equation is taken too, for its error: what its row sums miss of the integrated gradients, summed over the
rows, and what these miss of f(x) - f(x'), which is known. The nodes are doubled until that, times a factor of safety,
is within the tolerance, relative to the sum of all |Gamma_ij|. Bends that no Hessian sees keep it large. Where an input
is clipped on the way the rule is of first order: it takes more nodes, or the answer does not converge.

Linear and quadratic functions are exact. On GELU networks of width 32, relative L1 error over all pairs: with 4 nodes
2e-3, with 8 nodes 1e-6; Gauss-Legendre nodes with u = s^2 leave 2e-2 and 1e-4.

For tokens a feature is a position, and Gamma sums over its dimensions. The Hessian of a ReLU network is zero almost
everywhere. With `smooth: softplus` another function is explained, the network with a softplus for each ReLU: to the
change of its output the values sum, and not to that of the deployed model, so that no completeness is promised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.catalog.traits import kind_of
from service.domain import Completeness, Floats, ToleranceOf
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import DeadlinePassed, HessianRows, Steps, curvatures
from service.methods.spec import Choice, Facts, MethodSpec
from service.numerics.errors import resolution
from service.numerics.logarithmic import gauss_logarithmic
from service.numerics.quadrature import gauss_legendre
from service.numerics.refinement import Stagnation

FIRST_NODES = 4
MOST_NODES = 128
MOST_NUMBERS = 2**24
"""In the rows of one question, which is 128 MiB; what takes more is asked in parts."""
HESSIAN_SAFETY = 6.0
"""Row sums are right where single interactions err with either sign. On twelve networks of `tests/accuracy`, in both
output spaces and to three tolerances, the true error is 0.2 to 0.5 of the estimate in the median of each."""
ENDS = 2
"""Rows that tell how a network with softplus changes; the deployed model's own change is known."""
SOFTPLUS = "softplus"


def integrated_hessians(problem: Problem) -> Method:
    """One explanation by Integrated Hessians; see the module's docstring."""
    path = _Path.of(problem)
    change = yield from _change(problem)
    evaluations = ENDS if _is_softened(problem) else 0
    nodes, stopped, stagnation = FIRST_NODES, None, Stagnation()
    known = yield from _estimate(problem, path, nodes)
    evaluations += path.cost(nodes)
    while not _holds(problem, known, change):
        nodes *= 2
        if evaluations + path.cost(nodes) > problem.max_evaluations:
            stopped = "budget"
            break
        if nodes > MOST_NODES or stagnation.after(known.error(change)):
            stopped = "precision"
            break
        try:
            known = yield from _estimate(problem, path, nodes)
        except DeadlinePassed:
            stopped = "deadline"
            break
        evaluations += path.cost(nodes)
    return Attribution(
        values=known.values,
        baseline_output=problem.center_output,
        completeness=Completeness.NONE if _is_softened(problem) else Completeness.ASYMPTOTIC,
        path_error=known.error(change),
        evaluations=evaluations,
        rule="gauss_logarithmic" + (", relu replaced by softplus" if _is_softened(problem) else ""),
        stopped=stopped,
        interactions=known.interactions,
    )


@dataclass(frozen=True, slots=True)
class _Path:
    """The line from x' to x: `direction` [inputs], and for each of the components `moving` [m] that change on it, its
    part of the direction in `vectors` [m, inputs]."""

    direction: Floats
    moving: list[int]
    vectors: Floats

    @classmethod
    def of(cls, problem: Problem) -> _Path:
        direction = problem.input - problem.center
        each = direction.size // problem.shape[0]
        component = np.array(problem.traits.columns or np.repeat(np.arange(problem.shape[0]), each))
        moving = np.unique(component[direction != 0])
        vectors = np.where(component == moving[:, None], direction, 0.0)
        return cls(direction, moving.tolist(), vectors)

    def cost(self, nodes: int) -> int:
        """The rows of an estimate: at each node one a vector, and one for the gradient."""
        return nodes * (len(self.vectors) + 1)


@dataclass(frozen=True, slots=True)
class _Change:
    """By how much the network changes from x' to x, and what of it its own arithmetic does not tell."""

    size: float
    resolved: float

    @classmethod
    def between(cls, start: float, end: float) -> _Change:
        return cls(end - start, resolution(np.array([start, end])))


@dataclass(frozen=True, slots=True)
class _Estimate:
    """Integrated gradients `values` [inputs], `interactions` [components, components], and what the row sums of the
    second equation miss of the former, component by component, in units of the output."""

    values: Floats
    interactions: Floats
    missed: float

    def error(self, change: _Change) -> float:
        """An estimate of the sum of the errors of all interactions, for a network that changes by `change`."""
        of_sum = max(abs(float(self.values.sum()) - change.size) - change.resolved, 0.0)
        return HESSIAN_SAFETY * (self.missed + of_sum)


def _change(problem: Problem) -> Steps[_Change]:
    """f(x) - f(x'), of the network that is differentiated."""
    if not _is_softened(problem):
        return _Change.between(problem.center_output, problem.output)
    ends = np.stack([problem.center, problem.input])
    answer = yield from curvatures(HessianRows(ends, problem.readout, problem.target, np.zeros_like(ends)))
    return _Change.between(*answer.outputs[:2].tolist())


def _estimate(problem: Problem, path: _Path, nodes: int) -> Steps[_Estimate]:
    at, weights = gauss_logarithmic(nodes)
    even = gauss_legendre(nodes)
    inputs, vectors = len(path.direction), len(path.vectors)
    values, first_order, least = np.zeros(inputs), np.zeros(inputs), np.full(inputs, np.inf)
    second_order = np.zeros((vectors, inputs))
    together = max(1, MOST_NUMBERS // ((vectors + 1) * inputs))
    for start in range(0, nodes, together):
        part = slice(start, start + together)
        answer = yield from curvatures(_question(problem, path, at[part], even.nodes[part]))
        count = len(at[part])
        products = answer.products[: count * vectors].reshape(count, vectors, inputs)
        gradients = answer.gradients[: count * vectors].reshape(count, vectors, inputs)[:, :1].sum(axis=1)
        plain = answer.gradients[count * vectors :]
        second_order += ((weights * at)[part, None, None] * products).sum(axis=0)
        first_order += (weights[part, None] * gradients).sum(axis=0)
        values += (even.weights[part, None] * plain).sum(axis=0)
        least = np.minimum(least, np.abs(plain).min(axis=0))
    values, first_order = path.direction * values, path.direction * first_order
    second_order *= path.direction
    # Where the derivative vanishes for a while and not throughout, the input was clipped.
    missed = np.where(least > 0, values - first_order - second_order.sum(axis=0), 0.0)
    matrix = _matrix(problem, path, values, second_order)
    return _Estimate(values, matrix, float(np.abs(problem.per_component(missed)).sum()))


def _question(problem: Problem, path: _Path, at: Floats, even: Floats) -> HessianRows:
    """At each node in `at` a row for each vector, followed by a row for the gradient at each node in `even`."""
    alphas = np.concatenate([np.repeat(at, len(path.vectors)), even])
    rows = problem.center + alphas[:, None] * path.direction
    vectors = np.concatenate([np.tile(path.vectors, (len(at), 1)), np.zeros((len(even), len(path.direction)))])
    return HessianRows(rows, problem.readout, problem.target, vectors)


def _matrix(problem: Problem, path: _Path, values: Floats, second_order: Floats) -> Floats:
    """Gamma, symmetric to the last bit, with rows that sum to the integrated gradients."""
    of_components = problem.per_component(values)
    matrix = np.zeros((len(of_components), len(of_components)))
    matrix[path.moving] = problem.per_component(second_order)
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, of_components - matrix.sum(axis=1))
    return matrix


def _holds(problem: Problem, known: _Estimate, change: _Change) -> bool:
    """Whether all is known within the tolerance, or can never be."""
    error = known.error(change)
    if not np.isfinite(error):
        return True
    if error > problem.tolerance * max(float(np.abs(known.interactions).sum()), problem.floor):
        return False
    residual = abs(float(known.values.sum()) - change.size) / max(abs(change.size), problem.floor)
    return problem.tolerance_of is ToleranceOf.ATTRIBUTION or residual <= problem.tolerance


def _is_softened(problem: Problem) -> bool:
    return problem.traits.has_relu and problem.options["smooth"] == SOFTPLUS


def _least_points(facts: Facts) -> int:
    ends = ENDS if facts.options["smooth"] == SOFTPLUS else 0
    return FIRST_NODES * (facts.traits.components + 1) + ends


def _not_applicable(facts: Facts) -> str | None:
    if facts.traits.has_space:
        return (
            "integrated_hessians needs a row of Hessians for each input, too many for an image; use expected_gradients"
        )
    bends = facts.traits.bends
    others = [name for name in bends if kind_of(name) != "relu"]
    if others:
        return f"integrated_hessians does not see the bends of {', '.join(others)}; use expected_gradients"
    if bends and facts.options["smooth"] != SOFTPLUS:
        return (
            "the Hessian of a ReLU network is zero almost everywhere; ask for smooth: softplus, "
            "or use expected_gradients"
        )
    return None


INTEGRATED_HESSIANS = MethodSpec(
    name="integrated_hessians",
    attribute=integrated_hessians,
    completeness=(Completeness.ASYMPTOTIC, Completeness.NONE),
    least_points=_least_points,
    usual_points=lambda facts: 7 * _least_points(facts),
    gives_reasons=True,
    cost="4, 8, 16 and so on Hessians, a row each for every feature, until two answers agree",
    options=(
        Choice(
            "smooth",
            "none",
            ("none", SOFTPLUS),
            "what stands in for every ReLU, whose second derivative is zero almost everywhere",
        ),
    ),
    not_applicable=_not_applicable,
    description="the interactions of all pairs of features, and integrated gradients as their sums",
    citation="Janizek, Sturmfels and Lee, JMLR 2021",
)
