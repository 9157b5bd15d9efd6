"""The figures of the checks, against what they must be."""

from __future__ import annotations

import numpy as np
import pytest

from service.lifecycle.checking.figures import importance, random_halves


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
