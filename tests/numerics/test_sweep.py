"""The sweep over all baselines: its laws, and its control variate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import Floats
from service.numerics.sweep import Sweep

if TYPE_CHECKING:
    from tests.numerics.conftest import BentPath

UNHURRIED = settings(deadline=None)
STARTS = st.tuples(st.integers(1, 20), st.integers(1, 5))
ROUNDS = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 400)), max_size=6)


class Swept:
    """A sweep fed with arbitrary values, and what it was fed with."""

    def __init__(self, paths: int, nodes: int, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self.changes = self._generator.normal(size=paths)
        self.sweep = Sweep(self.changes, nodes)
        self.alphas: Floats = np.empty(0)
        self.derivatives: Floats = np.empty(0)
        self.learn()

    def learn(self) -> None:
        derivatives = self._generator.normal(size=len(self.sweep.pending_alphas))
        self.alphas = np.concatenate([self.alphas, self.sweep.pending_alphas])
        self.derivatives = np.concatenate([self.derivatives, derivatives])
        self.sweep.learn(derivatives)

    def refine(self, rounds: list[tuple[float, int]]) -> None:
        for target, most in rounds:
            pending = self.sweep.refine(target, most)
            assert pending == len(self.sweep.pending_alphas) == len(self.sweep.pending_line) <= most
            if pending:
                self.learn()


@UNHURRIED
@given(STARTS, ROUNDS, st.integers(0, 2**32))
def test_laws_of_any_sweep(start: tuple[int, int], rounds: list[tuple[float, int]], seed: int) -> None:
    paths = start[0]
    swept = Swept(*start, seed)
    swept.refine(rounds)
    sweep, weights = swept.sweep, swept.sweep.weights()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    of_paths = np.bincount(sweep.line, weights, minlength=paths)
    np.testing.assert_allclose(of_paths, 1 / paths, atol=1e-12, err_msg="every baseline counts, and counts alike")
    assert sweep.residuals.mean() == pytest.approx(swept.changes.mean() - weights @ swept.derivatives, abs=1e-12)
    assert sweep.path_error() == pytest.approx(np.abs(sweep.residuals).mean())


@UNHURRIED
@given(STARTS, ROUNDS, st.integers(0, 2**32))
def test_every_path_has_composite_midpoints_and_none_twice(
    start: tuple[int, int], rounds: list[tuple[float, int]], seed: int
) -> None:
    swept = Swept(*start, seed)
    swept.refine(rounds)
    for path in range(start[0]):
        alphas = np.sort(swept.alphas[swept.sweep.line == path])
        assert len(alphas) >= start[1]
        np.testing.assert_allclose(alphas, (np.arange(len(alphas)) + 0.5) / len(alphas), atol=1e-12)


@UNHURRIED
@given(st.tuples(st.integers(1, 20), st.integers(2, 5)), ROUNDS, st.integers(0, 2**32))
def test_the_control_variate_completes_the_sum_and_leaves_constants_alone(
    start: tuple[int, int], rounds: list[tuple[float, int]], seed: int
) -> None:
    swept = Swept(*start, seed)
    swept.refine(rounds)
    control, mean_residual = swept.sweep.control()
    controlled = swept.sweep.weights() - mean_residual * control
    assert controlled @ swept.derivatives == pytest.approx(swept.changes.mean(), abs=1e-9)
    assert controlled.sum() == pytest.approx(1, abs=1e-9)
    of_paths = np.bincount(swept.sweep.line, control, minlength=start[0])
    np.testing.assert_allclose(of_paths, 0, atol=1e-9, err_msg="a contribution that is constant on a path stays")


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
@pytest.mark.parametrize("paths", [1, 16, 128])
def test_where_the_derivatives_are_constant_rounding_is_not_taken_for_a_signal(paths: int, nodes: int) -> None:
    """A linear model, whose deployed ends differ from the twin's by float32 rounding."""
    generator = np.random.default_rng(paths)
    contributions = generator.normal(size=(paths, 38)) * 10 ** generator.uniform(-6, 0, 38)
    derivatives = contributions.sum(axis=1)
    sweep = Sweep(derivatives + 1e-7, nodes)
    sweep.learn(derivatives[sweep.pending_line])
    control, mean_residual = sweep.control()
    values = (sweep.weights() - mean_residual * control) @ contributions[sweep.line]
    np.testing.assert_allclose(values, contributions.mean(axis=0), rtol=1e-9, atol=1e-12)


@UNHURRIED
@given(st.integers(1, 20), st.integers(0, 2**32))
def test_an_unaffordable_refinement_changes_nothing(paths: int, seed: int) -> None:
    swept = Swept(paths, 2, seed)
    before = swept.sweep.path_error()
    assert swept.sweep.refine(0.0, 3) == 0
    assert swept.sweep.path_error() == before


def test_the_sweep_converges_on_piecewise_linear_paths(bent_paths: list[BentPath]) -> None:
    sweep = Sweep(np.array([path.change for path in bent_paths]), 4)

    def learn() -> None:
        derivatives = np.empty(len(sweep.pending_alphas))
        for k, path in enumerate(bent_paths):
            mine = sweep.pending_line == k
            derivatives[mine] = path.derivative(sweep.pending_alphas[mine])
        sweep.learn(derivatives)

    learn()
    while sweep.path_error() > 0.01:
        assert sweep.refine(0.01, 100_000 - len(sweep.line)), "the budget is spent"
        learn()
    assert abs(sweep.residuals.mean()) <= 0.01
