"""Near-duplicates with unlike explanations, where both can be said beforehand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from service.catalog.inputs.tokens import TokenInputs
from service.domain import Explanation, Plan
from service.lifecycle.checking.trial import Trial, load_trial
from service.monitoring import near_duplicates
from service.monitoring.near_duplicates import FLAG, KEPT_SECONDS, LATEST, NearDuplicates
from service.usecases.planning import Parameters, make_plan
from tests.conftest import MODELS


@pytest.fixture(scope="module")
def trial() -> Trial:
    return load_trial(MODELS / "house-price" / "1", torch.device("cpu"))


@pytest.fixture(scope="module")
def plan(trial: Trial) -> Plan:
    row = trial.sample(0, seed=0)[0]
    return make_plan(trial.version, tuple(row.tolist()), Parameters())


@pytest.fixture(scope="module")
def explanation(trial: Trial, plan: Plan) -> Explanation:
    return trial.explained(plan)


def moved(trial: Trial, plan: Plan, share: float) -> Plan:
    """The plan of an input whose first number is another, by this share of its range."""
    low, high = trial.version.manifest.inputs.bounds
    first, *others = plan.input
    return replace(plan, input=(first + share * (high[0] - low[0]), *others))


def backwards(explanation: Explanation, **changes: float) -> Explanation:
    """Another ranking: what was the smallest is the largest."""
    values = np.array(explanation.attributions)
    order = np.argsort(np.abs(values))
    values[order] = values[order[::-1]]
    return replace(explanation, attributions=tuple(values.tolist()), **changes)  # type: ignore[arg-type]


def test_who_gets_another_explanation_for_nearly_the_same(trial: Trial, plan: Plan, explanation: Explanation) -> None:
    assert explanation.output is not None
    assert explanation.baseline_output is not None
    version, other = trial.version, backwards(explanation)
    change = explanation.output - explanation.baseline_output
    near, far = moved(trial, plan, 0.019), moved(trial, plan, 0.021)

    def flags(second: Plan, found: Explanation, key: str = "one") -> list[str]:
        kept = NearDuplicates()
        assert kept.flags("one", version, plan, explanation) == []
        return kept.flags(key, version, second, found)

    assert flags(near, other) == [FLAG]
    assert flags(replace(plan, seed=7), other) == [FLAG], "nor is one seed after the other tried"
    assert flags(near, explanation) == flags(far, other) == flags(near, other, "two") == []
    assert flags(replace(near, method="saliency"), other) == []
    assert flags(near, replace(other, output=explanation.output + 0.049 * change)) == [FLAG]
    assert flags(near, replace(other, output=explanation.output + 0.06 * change)) == []


def test_what_is_kept_is_bounded(
    trial: Trial, plan: Plan, explanation: Explanation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By question the latest, by questions the last that were asked, and everything for an hour."""
    version, now = trial.version, 0.0
    kept = NearDuplicates(lambda: now)
    monkeypatch.setattr(near_duplicates, "MOST_NUMBERS", 2 * LATEST * 2 * len(plan.input))

    def is_flagged(key: str) -> bool:
        return kept.flags(key, version, plan, backwards(explanation)) == [FLAG]

    kept.flags("one", version, plan, explanation)
    for _ in range(LATEST):
        kept.flags("one", version, moved(trial, plan, 0.1), explanation)
    assert not is_flagged("one")
    for key in ("two", "three"):
        kept.flags(key, version, plan, explanation)
    assert len(kept._questions) == 2
    assert not is_flagged("one"), "it was forgotten for the others"
    assert is_flagged("three")
    kept.flags("four", version, plan, explanation)
    now = KEPT_SECONDS + 1
    assert not is_flagged("four")
    assert len(kept._questions) == 1


def test_texts_are_near_where_few_tokens_are_others() -> None:
    inputs = TokenInputs(kind="tokens", length=16, vocabulary=100, padding=0, mask=1)
    row = np.array([*range(10, 20), *[0.0] * 6])
    one, two = row.copy(), row.copy()
    one[3], two[3], two[4] = 99, 99, 98
    assert inputs.distances(np.stack([row, one, two]), row) == pytest.approx([0, 1 / 10, 2 / 10])
