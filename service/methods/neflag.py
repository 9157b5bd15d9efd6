"""NeFLAG: the mean negative flux of the gradient through a small sphere around the input.

Li, Pan, Li, Qiang and Zhu, "Negative flux aggregation to estimate feature attributions", IJCAI 2023. The gradient of
the output is a flow; what flows into a sphere around x, where gradient . n < 0 for the outward normal n, is what makes
the output larger at x than on that side of it. With m points x + eps n_k, the n_k uniform on the sphere,

    values_i = -1/m * sum over k with g_k . n_k < 0 of (g_k)_i (n_k)_i,    g_k the gradient at x + eps n_k

The sign is turned, so that positive values support the class; the survey's equation 34 has it the other way. The
sphere is one in units of each input's range, of the radius `eps`, and so are the gradients; an input without a range
stays where it is and gets zero.

The paper's algorithm searches for its points of negative flux, at several gradients each. Here the points are drawn
uniformly and those of positive flux count as zero, which is the mean over the sphere. For a linear model with weights
w, scaled to the ranges, its expectation is c_d w_i^2 / norm(w), c_d = Gamma(d/2) / (2 sqrt(pi) Gamma((d+1)/2)) in d
dimensions.

It promises no sum, says nothing beyond the radius, and with few points in many dimensions it is noisy: the standard
error falls with the square root of their number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.domain import Completeness, Floats
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import evaluated
from service.methods.spec import Facts, MethodSpec, Number, one_point

MAX_NUMBERS = 2**22
"""In the rows of one question, which is 32 MiB; what takes more is asked in parts."""


def neflag(problem: Problem) -> Method:
    """One explanation by negative flux aggregation; see the module's docstring."""
    wanted = int(problem.number("points"))
    points = min(wanted, problem.max_evaluations)
    extent = problem.high - problem.low
    generator = np.random.default_rng(problem.seed)
    values, together = np.zeros_like(problem.input), max(1, MAX_NUMBERS // len(problem.input))
    for done in range(0, points, together):
        count = min(together, points - done)
        normals = _uniform_normals(generator, count, extent > 0)
        rows = problem.input + problem.number("eps") * extent * normals
        known = yield from evaluated(problem.rows(rows))
        flux = known.contributions * extent * normals
        values -= flux[flux.sum(axis=1) < 0].sum(axis=0)
    return Attribution(
        values=values / points,
        baseline_output=problem.center_output,
        completeness=Completeness.NONE,
        path_error=None,
        evaluations=points,
        rule="uniform_sphere",
        stopped=None if points == wanted else "budget",
    )


def _uniform_normals(generator: np.random.Generator, points: int, moves: NDArray[np.bool_]) -> Floats:
    """Unit vectors [points, inputs], uniform on the sphere of the inputs that `moves` marks; zero in the others."""
    draws = generator.standard_normal((points, len(moves))) * moves
    lengths = np.linalg.norm(draws, axis=1, keepdims=True)
    normals: Floats = draws / np.where(lengths > 0, lengths, 1.0)
    return normals


def _points(facts: Facts) -> int:
    return int(facts.number("points"))


NEFLAG = MethodSpec(
    name="neflag",
    attribute=neflag,
    completeness=(Completeness.NONE,),
    least_points=one_point,
    usual_points=_points,
    cost="one a point on the sphere",
    options=(
        Number("eps", 0.1, 0.0001, 1.0, "the radius of the sphere, as a share of each input's range"),
        Number("points", 20, 1, 10_000, "the points on the sphere"),
    ),
    uses_seed=True,
    description="the mean negative flux of the gradient through a small sphere around the input",
    citation="Li, Pan, Li, Qiang and Zhu, IJCAI 2023",
)
