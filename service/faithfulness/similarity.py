"""How alike two explanations are: of a model and of the same with random weights, say.

    spearman        the rank correlation of the attributions, signs and all
    spearman_abs    that of their absolute values
    ssim            the structural similarity of two maps, each scaled to reach from 0 to 1
    hog             Pearson's correlation of histograms of oriented gradients of two such maps

Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, "Sanity checks for saliency maps", NeurIPS 2018, section 3.1. The
last two are of images, by scikit-image with its own defaults but for what a small map does not hold: the window of the
SSIM is 7 pixels, or the largest odd number that fits; a cell of the histograms 8 pixels a side, or a quarter of the
shorter one.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np

from service.domain import Floats
from service.numerics.ranking import rank_correlation

WINDOW, CELL = 7, 8


def similarities(one: Floats, other: Floats, space: tuple[int, int] | None = None) -> dict[str, float]:
    """By name, for attributions [components] of a model; of those of an image, whose height and width `space` is, the
    last two as well where scikit-image is installed. NaN where there is none, as between two flat maps."""
    found = {
        "spearman": rank_correlation(one, other),
        "spearman_abs": rank_correlation(np.abs(one), np.abs(other)),
    }
    if space is None or find_spec("skimage") is None:
        return found
    maps = scaled(one).reshape(space), scaled(other).reshape(space)
    return {**found, "ssim": ssim(*maps), "hog": hog_correlation(*maps)}


def scaled(values: Floats) -> Floats:
    """From 0 to 1; zeros where all are the same."""
    span = float(np.ptp(values))
    return (values - values.min()) / span if span else np.zeros_like(values)


def ssim(one: Floats, other: Floats) -> float:
    """The structural similarity of two maps from 0 to 1, [height, width] each."""
    from skimage.metrics import structural_similarity

    fitting = min(WINDOW, *one.shape)
    return float(structural_similarity(one, other, win_size=fitting - 1 + fitting % 2, data_range=1.0))


def hog_correlation(one: Floats, other: Floats) -> float:
    """Pearson's correlation of the histograms of oriented gradients of two maps, [height, width] each."""
    from skimage.feature import hog

    side = min(CELL, max(1, min(one.shape) // 4))
    first, second = (hog(values, pixels_per_cell=(side, side)) for values in (one, other))
    first, second = first - first.mean(), second - second.mean()
    spread = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / spread if spread else math.nan
