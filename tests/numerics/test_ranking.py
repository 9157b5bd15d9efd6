"""Ranks, their correlation and nDCG, against scipy's and scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import ndcg_score

from service.numerics.ranking import normalised_gain, rank_correlation, ranks

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


IMPORTANCES = st.integers(2, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(0.001, 10), min_size=n, max_size=n), st.permutations([float(place) for place in range(n)])
    )
)


@given(IMPORTANCES)
def test_normalised_gain_is_scikit_learns_ndcg(lists: tuple[list[float], list[float]]) -> None:
    reference, other = map(np.array, lists)

    assert normalised_gain(reference, other) == pytest.approx(ndcg_score([reference], [other]))
    assert normalised_gain(reference, reference) == pytest.approx(1)


def test_what_counts_for_nothing_has_no_gain() -> None:
    assert math.isnan(normalised_gain(np.zeros(3), np.arange(3.0)))


def test_a_swap_at_the_top_costs_more_than_one_at_the_bottom() -> None:
    reference = np.array([0.5, 0.3, 0.1, 0.05])

    top = normalised_gain(reference, np.array([0.3, 0.5, 0.1, 0.05]))
    bottom = normalised_gain(reference, np.array([0.5, 0.3, 0.05, 0.1]))

    assert top < bottom < 1
