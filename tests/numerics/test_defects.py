"""What nodes miss between them, of paths whose outputs are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.numerics.defects import HiddenChanges, path_defects


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 2**32))
def test_a_derivative_that_is_linear_is_not_missed_by_evenly_spaced_nodes(paths: int, nodes: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    start, slope, bend = draws.normal(size=(3, paths))
    line = np.repeat(np.arange(paths), nodes)
    alphas = np.tile((np.arange(nodes) + 0.5) / nodes, paths)
    order = draws.permutation(len(line))
    line, alphas = line[order], alphas[order]
    outputs = start[line] + slope[line] * alphas + bend[line] * alphas**2
    derivatives = slope[line] + 2 * bend[line] * alphas
    path, middles, defects = path_defects(line, alphas, outputs, derivatives, start, start + slope + bend)
    np.testing.assert_allclose(defects, 0, atol=1e-12)
    assert (np.bincount(path) == nodes + 1).all()
    assert ((middles > 0) & (middles < 1)).all()


def test_each_path_tells_of_a_rise_and_a_fall_that_no_node_stands_on() -> None:
    line, alphas = np.repeat([0, 1], 4), np.tile([0.125, 0.375, 0.625, 0.875], 2)
    outputs = ((line == 1) & (alphas > 0.3) & (alphas < 0.7)).astype(np.float64)
    path, middles, defects = path_defects(line, alphas, outputs, np.zeros(8), np.zeros(2), np.zeros(2))
    assert np.bincount(path, np.abs(defects)).tolist() == [0, 2]
    assert sorted(middles[defects != 0].tolist()) == [0.25, 0.75]


@pytest.mark.parametrize("paths", [1, 4, 100])
def test_what_paths_have_in_common_does_not_cancel(paths: int) -> None:
    line, alphas = np.repeat(np.arange(paths), 4), np.tile([0.125, 0.375, 0.625, 0.875], paths)
    outputs = ((alphas > 0.3) & (alphas < 0.7)).astype(np.float64)
    hidden = HiddenChanges(np.zeros(paths), np.zeros(paths), alphas[:4])
    alone, common = hidden.learn(line, alphas, outputs, np.zeros(len(line)))
    np.testing.assert_allclose(alone, 2 / np.sqrt(paths))
    np.testing.assert_allclose(common, 1)
