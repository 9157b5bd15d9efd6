"""Regions of a grid, against the same written out slowly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.domain import Floats, Indices
from service.numerics.regions import Regions, dilated, ranked_densities, together

UNHURRIED = settings(deadline=None)
SEEDS = st.integers(0, 2**32)
Masks = NDArray[np.bool_]


def masks_of(regions: Regions, cells: int) -> Masks:
    masks = np.zeros((regions.count, cells), dtype=bool)
    masks[regions.region, regions.cell] = True
    assert masks.sum() == len(regions.cell), "no pair comes twice"
    assert (np.diff(regions.cell) >= 0).all()
    return masks


def of_masks(masks: Masks) -> Regions:
    cell, region = np.nonzero(masks.T)
    return Regions(cell, region, len(masks))


def slowly_dilated(labels: Indices, radius: int) -> Masks:
    """Every cell with every other."""
    places = np.argwhere(np.ones(labels.shape, dtype=bool))
    is_near = ((places[:, None] - places) ** 2).sum(axis=-1) <= radius**2
    return np.array([(is_near & (labels.ravel() == label)).any(axis=1) for label in range(labels.max() + 1)])


def slowly_ranked(masks: Masks, pixels: Floats, sums: Floats, least: float, area: float) -> Floats:
    """Algorithm 1 of the paper, every density computed anew in every round."""
    result = np.full(len(pixels), np.nan)
    left = list(masks)
    while (~np.isnan(result) @ pixels) / pixels.sum() <= area:
        left = [mask for mask in left if pixels[mask & np.isnan(result)].sum() >= least]
        if not left:
            break
        fresh = [mask & np.isnan(result) for mask in left]
        gains = [sums[mask].sum() / pixels[mask].sum() for mask in fresh]
        best = int(np.argmax(gains))
        result[fresh[best]] = gains[best]
        del left[best]
    rest = np.isnan(result)
    result[rest] = sums[rest].sum() / pixels[rest].sum() if pixels[rest].sum() else 0.0
    return result


@UNHURRIED
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(0, 5), SEEDS)
def test_a_dilated_segment_is_all_that_lies_within_the_radius(
    height: int, width: int, segments: int, radius: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(segments, size=(height, width))
    regions = dilated(labels, radius)
    np.testing.assert_array_equal(masks_of(regions, labels.size), slowly_dilated(labels, radius))


@UNHURRIED
@given(
    st.integers(1, 30),
    st.integers(1, 12),
    st.floats(0.05, 0.9),
    st.sampled_from([0.25, 1.0, 3.0]),
    st.floats(0, 1),
    SEEDS,
)
def test_the_ranking_is_that_of_the_paper(
    cells: int, count: int, share: float, least: float, area: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    masks = generator.random((count, cells)) < share
    pixels = generator.integers(0, 4, cells).astype(np.float64)
    pixels[0] = 1
    sums = np.where(pixels > 0, generator.normal(size=cells), 0)
    ranked = ranked_densities(of_masks(masks), pixels, sums, least, area)
    slow, is_seen = slowly_ranked(masks, pixels, sums, least, area), pixels > 0
    np.testing.assert_allclose(ranked[is_seen], slow[is_seen], rtol=1e-12, atol=1e-12)
    assert ranked @ pixels == pytest.approx(sums.sum(), abs=1e-12), "no pixel is lost or counted twice"


def test_without_a_region_that_is_large_enough_all_cells_have_the_mean() -> None:
    regions = of_masks(np.array([[True, False, False], [False, True, False]]))
    ranked = ranked_densities(regions, np.ones(3), np.array([1.0, 2.0, 6.0]), least=2, area=1.0)
    np.testing.assert_array_equal(ranked, [3.0, 3.0, 3.0])


def test_parts_are_numbered_one_after_the_other() -> None:
    parts = [np.array([[1, 1, 0], [0, 0, 1]], dtype=bool), np.array([[0, 1, 1]], dtype=bool)]
    joined = together([of_masks(part) for part in parts])
    np.testing.assert_array_equal(masks_of(joined, 3), np.concatenate(parts))
