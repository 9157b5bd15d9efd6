"""The figures of the checks, against scipy's and against what they must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from service.checking.figures import importance, random_halves, rank_correlation, ranks

VALUES = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=40)


@given(VALUES)
def test_ranks_and_their_correlation_are_scipys(pairs: list[tuple[int, int]]) -> None:
    one, other = np.array(pairs, dtype=np.float64).T

    assert ranks(one) == pytest.approx(rankdata(one))
    if np.ptp(one) and np.ptp(other):
        assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    else:
        assert math.isnan(rank_correlation(one, other))


def test_no_limit_admits_what_has_no_correlation() -> None:
    for values in ([1.0], [], [1.0, math.nan, 2.0]):
        assert not rank_correlation(np.array(values), np.array(values)) >= -1


def test_importance_has_no_sign() -> None:
    assert importance(np.array([[1.0, -4.0], [-3.0, 0.0]])).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("rows", [2, 7, 128])
def test_halves_share_no_row(rows: int) -> None:
    halves = list(random_halves(rows, 3, seed=1))

    assert len(halves) == 3
    for one, other in halves:
        assert len(one) == len(other) == rows // 2
        assert len({*one.tolist(), *other.tolist()}) == rows // 2 * 2
    assert [one.tolist() for one, _ in halves] == [one.tolist() for one, _ in random_halves(rows, 3, seed=1)]
