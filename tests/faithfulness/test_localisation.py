"""Boxes around objects: by hand, against scikit-image's regions, and against Quantus where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from skimage.measure import label, regionprops

from service.domain import Floats
from service.faithfulness.localisation import NO_BOX, NOTHING_POSITIVE, largest_part, overlap
from service.faithfulness.subject import Measured
from tests.faithfulness.conftest import Judge, measure


def figures(judge: Judge, row: Floats, values: Floats, boxes: Sequence[tuple[int, ...]], *names: str) -> list[Measured]:
    return judge.figures(row, values, *(replace(measure(name), boxes=tuple(boxes)) for name in names))


def test_what_points_at_a_box(digits: Judge, images: Floats) -> None:
    values = np.zeros((8, 8))
    values[2, 3], values[6, 6], values[0, 0] = 3, 1, -5
    names = "pointing_game", "energy_pointing_game", "localisation"
    found = figures(digits, images[0], values, [(2, 3, 4, 5)], *names)
    assert [one.value for one in found] == [1.0, 0.75, 0.25]  # one pixel of a box of four
    found = figures(digits, images[0], values, [(3, 3, 8, 8)], *names)
    assert [one.value for one in found] == [0.0, 0.25, 0.0]
    (near,) = digits.figures(images[0], values, replace(measure("pointing_game", tolerance=1), boxes=((3, 3, 8, 8),)))
    assert near.value == 1.0
    both = figures(digits, images[0], values, [(3, 3, 8, 8), (2, 3, 3, 4)], *names)
    assert [one.value for one in both] == [1.0, 1.0, 1.0]


def test_where_there_is_nothing_to_say(digits: Judge, images: Floats) -> None:
    assert figures(digits, images[0], np.ones(64), [], "pointing_game")[0].reason == NO_BOX
    assert figures(digits, images[0], -np.ones(64), [(0, 0, 1, 1)], "localisation")[0].reason == NOTHING_POSITIVE


def test_the_largest_part_is_scikit_images() -> None:
    draws = np.random.default_rng(0)
    for _ in range(20):
        mask = draws.random((14, 11)) < 0.3
        expected = max(regionprops(label(mask, connectivity=2)), key=lambda part: part.area)
        assert largest_part(mask) == expected.bbox


def test_overlap_is_that_of_the_pixels() -> None:
    draws = np.random.default_rng(1)
    for _ in range(20):
        masks, boxes = [], []
        for _ in range(2):
            (top, bottom), (left, right) = (np.sort(draws.choice(10, 2, replace=False)).tolist() for _ in range(2))
            mask = np.zeros((10, 10), dtype=np.bool_)
            mask[top:bottom, left:right] = True
            masks.append(mask)
            boxes.append((top, left, bottom, right))
        assert overlap(*boxes) == pytest.approx((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def test_both_games_are_quantuss(digits: Judge, images: Floats) -> None:
    """Its relevance mass is of maps without negative parts the same."""
    quantus: Any = pytest.importorskip("quantus", reason="quantus is installed by whoever wants these")
    values = np.abs(np.random.default_rng(2).normal(size=(12, 1, 8, 8)))
    masks = np.zeros((12, 1, 8, 8), dtype=np.bool_)
    masks[:, :, 2:6, 1:5] = True
    rows = images.reshape(-1, 1, 8, 8).astype(np.float32)
    for name, metric in (
        ("pointing_game", quantus.PointingGame(normalise=False, abs=False, disable_warnings=True)),
        ("energy_pointing_game", quantus.RelevanceMassAccuracy(normalise=False, abs=False, disable_warnings=True)),
    ):
        expected = metric(None, rows, np.zeros(12, dtype=int), values, s_batch=masks, device="cpu")
        found = [
            figures(digits, row, map_, [(2, 1, 6, 5)], name)[0].value for row, map_ in zip(images, values, strict=True)
        ]
        assert found == pytest.approx([float(value) for value in expected], abs=1e-5)
