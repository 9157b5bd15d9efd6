"""Adaptive quadrature: the laws that every refinement keeps, and how fast it converges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import Floats
from service.numerics.refinement import Refinement

if TYPE_CHECKING:
    from tests.numerics.conftest import BentPath

UNHURRIED = settings(deadline=None, max_examples=50)
STARTS = st.tuples(st.just(1), st.integers(1, 12)) | st.tuples(st.integers(2, 7), st.integers(1, 3))
SPLITS = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 80)), max_size=6)


class Refined:
    """A refinement fed with arbitrary values, and the alphas and derivatives it was fed with."""

    def __init__(self, order: int, panels: int, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self.start, self.end = self._generator.normal(size=2)
        self.refinement = Refinement(self.start, self.end, order, panels)
        self.alphas: Floats = np.empty(0)
        self.derivatives: Floats = np.empty(0)
        self.learn()

    def learn(self) -> None:
        outputs, derivatives = self._generator.normal(size=(2, len(self.refinement.pending)))
        self.alphas = np.concatenate([self.alphas, self.refinement.pending])
        self.derivatives = np.concatenate([self.derivatives, derivatives])
        self.refinement.learn(outputs, derivatives)


@UNHURRIED
@given(STARTS, SPLITS, st.integers(0, 2**32))
def test_laws_of_any_refinement(start: tuple[int, int], splits: list[tuple[float, int]], seed: int) -> None:
    refined = Refined(*start, seed)
    refinement = refined.refinement
    cost = 2 if start[0] == 1 else 2 * start[0]
    for target, most in splits:
        error = refinement.sum_of_defects()
        pending = refinement.split(target, most)
        assert pending == len(refinement.pending) <= most
        assert (pending == 0) == (most < cost), "a split happens whenever one is affordable"
        assert refinement.sum_of_defects() == error, "the rule changes only when the new values are learnt"
        if pending:
            refined.learn()
    weights = refinement.weights()
    assert len(weights) == len(refined.alphas)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights >= 0).all()
    assert ((refined.alphas > 0) & (refined.alphas < 1)).all()

    defects, of_panel = refinement.defects()
    residual = refined.end - refined.start - weights @ refined.derivatives
    tilts = refinement._tilts().sum() if start[0] == 1 else 0.0
    assert defects.sum() - tilts == pytest.approx(residual, abs=1e-10)
    assert refinement.sum_of_defects() >= abs(residual + tilts) - 1e-10
    assert of_panel.sum() >= refinement.sum_of_defects() - 1e-10, "no gap is overlooked when panels are chosen"


@UNHURRIED
@given(STARTS, SPLITS, st.integers(0, 2**32))
def test_the_refined_rule_keeps_the_degree_of_exactness(
    start: tuple[int, int], splits: list[tuple[float, int]], seed: int
) -> None:
    refined = Refined(*start, seed)
    for target, most in splits:
        if refined.refinement.split(target, most):
            refined.learn()
    degrees = np.arange(2 * start[0])
    powers = refined.alphas[:, None] ** degrees
    np.testing.assert_allclose(refined.refinement.weights() @ powers, 1 / (degrees + 1), atol=1e-12)


@UNHURRIED
@given(st.integers(1, 12), SPLITS, st.integers(0, 2**32))
def test_midpoints_are_reused_and_never_evaluated_twice(
    panels: int, splits: list[tuple[float, int]], seed: int
) -> None:
    refined = Refined(1, panels, seed)
    for target, most in splits:
        if refined.refinement.split(target, most):
            refined.learn()
    order = np.argsort(refined.alphas)
    alphas, widths = refined.alphas[order], refined.refinement.weights()[order]
    assert (widths > 0).all(), "every evaluated node is still in use"
    assert (np.diff(alphas) > 1e-9).all()
    np.testing.assert_allclose(alphas, np.cumsum(widths) - widths / 2, atol=1e-12)


def test_the_worst_panel_is_split_first() -> None:
    def learn(refinement: Refinement) -> None:
        alphas = refinement.pending
        refinement.learn(np.maximum(alphas - 0.32, 0), (alphas > 0.32).astype(np.float64))

    refinement = Refinement(0.0, 0.68, order=1, panels=8)
    learn(refinement)
    assert refinement.split(target=1e-3, most=4) > 0
    assert (np.abs(refinement.pending - 0.32) < 0.2).all()


def test_uniform_midpoints_have_an_error_slope_of_minus_one_on_relu_paths(bent_paths: list[BentPath]) -> None:
    panels = np.array([8, 16, 32, 64, 128, 256, 512])
    errors = []
    for count in panels:
        residuals = []
        for path in bent_paths:
            refinement = Refinement(0.0, path.change, 1, int(count))
            alphas = refinement.pending
            refinement.learn(path.output(alphas), path.derivative(alphas))
            residuals.append(abs(path.change - refinement.weights() @ path.derivative(alphas)))
        errors.append(np.mean(residuals))
    slope = np.polyfit(np.log(panels), np.log(errors), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize(("order", "panels"), [(1, 8), (6, 1)])
def test_refinement_converges_on_piecewise_linear_paths(bent_paths: list[BentPath], order: int, panels: int) -> None:
    for path in bent_paths:
        refinement = Refinement(0.0, path.change, order, panels)
        alphas = refinement.pending
        refinement.learn(path.output(alphas), path.derivative(alphas))
        while refinement.sum_of_defects() > 1e-5:
            assert refinement.split(3e-6, 20_000 - len(alphas)), "the budget is spent"
            fresh = refinement.pending
            alphas = np.concatenate([alphas, fresh])
            refinement.learn(path.output(fresh), path.derivative(fresh))
        assert abs(path.change - refinement.weights() @ path.derivative(alphas)) <= 1e-5
