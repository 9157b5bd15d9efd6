"""Errors read from vectors: what the stencils integrate, what they say of random walks and of smooth paths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import Floats
from service.numerics.cells import (
    SAFETY,
    SAFETY_DEVIATION,
    SAFETY_MEAN,
    Grouping,
    Stencils,
    estimate,
    local_errors,
    stencils,
)
from service.numerics.panels import vector_errors
from service.numerics.refinement import UNSEEN, Refinement


def uneven(widths: list[float]) -> tuple[Stencils, Floats, Floats]:
    """Stencils of cells of such widths with their nodes in the middle; the nodes' places and the cells' borders."""
    borders = np.concatenate([[0.0], np.cumsum(widths)]) / sum(widths)
    places = (borders[:-1] + borders[1:]) / 2
    return stencils(places, borders, np.arange(len(widths))), places, borders


WIDTHS = st.lists(st.sampled_from([1.0, 3.0, 9.0]), min_size=5, max_size=30)


@settings(deadline=None, max_examples=60)
@given(WIDTHS)
def test_second_and_fourth_differences_integrate_what_they_say(widths: list[float]) -> None:
    stencil, places, borders = uneven(widths)
    cells = np.diff(borders)
    for degree in range(5):
        values = places**degree
        exact = np.diff(borders ** (degree + 1)) / (degree + 1)
        second = cells * values + (stencil.second * values[stencil.nodes]).sum(axis=1)
        fourth = second + (stencil.fourth * values[stencil.nodes]).sum(axis=1)
        halves = (stencil.halves * values[stencil.nodes]).sum(axis=2)
        if degree <= 2:
            np.testing.assert_allclose(second, exact, atol=1e-10)
            np.testing.assert_allclose(halves.sum(axis=0), exact, atol=1e-10)
        np.testing.assert_allclose(fourth, exact, atol=1e-9)


def test_what_is_kept_of_nodes_is_of_their_places_and_stays_as_it_was() -> None:
    """However they are numbered, and whatever was done with it."""
    own, places, borders = uneven([3.0, 1, 1, 1, 3, 9])
    before = [array.copy() for array in (own.second, own.fourth, own.rough, own.halves)]
    order = np.array([4, 2, 0, 5, 1, 3])
    renumbered = stencils(places, borders, order)
    np.testing.assert_array_equal(renumbered.nodes, order[own.nodes])
    vectors = np.random.default_rng(0).normal(size=(6, 3))
    again = local_errors(vectors[np.argsort(order)], renumbered, Grouping())
    assert estimate(again, renumbered).safety == estimate(local_errors(vectors, own, Grouping()), own).safety
    wider = stencils(places * 2, borders * 2, order)
    np.testing.assert_allclose(wider.second, 2 * own.second, rtol=1e-12)
    for array, known in zip((own.second, own.fourth, own.rough, own.halves), before, strict=True):
        np.testing.assert_array_equal(array, known)


@pytest.mark.parametrize("widths", [[1.0] * 12, [9.0, 3, 1, 1, 1, 3, 3, 1, 1, 1, 3, 9]])
def test_of_a_random_walk_both_estimates_are_its_root_mean_square_error(widths: list[float]) -> None:
    stencil, places, borders = uneven(widths)
    grid = np.unique(np.concatenate([np.linspace(0, 1, 4001), borders, places]))
    draws = np.random.default_rng(0).normal(size=(600, len(grid) - 1)) * np.sqrt(np.diff(grid))
    walks = np.concatenate([np.zeros((600, 1)), np.cumsum(draws, axis=1)], axis=1)
    areas = np.concatenate(
        [np.zeros((600, 1)), np.cumsum((walks[:, 1:] + walks[:, :-1]) / 2 * np.diff(grid), axis=1)], axis=1
    )
    at_nodes = walks[:, np.searchsorted(grid, places)]
    errors = np.diff(areas[:, np.searchsorted(grid, borders)], axis=1) - np.diff(borders) * at_nodes
    for coefficients, scale in ((stencil.second, stencil.rough[0]), (stencil.fourth, stencil.rough[1])):
        estimates = scale * np.einsum("ck,wck->wc", coefficients, at_nodes[:, stencil.nodes])
        ratio = np.sqrt((estimates**2).mean(axis=0) / (errors**2).mean(axis=0))
        np.testing.assert_allclose(ratio, 1, atol=0.15)


def test_a_smooth_path_is_corrected_and_a_bent_one_is_not() -> None:
    stencil, places, _ = uneven([1.0] * 12)
    smooth = np.stack([np.exp(2 * places), np.sin(3 * places)], axis=1)
    bent = (places[:, None] > np.random.default_rng(0).uniform(size=40)) * np.random.default_rng(1).normal(size=40)
    assert estimate(local_errors(smooth, stencil, Grouping()), stencil).is_corrected
    assert not estimate(local_errors(bent, stencil, Grouping()), stencil).is_corrected
    assert not estimate(local_errors(smooth, stencil, Grouping()), stencil, is_fixed=True).is_corrected


@pytest.mark.parametrize(("kinks", "least", "most"), [(1, 0.999, 1.2), (2, 0.999, 2.2), (200, 15, 60)])
def test_the_factor_follows_the_number_of_independent_kinks(kinks: int, least: float, most: float) -> None:
    """Behind one kink all inputs err alike, behind many each on its own; and 95 of 100 errors are within."""
    draws, ratios = np.random.default_rng(kinks), []
    stencil, places, borders = uneven([1.0] * 40)
    for _ in range(200):
        at, jumps = draws.uniform(0.05, 0.95, kinks), draws.normal(size=(kinks, 60))
        vectors = (places[:, None] > at) @ jumps
        errors = local_errors(vectors, stencil, Grouping())
        told = estimate(errors, stencil)
        assert not told.is_corrected
        assert least <= errors.terms <= most
        true = np.abs(np.diff(borders) @ vectors - (1 - at) @ jumps).sum()
        ratios.append(true / (told.safety * told.inputs.sum()))
    assert np.mean(np.array(ratios) <= 1) >= 0.95


@pytest.mark.parametrize("cells", [40, 65, 512])
def test_many_cells_that_err_alike_are_one_term(cells: int) -> None:
    """Whatever becomes of a whole path, each input errs by its share of the same walk: there is one term."""
    draws = np.random.default_rng(0)
    stencil, _, _ = uneven([1.0] * cells)
    walk = np.cumsum(draws.normal(size=cells))
    errors = local_errors(np.outer(walk, draws.normal(size=100)), stencil, Grouping())
    assert errors.terms == pytest.approx(1)
    assert estimate(errors, stencil).safety == pytest.approx(SAFETY_MEAN + SAFETY_DEVIATION)


def test_units_are_summed_before_they_are_compared() -> None:
    stencil, places, _ = uneven([1.0] * 8)
    steps = np.where(places > 0.4, 1.0, 0.0)
    opposite = np.stack([steps, -steps, steps, steps], axis=1)
    alone = estimate(local_errors(opposite, stencil, Grouping()), stencil).inputs
    runs = estimate(local_errors(opposite, stencil, Grouping(run=2)), stencil).inputs
    membership = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    columns = estimate(local_errors(opposite, stencil, Grouping(membership=membership)), stencil).inputs
    np.testing.assert_allclose(runs, [0, 2 * alone[0]], atol=1e-15)
    np.testing.assert_allclose(columns, runs, atol=1e-15)


def test_what_shows_only_in_the_outputs_is_found() -> None:
    """A gradient that is zero but on a thousandth of the path, where the output rises by one."""
    refinement, vectors = Refinement(0.0, 1.0, 1, 4), np.empty((0, 2))

    def learn() -> None:
        nonlocal vectors
        alphas = refinement.pending
        inside = (alphas > 0.6180) & (alphas < 0.6190)
        fresh = np.stack([1000.0 * inside, np.zeros_like(alphas)], axis=1)
        vectors = np.concatenate([vectors, fresh])
        refinement.learn(np.clip((alphas - 0.6180) * 1000, 0, 1), fresh.sum(axis=1))
        stencil = refinement.stencils()
        assert stencil is not None
        refinement.assess(vector_errors(vectors, stencil, Grouping()))

    learn()
    assert refinement.error() == pytest.approx(UNSEEN)
    assert refinement.is_searching
    while refinement.error() > 0.01:
        assert refinement.split(0.003, 400 - refinement.count)
        learn()
    np.testing.assert_allclose(refinement.weights() @ vectors, [1, 0], atol=0.01)


def test_where_all_is_rounding_the_error_is_that() -> None:
    """Quadratics, whose corrected rule is exact, of which float32 leaves seven digits."""
    stencil, places, borders = uneven([1.0] * 12)
    draws, ratios = np.random.default_rng(3), []
    for _ in range(60):
        powers = draws.normal(size=(3, 25))
        vectors = (places[:, None] ** np.arange(3) @ powers).astype(np.float32).astype(np.float64)
        told = estimate(local_errors(vectors, stencil, Grouping()), stencil)
        assert told.is_corrected
        weights = np.diff(borders)
        np.add.at(weights, stencil.nodes, stencil.second)
        true = np.abs(weights @ vectors - powers.T @ [1, 1 / 2, 1 / 3]).sum()
        ratios.append(true / (SAFETY * told.inputs.sum()))
    assert np.max(ratios) <= 1
    assert np.median(ratios) >= 0.005


def test_errors_of_a_smooth_path_keep_their_sign_from_cell_to_cell() -> None:
    """Wide cells at the ends, beside narrow ones, as where only the middle was refined."""
    stencil, places, borders = uneven([3.0, *[1.0] * 30, 3.0])
    weights = np.diff(borders)
    np.add.at(weights, stencil.nodes, stencil.second)
    draws, ratios = np.random.default_rng(4), []
    for _ in range(60):
        rates, sizes = draws.uniform(2, 6, 25), draws.normal(size=25)
        vectors = sizes * np.exp(-rates * places[:, None])
        told = estimate(local_errors(vectors, stencil, Grouping()), stencil)
        assert told.is_corrected
        true = np.abs(weights @ vectors - sizes * (1 - np.exp(-rates)) / rates).sum()
        ratios.append(true / (SAFETY * told.inputs.sum()))
    assert np.max(ratios) <= 1
