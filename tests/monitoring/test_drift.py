"""Drift, against sums over everything that came, and with bounded memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from service.catalog.assessments import Assessments, Profile
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.manifest import Manifest, read_manifest
from service.catalog.review_rules import Review
from service.domain import BaselineChoice, Completeness, Explanation, Floats, Noise, NoiseKind, OutputSpace, Plan
from service.monitoring.drift import BATCH, MEMORY, MIN_EXPLANATIONS, Drift, RecentMean
from tests.conftest import MODELS

LOAN = MODELS / "loan" / "1"
MANIFEST, KEY, DIGEST = read_manifest(LOAN)
FEATURES = len(MANIFEST.inputs.names)
WEB, BRANCH = {"channel": "web"}, {"channel": "branch"}


@pytest.fixture
def manifest() -> Manifest:
    """The loan model's, with two cohorts."""
    review = Review.model_validate({"protected_share": 0.2, "cohorts": {"channel": ["web", "branch"]}})
    return MANIFEST.model_copy(update={"review": review})


@pytest.fixture
def profile() -> Profile:
    """The loan model's reference profile, which ships with it."""
    assessment = Assessments(Path("nowhere")).find(LOAN, KEY, DIGEST)
    assert assessment is not None
    assert assessment.profile is not None
    return assessment.profile


def plan_of(**changes: Any) -> Plan:
    plan = Plan(
        model=KEY,
        method="integrated_gradients",
        options=(),
        input=(0.0,) * FEATURES,
        target=None,
        output_space=OutputSpace.PROBABILITY,
        baseline=BaselineChoice("training", "1", "sha256:0", 128),
        tolerance=0.01,
        max_evaluations=4096,
        seed=0,
        floor=0.01,
    )
    return replace(plan, **changes)


def explanation_of(attributions: Floats) -> Explanation:
    return Explanation(
        outputs=(0.5, 0.5),
        target=0,
        output=0.5,
        baseline_output=0.4,
        attributions=tuple(attributions.tolist()),
        shape=(FEATURES,),
        standard_error=None,
        completeness=Completeness.EXACT,
        completeness_error=0.0,
        attribution_error=0.0,
        converged=True,
        reason=None,
        evaluations=7,
        rule="exact",
        small_difference=False,
        chunk_rows="32+128",
    )


@given(st.lists(st.floats(-10, 10), min_size=MIN_EXPLANATIONS, max_size=200), st.integers(1, 50))
def test_a_recent_mean_is_the_weighted_mean_however_values_are_batched(values: list[float], size: int) -> None:
    mean = RecentMean()
    for at in range(0, len(values), size):
        mean.add(np.array(values[at : at + size]))

    total = weight = 0.0
    for value in values:
        total, weight = total * (1 - 1 / MEMORY) + value, weight * (1 - 1 / MEMORY) + 1
    assert mean.mean is not None
    assert float(mean.mean) == pytest.approx(total / weight, abs=1e-9)


def test_explanations_like_the_reference_do_not_drift_and_others_do(manifest: Manifest, profile: Profile) -> None:
    reference = np.array(list(profile.importance.values()))
    generator = np.random.default_rng(7)
    drift = Drift(manifest, profile)
    for _ in range(300):
        drift.observe(plan_of(), explanation_of(reference * generator.choice([-1, 1], FEATURES)), {})
    assert drift.ndcg == pytest.approx(1)

    turned = reference[np.argsort(reference)][::-1][np.argsort(np.argsort(reference))]  # the least count for most
    seen = [reference] * 300
    for _ in range(3000):
        drift.observe(plan_of(), explanation_of(turned), {})
        seen.append(turned)

    weights = (1 - 1 / MEMORY) ** np.arange(len(seen) - 1, -1, -1)
    expected = ndcg_score([reference], [weights @ np.array(seen) / weights.sum()])
    assert drift.ndcg == pytest.approx(expected)
    assert expected < 0.9


def test_the_protected_share_is_told_by_declared_cohort_only(manifest: Manifest) -> None:
    assert isinstance(manifest.inputs, TabularInputs)
    drift = Drift(manifest)
    protected = np.zeros(FEATURES)
    protected[list(manifest.inputs.protected)] = 1
    generator = np.random.default_rng(7)
    shares: dict[str, list[float]] = {"all": [], "channel=web": [], "channel=branch": []}
    for number in range(3 * MIN_EXPLANATIONS):
        cohort = (WEB, BRANCH, {"channel": f"stranger-{number}", "other": "web"})[number % 3]
        values = generator.normal(size=FEATURES) * (1 + protected * (cohort is WEB))
        share = float((np.abs(values) * protected).sum() / np.abs(values).sum())
        for name in ("all", f"channel={cohort['channel']}"):
            if name in shares:
                shares[name].append(share)
        drift.observe(plan_of(), explanation_of(values), cohort)

    found = drift.protected_shares

    assert set(found) == set(shares)
    for name, each in shares.items():
        assert found[name] == pytest.approx(np.mean(each), rel=0.02)
    assert found["channel=web"] > found["channel=branch"] + 0.05


def test_nothing_is_told_of_too_few(manifest: Manifest, profile: Profile) -> None:
    drift = Drift(manifest, profile)
    for _ in range(MIN_EXPLANATIONS - 1):
        drift.observe(plan_of(), explanation_of(np.ones(FEATURES)), WEB)
        drift.observe_stability(1.0)
    assert drift.ndcg is None
    assert drift.protected_shares == {}
    assert drift.stability is None

    drift.observe(plan_of(), explanation_of(np.ones(FEATURES)), BRANCH)
    drift.observe_stability(float("nan"))
    assert drift.ndcg is not None
    assert set(drift.protected_shares) == {"all"}
    assert drift.stability is None


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "saliency"},
        {"output_space": OutputSpace.LOGIT},
        {"baseline": BaselineChoice("approved", "1", "sha256:0", 128)},
        {"noise": Noise(NoiseKind.SMOOTHGRAD, 5, 0.1)},
    ],
)
def test_explanations_of_another_kind_do_not_count(
    changes: dict[str, Any], manifest: Manifest, profile: Profile
) -> None:
    drift = Drift(manifest, profile)
    for _ in range(2 * MIN_EXPLANATIONS):
        drift.observe(plan_of(**changes), explanation_of(np.ones(FEATURES)), {})

    assert drift.ndcg is None


def test_memory_is_bounded(manifest: Manifest) -> None:
    drift = Drift(manifest)
    for _ in range(20):
        for number in range(BATCH - 1):
            drift.observe(plan_of(), explanation_of(np.ones(FEATURES)), {"channel": str(number)})
        assert len(drift._waiting) < BATCH
