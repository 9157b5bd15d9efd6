"""Reasons where the bad news is a bound on a value, a label among several, or one class rather than another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from service.answers.reasons import principal_reasons
from service.catalog.manifest import Manifest, read_manifest
from service.catalog.outputs.kind import OutputKind
from service.catalog.outputs.labels import Labels
from service.catalog.outputs.values import Bound, Value, Values
from service.domain import Completeness, Contrast, Explanation, Target
from tests.conftest import REPOSITORY_MODELS

LOAN: Path = REPOSITORY_MODELS / "loan" / "1"
VALUES = {
    "above": Values(kind="values", values=(Value(name="score"),), adverse=Bound(above=0.5)),
    "below": Values(kind="values", values=(Value(name="score"),), adverse=Bound(below=600.0)),
    "none": Values(kind="values", values=(Value(name="score"),)),
}
LABELS = Labels(kind="labels", labels=("fraud", "late"), adverse="late")


def manifest_with(outputs: OutputKind) -> Manifest:
    manifest, _, _ = read_manifest(LOAN)
    return manifest.model_copy(update={"outputs": outputs})


def explanation(target: Target) -> Explanation:
    """The first feature moves it up by 3, the second down by 2, all others not at all."""
    values = (3.0, -2.0, *[0.0] * 36)
    return Explanation(
        outputs=(1.0, 2.0), target=target, output=1.0, baseline_output=0.0, attributions=values, shape=(38,),
        standard_error=None, completeness=Completeness.EXACT, completeness_error=0.0, attribution_error=0.0,
        converged=True, reason=None, evaluations=1, rule="exact", small_difference=False, chunk_rows="1+1",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outputs", "target", "contributions"),
    [
        (VALUES["above"], 0, [("loan_amount", 3.0)]),
        (VALUES["below"], 0, [("purchase_price", 2.0)]),
        (VALUES["none"], 0, None),
        (LABELS, 1, [("loan_amount", 3.0)]),
        (LABELS, 0, None),
    ],
)
def test_reasons_are_what_moved_it_towards_the_bad_news(
    outputs: OutputKind, target: Target, contributions: list[tuple[str, float]] | None
) -> None:
    reasons = principal_reasons(manifest_with(outputs), explanation(target))
    found = None if reasons is None else [(reason.feature, reason.contribution) for reason in reasons]
    assert found == contributions


def test_reasons_of_a_contrast_follow_the_side_of_the_adverse_label() -> None:
    manifest, _, _ = read_manifest(LOAN)
    for target, feature in ((Contrast(1, 0), "loan_amount"), (Contrast(0, 1), "purchase_price")):
        reasons = principal_reasons(manifest, replace(explanation(0), target=target))
        assert reasons is not None
        assert [reason.feature for reason in reasons] == [feature]
