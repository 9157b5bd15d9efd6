"""The table of points counts what explanations took."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from service.domain import OutputSpace
from tests.accuracy.points import EG, IG, MIDPOINT, SUBJECTS, held_out, main, points_of


def test_points_are_a_mean_over_rows() -> None:
    few = replace(SUBJECTS["loan, GELU twin"], rows=held_out(2, 16))
    assert points_of(few, EG, OutputSpace.LOGIT, 0.05) == "512", "four on each of 128 paths"
    smooth, bent = (
        float(points_of(replace(subject, rows=held_out(4, 16)), method, OutputSpace.LOGIT, 0.001))
        for subject, method in ((few, IG), (SUBJECTS["loan"], MIDPOINT))
    )
    assert 4 <= smooth < bent / 4
    assert points_of(replace(few, most=4), IG, OutputSpace.LOGIT, 1e-6) == "4 (0 of 2 converged)"


def test_a_model_that_is_not_built_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.accuracy.points.MODELS", Path("none"))
    main(["loan"])
    assert capsys.readouterr().out.count("\n") == 2
