"""The sweep over all baselines: its laws, and how residuals are shared among the inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.domain import Floats, Indices
from service.numerics.sweep import Sweep

if TYPE_CHECKING:
    from tests.numerics.conftest import BentPath

UNHURRIED = settings(deadline=None)
STARTS = st.tuples(st.integers(1, 20), st.integers(1, 6))
INPUTS = 5
ROUNDS = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 400)), max_size=6)


def shared(sweep: Sweep, contributions: Floats, line: Indices, directions: Floats) -> Floats:
    """What the sweep makes of contributions [n, inputs] at nodes of the paths `line` [n]."""
    sums = np.zeros_like(directions)
    np.add.at(sums, line, contributions)
    return sweep.shared(sums, (contributions**2).sum(axis=0), directions)


class Swept:
    """A sweep fed with arbitrary values, and what it was fed with."""

    def __init__(self, paths: int, nodes: int, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self.changes = self._generator.normal(size=paths)
        self.directions = self._generator.normal(size=(paths, INPUTS))
        self.sweep = Sweep(self.changes, nodes, seed)
        self.line: Indices = np.empty(0, dtype=np.intp)
        self.alphas: Floats = np.empty(0)
        self.gradients: Floats = np.empty((0, INPUTS))
        self.learn()

    @property
    def contributions(self) -> Floats:
        """[n, inputs]"""
        return self.gradients * self.directions[self.line]

    def learn(self) -> None:
        pending = self.sweep.pending_line
        gradients = self._generator.normal(size=(len(pending), INPUTS))
        self.line = np.concatenate([self.line, pending])
        self.alphas = np.concatenate([self.alphas, self.sweep.pending_alphas])
        self.gradients = np.concatenate([self.gradients, gradients])
        self.sweep.learn((gradients * self.directions[pending]).sum(axis=1))

    def means(self) -> Floats:
        """Of the contributions on each path: [paths, inputs]."""
        return np.stack([self.contributions[self.line == path].mean(axis=0) for path in range(len(self.changes))])

    def shared(self) -> Floats:
        """The attributions of each path: [paths, inputs]."""
        return shared(self.sweep, self.contributions, self.line, self.directions)

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
    counts = np.bincount(swept.line, minlength=paths)
    assert (swept.sweep.counts == counts).all()
    assert counts.min() > 0, "every baseline counts"
    residuals = swept.changes - swept.means().sum(axis=1)
    np.testing.assert_allclose(swept.sweep.residuals, residuals, atol=1e-12)
    error = np.abs(residuals).mean()
    if swept.sweep.has_midpoints:
        error = max(error / np.sqrt(paths), abs(residuals.mean()))
    assert swept.sweep.path_error() == pytest.approx(error)


@UNHURRIED
@given(STARTS, ROUNDS, st.integers(0, 2**32))
def test_nodes_are_midpoints_or_spread_evenly_in_mirrored_pairs(
    start: tuple[int, int], rounds: list[tuple[float, int]], seed: int
) -> None:
    swept = Swept(*start, seed)
    swept.refine(rounds)
    for path in range(start[0]):
        alphas = np.sort(swept.alphas[swept.line == path])
        count = len(alphas)
        assert 0 <= alphas[0] <= alphas[-1] <= 1
        assert count == 1 or np.diff(alphas).min() > 1e-3 / count, "none twice"
        if start[1] >= 4:
            np.testing.assert_allclose(alphas, (np.arange(count) + 0.5) / count, atol=1e-12)
        elif count > 1:
            np.testing.assert_allclose(alphas + alphas[::-1], 1, atol=1e-12)
            within = np.histogram(alphas, np.arange(count // 2 + 1) / (count // 2))[0]
            assert (within == 2).all()


@pytest.mark.parametrize("paths", [1, 2, 7, 128])
def test_paths_begin_in_strata_of_their_own(paths: int) -> None:
    begins = Sweep(np.ones(paths), 1, 3).pending_alphas
    assert sorted((begins * paths).astype(int)) == list(range(paths))


def test_the_seed_decides_which_path_begins_where() -> None:
    changes = np.ones(50)
    one, same, other = (Sweep(changes, 3, seed).pending_alphas for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


@pytest.mark.parametrize(("points", "gain"), [(200, 5), (256, 3), (512, 20)])
def test_the_mean_over_paths_errs_far_less_than_independent_draws(
    bent_paths: list[BentPath], points: int, gain: int
) -> None:
    """The error of the mean derivative against its known value, before residuals are shared, which makes it zero."""
    paths = bent_paths
    changes = np.array([path.change for path in paths])
    generator = np.random.default_rng(0)
    swept, drawn = [], []
    for seed in range(40):
        sweep = Sweep(changes, points // 128, seed)
        while True:
            values = [
                paths[k].derivative(alpha) for k, alpha in zip(sweep.pending_line, sweep.pending_alphas, strict=True)
            ]
            sweep.learn(np.array(values))
            if not sweep.refine(0.0, points - int(sweep.counts.sum())):
                break
        swept.append(sweep.residuals.mean())
        lines, alphas = generator.integers(0, 128, points), generator.uniform(size=points)
        drawn.append(np.mean([paths[k].derivative(a) for k, a in zip(lines, alphas, strict=True)]) - changes.mean())
    assert np.mean(np.square(drawn)) > gain * np.mean(np.square(swept))


@UNHURRIED
@given(STARTS, ROUNDS, st.integers(0, 2**32))
def test_every_path_sums_to_its_change(start: tuple[int, int], rounds: list[tuple[float, int]], seed: int) -> None:
    swept = Swept(*start, seed)
    assume(len(swept.line) > 1)
    swept.refine(rounds)
    np.testing.assert_allclose(swept.shared().sum(axis=1), swept.changes, atol=1e-9)


@UNHURRIED
@given(st.tuples(st.integers(2, 20), st.integers(1, 6)), ROUNDS, st.integers(0, 2**32))
def test_residuals_are_shared_as_in_a_constrained_least_squares_fit(
    start: tuple[int, int], rounds: list[tuple[float, int]], seed: int
) -> None:
    """Of all attributions with the right sum, those nearest to the means by the inputs' variances: by its equations."""
    swept = Swept(*start, seed)
    swept.refine(rounds)
    shared, means = swept.shared(), swept.means()
    regressors = swept.directions[swept.line]
    variances = []
    for at in range(INPUTS):
        (slope,), *_ = np.linalg.lstsq(regressors[:, [at]], swept.contributions[:, at])
        variances.append(((swept.contributions[:, at] - slope * regressors[:, at]) ** 2).sum())
    variances = np.array(variances) / (regressors**2).sum(axis=0)
    for path, change in enumerate(swept.changes):
        precision = np.diag(1 / (swept.directions[path] ** 2 * variances))
        conditions = np.block([[precision, np.ones((INPUTS, 1))], [np.ones((1, INPUTS)), np.zeros((1, 1))]])
        fit = np.linalg.solve(conditions, np.append(precision @ means[path], change))
        np.testing.assert_allclose(shared[path], fit[:INPUTS], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
@pytest.mark.parametrize("paths", [1, 16, 128])
def test_where_the_derivatives_are_constant_rounding_is_not_taken_for_a_signal(paths: int, nodes: int) -> None:
    """A linear model, whose deployed ends differ from the twin's by float32 rounding."""
    generator = np.random.default_rng(paths)
    directions = generator.normal(size=(paths, 38))
    contributions = directions * generator.normal(size=38) * 10 ** generator.uniform(-6, 0, 38)
    derivatives = contributions.sum(axis=1)
    sweep = Sweep(derivatives + 1e-7, nodes, 0)
    line = sweep.pending_line
    sweep.learn(derivatives[line])
    values = shared(sweep, contributions[line], line, directions)
    np.testing.assert_allclose(values, contributions, rtol=1e-9, atol=1e-12)


@UNHURRIED
@given(st.integers(1, 20), st.integers(0, 2**32))
def test_an_unaffordable_refinement_changes_nothing(paths: int, seed: int) -> None:
    swept = Swept(paths, 4, seed)
    before = swept.sweep.path_error()
    assert swept.sweep.refine(0.0, 7) == 0
    assert swept.sweep.path_error() == before


def test_the_sweep_converges_on_piecewise_linear_paths(bent_paths: list[BentPath]) -> None:
    sweep = Sweep(np.array([path.change for path in bent_paths]), 4, 0)

    def learn() -> None:
        derivatives = np.empty(len(sweep.pending_alphas))
        for k, path in enumerate(bent_paths):
            mine = sweep.pending_line == k
            derivatives[mine] = path.derivative(sweep.pending_alphas[mine])
        sweep.learn(derivatives)

    learn()
    while sweep.path_error() > 0.01:
        assert sweep.refine(0.01, 100_000 - int(sweep.counts.sum())), "the budget is spent"
        learn()
    assert abs(sweep.residuals.mean()) <= 0.01
