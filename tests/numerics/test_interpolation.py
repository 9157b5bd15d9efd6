"""Interpolation of maps, against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from service.numerics.interpolation import resized

SIZES = [
    ((4,), (9,)),
    ((1,), (5,)),
    ((7,), (3,)),
    ((2, 3), (8, 9)),
    ((5, 4), (5, 4)),
    ((1, 1), (3, 2)),
    ((6, 2), (4, 7)),
    ((7, 7), (224, 224)),
    ((2, 3, 4), (5, 5, 5)),
]


@pytest.mark.parametrize(("size", "wanted"), SIZES)
def test_it_is_torch_s_interpolation(size: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=size)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    theirs = functional.interpolate(torch.from_numpy(values)[None, None], size=wanted, mode=mode, align_corners=False)
    np.testing.assert_allclose(resized(values, wanted), theirs[0, 0].numpy(), rtol=1e-12, atol=1e-12)


def test_the_same_size_changes_nothing() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3))
    assert np.array_equal(resized(values, values.shape), values)


def test_twice_the_size_puts_two_values_a_quarter_of_a_cell_to_each_side() -> None:
    assert resized(np.array([0.0, 8.0]), (4,)).tolist() == [0, 2, 6, 8]


def test_a_constant_map_stays_constant() -> None:
    np.testing.assert_allclose(resized(np.full((3, 5), 0.7), (11, 13)), 0.7, rtol=1e-15)
