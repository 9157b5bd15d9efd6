"""Drift: whether the latest explanations are like those that the version was checked with, by cohort too.

Of every version whose attributions are of named features there is, over the latest explanations:

- how much each feature counts: the nDCG against the reference profile of `answerable models check` falls when the
  order of the features changes;
- the protected features' share, for all and for each cohort that the manifest declares;
- the rank correlation with the same explanations under another sample of the baseline, and the lowest with those of
  inputs near by.

Only explanations like those of the profile count (the manifest's default method, baseline, output space and target),
and only those that were computed: what the cache repeats was counted before. They are summed up `BATCH` at a time,
which costs less than one by one; memory is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from service.catalog.assessments import Profile
from service.catalog.manifest import Manifest
from service.domain import Explanation, Floats, Plan
from service.numerics.ranking import normalised_gain

MEMORY = 1000
"""The weight of an explanation falls to 1/e after so many others."""
MIN_EXPLANATIONS = 30
"""Means over fewer explanations are not published."""
BATCH = 128
ALL = "all"
"""The cohort of everybody."""


class RecentMean:
    """An exponentially weighted mean of values [n, ...] that come in batches; the last `MEMORY` or so dominate."""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self._sum: Floats = np.zeros(shape)
        self._weight = 0.0
        self.count = 0

    def add(self, values: Floats) -> None:
        """Adds values [n, ...], the latest last."""
        keep = 1 - 1 / MEMORY
        weights = keep ** np.arange(len(values) - 1, -1, -1)
        self._sum = self._sum * keep ** len(values) + weights @ values
        self._weight = self._weight * keep ** len(values) + float(weights.sum())
        self.count += len(values)

    @property
    def mean(self) -> Floats | None:
        """None while it is of fewer than `MIN_EXPLANATIONS`."""
        return None if self.count < MIN_EXPLANATIONS else np.asarray(self._sum / self._weight)


@dataclass(slots=True)
class Drift:
    """What the latest explanations of one version have in common."""

    manifest: Manifest
    profile: Profile | None = None
    _importance: RecentMean = field(init=False)
    _shares: dict[str, RecentMean] = field(init=False)
    _stability: RecentMean = field(init=False, default_factory=RecentMean)
    _near_by: RecentMean = field(init=False, default_factory=RecentMean)
    _waiting: list[tuple[tuple[float, ...], Mapping[str, str]]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        inputs, cohorts = self.manifest.inputs, self.manifest.review.all_cohorts
        self._importance = RecentMean((len(inputs.components),))
        names = [ALL, *(f"{tag}={value}" for tag, value in cohorts)] if inputs.protected else []
        self._shares = {name: RecentMean() for name in names}

    def observe(self, plan: Plan, explanation: Explanation, cohort: Mapping[str, str]) -> None:
        """Adds an explanation that was computed, if it is of the kind that counts."""
        if explanation.attributions is None or not self.counts(plan):
            return
        self._waiting.append((explanation.attributions, cohort))
        if len(self._waiting) >= BATCH:
            self._sum_up()

    def observe_stability(self, correlation: float) -> None:
        """Adds the rank correlation of one explanation with itself under another sample of the baseline."""
        if math.isfinite(correlation):
            self._stability.add(np.array([correlation]))

    def observe_near_by(self, correlation: float) -> None:
        """Adds the lowest rank correlation of one explanation with those at inputs near by."""
        self._near_by.add(np.array([correlation]))

    def counts(self, plan: Plan) -> bool:
        """Whether it is like those of the profile, which are of named features."""
        return bool(self.manifest.inputs.components) and self.is_usual(plan)

    def is_usual(self, plan: Plan) -> bool:
        """Whether it is as the manifest's defaults have it, of the usual target."""
        manifest = self.manifest
        outputs, defaults = manifest.outputs, manifest.defaults
        return (
            plan.method == defaults.method
            and plan.baseline.name == defaults.baseline
            and plan.output_space == outputs.default_space
            and plan.noise is None
            and outputs.is_usual(plan.target)
        )

    def _sum_up(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        sizes = np.abs(np.array([attributions for attributions, _ in waiting]))
        self._importance.add(sizes)
        if not self._shares:
            return
        totals = sizes.sum(axis=1)
        shares = sizes[:, self.manifest.inputs.protected].sum(axis=1) / np.where(totals, totals, 1.0)
        self._shares[ALL].add(shares[totals > 0])
        for tag, value in self.manifest.review.all_cohorts:
            members = np.array([cohort.get(tag) == value for _, cohort in waiting])
            self._shares[f"{tag}={value}"].add(shares[members & (totals > 0)])

    @property
    def ndcg(self) -> float | None:
        """nDCG of the features' mean absolute attributions; None without a reference, or while there are too few."""
        self._sum_up()
        importance = self._importance.mean
        if self.profile is None or importance is None or len(self.profile.importance) != len(importance):
            return None
        gain = normalised_gain(np.array(list(self.profile.importance.values())), importance)
        return gain if math.isfinite(gain) else None

    @property
    def protected_shares(self) -> dict[str, float]:
        """The mean share of the protected features, by cohort; of those that had enough explanations."""
        self._sum_up()
        means = {name: share.mean for name, share in self._shares.items()}
        return {name: float(mean) for name, mean in means.items() if mean is not None}

    @property
    def stability(self) -> float | None:
        """The mean rank correlation under other samples of the baseline; None while there are too few."""
        mean = self._stability.mean
        return None if mean is None else float(mean)

    @property
    def near_by(self) -> float | None:
        """The mean of the lowest rank correlations near an input; None while there are too few."""
        mean = self._near_by.mean
        return None if mean is None else float(mean)
