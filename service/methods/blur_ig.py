"""Blur IG: the gradient integrated while a blurred image becomes sharp.

Xu, Venugopalan and Sundararajan, "Attribution in scale and space", CVPR 2020. With L(sigma) the image
convolved with a Gaussian of the standard deviation sigma,

    values_i = - int from 0 to sigma_max of df/dx_i (L(sigma)) dL_i/dsigma dsigma

The baseline is the image itself, blurred, and no colour has to be chosen for it. The values sum to
f(x) - f(L(sigma_max)), the latter being the `baseline_output`; the integral is refined until that and the path error
hold the tolerance. sigma is a standard deviation, in pixels, where the paper's parameter is a variance; the image is
mirrored at its border, and channels are blurred each by itself. `sigma_max` is a share of the longer side, so that it
means the same at every resolution. The path is in `service.numerics.blur`.

What blurring keeps, the mean brightness above all, gets no attribution.
"""

from __future__ import annotations

import numpy as np

from service.domain import Completeness, Floats
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import Steps, evaluated, outputs_at
from service.methods.shared.refined_path import RefinedPath
from service.methods.shared.refining import FIRST_PANELS, next_aim
from service.methods.spec import Facts, MethodSpec, Number, one_point
from service.numerics.blur import SIGMA_MAX, BlurPath
from service.numerics.refinement import Refinement


def blur_ig(problem: Problem) -> Method:
    """One explanation by Blur IG; see the module's docstring."""
    path = _Sharpening(problem)
    blurred = yield from path.blurred_output()
    refinement = Refinement(blurred, problem.output, 1, min(FIRST_PANELS, problem.max_evaluations))

    def aim() -> float | None:
        values = path.weighted_sum(refinement.weights())
        return next_aim(problem, refinement.error(), values, blurred)

    stopped = yield from path.refine(problem, refinement, aim)
    return Attribution(
        values=path.weighted_sum(refinement.weights()),
        baseline_output=blurred,
        completeness=Completeness.ASYMPTOTIC,
        path_error=refinement.error(),
        evaluations=path.evaluations,
        rule="midpoint",
        stopped=stopped,
        errors=refinement.input_errors(),
    )


class _Sharpening(RefinedPath):
    """The path from the blurred image to the image."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self._problem = problem
        most = problem.number("sigma_max") * max(problem.shape[1:])
        self._path = BlurPath(problem.input.reshape(problem.shape), most)

    def blurred_output(self) -> Steps[float]:
        """The deployed output where the path begins."""
        problem = self._problem
        start, _ = self._path.at(np.zeros(1))
        outputs = yield from outputs_at(start)
        return float(problem.read(outputs)[0])

    def ask(self, alphas: Floats) -> Steps[tuple[Floats, Floats]]:
        problem = self._problem
        images, velocities = self._path.at(alphas)
        known = yield from evaluated(problem.rows(images))
        return known.outputs, known.contributions * velocities


def _not_applicable(facts: Facts) -> str | None:
    if facts.traits.has_space:
        return None
    return "blur_ig blurs images, and this model takes none; use integrated_gradients"


BLUR_IG = MethodSpec(
    name="blur_ig",
    attribute=blur_ig,
    completeness=(Completeness.ASYMPTOTIC,),
    least_points=one_point,
    usual_points=lambda _facts: 128,
    cost="what the tolerance takes, from 4",
    options=(
        Number(
            "sigma_max",
            SIGMA_MAX,
            0.01,
            1.0,
            "the standard deviation of the largest blur, as a share of the longer side",
        ),
    ),
    not_applicable=_not_applicable,
    description="the path integral of the gradient from the blurred image to the image",
    citation="Xu, Venugopalan and Sundararajan, CVPR 2020",
)
