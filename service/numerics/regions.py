"""Overlapping regions of a grid: dilated segments, and their greedy ranking by density.

The cells of a grid are numbered row by row; a region is a set of them. Regions are held together as one list of pairs
(cell, region): they are small, so the list is far shorter than a mask for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.domain import Floats, Indices


@dataclass(frozen=True, slots=True)
class Regions:
    """So many regions (`count`), by their members: `cell` [n], ascending, and for each a `region` [n] it is in."""

    cell: Indices
    region: Indices
    count: int


def dilated(labels: Indices, radius: int) -> Regions:
    """The segments of `labels` [height, width], each with all cells at most `radius` away from one of its own.

    Distances are Euclidean, from the middle of a cell to that of another. A cell outside a segment is nearest to one
    on the segment's rim, so only rims are followed.
    """
    height, width = labels.shape
    count = int(labels.max()) + 1
    wide = width + 2 * radius
    reached = np.zeros((height + 2 * radius, wide, count), dtype=bool)
    inside = reached[radius : radius + height, radius : radius + width]
    np.put_along_axis(inside, labels[:, :, None], True, axis=2)
    row, column = np.nonzero(_rims(labels))
    corner = (row * wide + column) * count + labels[row, column]
    flat = reached.reshape(-1)
    for down, right in _disk(radius).tolist():
        flat[corner + (down * wide + right) * count] = True
    cell, region = np.divmod(np.flatnonzero(inside), count)
    return Regions(cell, region, count)


def _rims(labels: Indices) -> NDArray[np.bool_]:
    """Which cells have a cell of another segment above, below or beside them."""
    rims = np.zeros(labels.shape, dtype=bool)
    below, beside = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    rims[1:] |= below
    rims[:-1] |= below
    rims[:, 1:] |= beside
    rims[:, :-1] |= beside
    return rims


def _disk(radius: int) -> Indices:
    """The cells of a disk, [n, 2], from the corner of the square around it."""
    steps = np.arange(-radius, radius + 1)
    return np.argwhere(steps[:, None] ** 2 + steps**2 <= radius**2)


def together(parts: Sequence[Regions]) -> Regions:
    """All regions of `parts`, numbered in their order."""
    firsts = np.cumsum([0, *(part.count for part in parts)])
    cell = np.concatenate([part.cell for part in parts])
    region = np.concatenate([part.region + first for part, first in zip(parts, firsts[:-1], strict=True)])
    ascending = np.argsort(cell, kind="stable")
    return Regions(cell[ascending], region[ascending], int(firsts[-1]))


def ranked_densities(regions: Regions, pixels: Floats, sums: Floats, least: float, area: float) -> Floats:
    """The density of the region that first covers each cell, regions being taken greedily: [cells].

    A cell stands for so many `pixels` [cells] with values that sum to `sums` [cells]. The density of a region is the
    mean value of its pixels that no region before it has covered; the densest comes next, of equals the first. Regions
    with fewer than `least` such pixels (over 0) are out. It ends when more than the share `area` of all pixels is
    covered, or when no region is left; what is not covered then has its own mean. No pixel's value is lost or counted
    twice: densities times pixels sum to the sum of the values.

    Each membership is looked at once when its cell is covered, and not once a round.
    """
    firsts = np.searchsorted(regions.cell, np.arange(len(pixels) + 1))
    memberships = np.diff(firsts)
    cells_of = _by_region(regions)
    open_pixels = _summed(pixels[regions.cell], regions.region, regions.count)
    open_sums = _summed(sums[regions.cell], regions.region, regions.count)
    densities, is_covered = np.zeros(len(pixels)), np.zeros(len(pixels), dtype=bool)
    total, covered = pixels.sum(), 0.0
    while covered / total <= area and (is_left := open_pixels >= least).any():
        gains = np.full(regions.count, -np.inf)
        np.divide(open_sums, open_pixels, out=gains, where=is_left)
        fresh = cells_of[int(np.argmax(gains))]
        fresh = fresh[~is_covered[fresh]]
        is_covered[fresh] = True
        size = pixels[fresh].sum()
        covered += size
        densities[fresh] = sums[fresh].sum() / size
        times = memberships[fresh]
        places = np.arange(times.sum()) + np.repeat(firsts[fresh] + times - np.cumsum(times), times)
        losing = regions.region[places]
        open_pixels -= _summed(np.repeat(pixels[fresh], times), losing, regions.count)
        open_sums -= _summed(np.repeat(sums[fresh], times), losing, regions.count)
    rest = ~is_covered
    if pixels[rest].any():
        densities[rest] = sums[rest].sum() / pixels[rest].sum()
    return densities


def _summed(values: Floats, region: Indices, count: int) -> Floats:
    """The sums of the `values` [n] in each `region` [n]: [count]."""
    return np.bincount(region, weights=values, minlength=count).astype(np.float64, copy=False)


def _by_region(regions: Regions) -> list[Indices]:
    """The cells of each region, ascending."""
    order = np.argsort(regions.region, kind="stable")
    sizes = np.bincount(regions.region, minlength=regions.count)
    return np.split(regions.cell[order], np.cumsum(sizes)[:-1])
