"""The error of composite Gauss rules: Legendre coefficients, random walks, smooth paths, and what shows in no node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.polynomial import legendre

from service.domain import Floats
from service.numerics.cells import Grouping
from service.numerics.panels import PanelErrors, Panels, vector_errors
from service.numerics.quadrature import gauss_legendre
from service.numerics.refinement import UNSEEN, Refinement

INPUTS, ORDER = 40, 6
Path = Callable[[Floats], Floats]


def refined(integrand: Path, primitive: Callable[[Floats], Floats], panels: int) -> tuple[Refinement, Floats]:
    """A rule on `panels`, and its integral; `integrand` gives [n, inputs], `primitive` [n, inputs] its integrals."""
    start, end = primitive(np.array([0.0, 1.0])).sum(axis=1)
    refinement = Refinement(float(start), float(end), ORDER, panels)
    alphas = refinement.pending
    vectors = integrand(alphas)
    refinement.learn(primitive(alphas).sum(axis=1), vectors.sum(axis=1))
    stencil = refinement.stencils()
    assert isinstance(stencil, Panels)
    refinement.assess(vector_errors(vectors, stencil, Grouping()))
    return refinement, refinement.weights() @ vectors


def test_coefficients_are_those_of_the_polynomial_through_the_nodes() -> None:
    coefficients = np.random.default_rng(0).normal(size=(ORDER, 3))
    values = legendre.legval(2 * gauss_legendre(ORDER).nodes - 1, coefficients).T
    errors = vector_errors(values, Panels(np.arange(ORDER)[None], np.array([0.5])), Grouping())
    assert isinstance(errors, PanelErrors)
    norms = np.abs(coefficients / 2).sum(axis=1)
    np.testing.assert_allclose(errors.whole, norms[0])
    np.testing.assert_allclose(errors.low, np.hypot(norms[2], norms[3]))
    np.testing.assert_allclose(errors.high, np.hypot(norms[4], norms[5]))
    np.testing.assert_allclose(errors.squares, (coefficients[4:] ** 2).sum(axis=0) / 4)


def test_on_one_unit_the_entries_of_its_inputs_cancel() -> None:
    values = np.random.default_rng(0).normal(size=(ORDER, 1)) * [[1.0, -1.0, 1.0, 1.0]]
    errors = vector_errors(values, Panels(np.arange(ORDER)[None], np.ones(1)), Grouping(run=2))
    assert isinstance(errors, PanelErrors)
    np.testing.assert_allclose(errors.squares[0], 0, atol=1e-30)
    assert errors.squares[1] > 0


@pytest.mark.parametrize("panels", [1, 2, 5])
@pytest.mark.parametrize("kinks", [12, 400])
def test_where_the_integrand_jumps_the_error_is_that_of_a_walk(panels: int, kinks: int) -> None:
    draws = np.random.default_rng(kinks + panels)
    ratios = []
    for _ in range(40):
        places, jumps = np.sort(draws.uniform(size=kinks)), draws.normal(size=(kinks, INPUTS))
        refinement, found = refined(
            lambda alphas, p=places, j=jumps: (alphas[:, None] > p) @ j,  # type: ignore[misc]
            lambda alphas, p=places, j=jumps: np.maximum(alphas[:, None] - p, 0) @ j,  # type: ignore[misc]
            panels,
        )
        true = np.abs(found - (1 - places) @ jumps).sum()
        ratios.append(true / refinement.error())
    assert np.mean(np.array(ratios) <= 1) >= 0.9
    assert np.median(ratios) >= 0.2


@pytest.mark.parametrize("panels", [1, 2, 4])
@pytest.mark.parametrize("pole", [0.2, 0.5, 1.5])
def test_on_a_smooth_path_it_is_told_over_many_powers_of_ten(pole: float, panels: int) -> None:
    """Every input has a pole of its own beside the path, `pole` away and more."""
    draws = np.random.default_rng(int(10 * pole) + panels)
    ratios = []
    for _ in range(40):
        at = draws.uniform(-0.5, 1.5, INPUTS)
        away, sizes = pole * (1 + draws.uniform(size=INPUTS)), draws.normal(size=INPUTS)
        refinement, found = refined(
            lambda alphas, a=at, b=away, s=sizes: s / (1 + ((alphas[:, None] - a) / b) ** 2),  # type: ignore[misc]
            lambda alphas, a=at, b=away, s=sizes: s * b * np.arctan((alphas[:, None] - a) / b),  # type: ignore[misc]
            panels,
        )
        ends = sizes * away * (np.arctan((1 - at) / away) - np.arctan(-at / away))
        resolved = np.finfo(np.float32).eps * np.abs(ends).sum()
        ratios.append(max(np.abs(found - ends).sum(), resolved / 3) / refinement.error())
    assert np.mean(np.array(ratios) <= 1) >= 0.95
    assert np.median(ratios) >= 0.03


def test_what_shows_only_in_the_outputs_is_found() -> None:
    """A thousandth of the path, between two nodes, on which the output rises by one."""
    refinement, _ = refined(
        lambda alphas: np.where((alphas > 0.5) & (alphas < 0.501), 1000.0, 0.0)[:, None],
        lambda alphas: np.clip((alphas - 0.5) * 1000, 0, 1)[:, None],
        1,
    )
    assert refinement.error() == pytest.approx(UNSEEN, abs=1e-6)
    assert refinement.is_searching


@pytest.mark.parametrize("panels", [2, 3, 5, 9])
def test_where_the_integrand_has_corners_the_error_is_theirs(panels: int) -> None:
    """Slopes that jump (ELU) on a smooth path, by vectors whose sum does not, so that it is right and they are not."""
    draws, ratios = np.random.default_rng(panels), []
    for _ in range(60):
        places, bends = draws.uniform(size=30), draws.normal(size=(30, INPUTS))
        bends -= bends.mean(axis=1, keepdims=True)
        curves = draws.normal(size=(3, INPUTS))

        def integrand(alphas: Floats, p: Floats = places, b: Floats = bends, c: Floats = curves) -> Floats:
            bent: Floats = np.maximum(alphas[:, None] - p, 0) @ b + alphas[:, None] ** np.arange(3) @ c
            return bent

        def primitive(alphas: Floats, p: Floats = places, b: Floats = bends, c: Floats = curves) -> Floats:
            powers = np.arange(1, 4)
            bent: Floats = np.maximum(alphas[:, None] - p, 0) ** 2 @ b / 2 + alphas[:, None] ** powers / powers @ c
            return bent

        refinement, found = refined(integrand, primitive, panels)
        true = np.abs(found - np.diff(primitive(np.array([0.0, 1.0])), axis=0)[0]).sum()
        ratios.append(true / refinement.error())
    assert np.mean(np.array(ratios) <= 1) >= 0.95
    assert np.median(ratios) >= 0.1


def test_ends_in_float32_tell_no_change_that_is_less_than_their_rounding() -> None:
    """Probabilities of nearly one: the deployed model's in float32, at the nodes of logits in float64."""
    start, slope = 0.9997, 2e-4 * np.ones(INPUTS) / INPUTS
    ends = np.array([start, start + 2e-4]).astype(np.float32).astype(np.float64)
    refinement = Refinement(float(ends[0]), float(ends[1]), ORDER, 1)
    alphas = refinement.pending
    vectors = np.outer(1 + 0.01 * (alphas - 0.5), slope)
    refinement.learn(start + 2e-4 * (alphas + 0.005 * (alphas**2 - alphas)), vectors.sum(axis=1))
    stencil = refinement.stencils()
    assert isinstance(stencil, Panels)
    refinement.assess(vector_errors(vectors, stencil, Grouping()))
    assert abs(ends[1] - ends[0] - 2e-4) > 1e-8, "the ends do differ by something else"
    assert refinement.error() <= 1e-6 * 2e-4
