"""The figures of many explanations as one: by method and metric the mean, how well it is known, and the mean curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.catalog.inputs.removal import DESCRIPTIONS
from service.domain import Floats, OptionValue
from service.faithfulness.registry import BY_NAME
from service.faithfulness.subject import Measure, Measured

RESAMPLES = 2000
LEVEL = 0.95
"""Of the bootstrap interval."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one method over many explanations.

    `mean` is over the `explanations` that have a figure, and `low` and `high` its bootstrap interval; None where none
    has. `skipped` says of how many there is none, by the reason. `values` has a place for each explanation. `replaced`
    says what stood in the place of removed components, `replaced_by` in words.
    """

    method: str
    metric: str
    better: str
    replaced: str | None
    replaced_by: str | None
    options: dict[str, OptionValue]
    mean: float | None
    low: float | None
    high: float | None
    explanations: int
    skipped: dict[str, int]
    curve: tuple[float, ...] | None
    values: tuple[float | None, ...]


def figure_of(method: str, measure: Measure, measured: Sequence[Measured | None]) -> Figure:
    """The figure over explanations, None for one that there is not."""
    known = [one for one in measured if one is not None and one.value is not None]
    values = np.array([one.value for one in known], dtype=np.float64)
    curves = [one.curve for one in known if one.curve is not None]
    reasons = [one.reason for one in measured if one is not None and one.reason is not None]
    low, high = bootstrap_interval(values) if len(values) else (None, None)
    return Figure(
        method,
        measure.metric,
        BY_NAME[measure.metric].better.value,
        measure.replace,
        None if measure.replace is None else DESCRIPTIONS[measure.replace],
        dict(measure.options),
        float(values.mean()) if len(values) else None,
        low,
        high,
        len(values),
        {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        _mean(curves),
        tuple(None if one is None else one.value for one in measured),
    )


def bootstrap_interval(values: Floats) -> tuple[float, float]:
    """The percentile interval of the mean, of resamples that are always the same ones.

    Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979. Of one value it is that value:
    what it says of a few is little.
    """
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _mean(curves: Sequence[tuple[float, ...]]) -> tuple[float, ...] | None:
    """The mean curve; None where there is none, or texts of other lengths have others."""
    if not curves or len({len(curve) for curve in curves}) > 1:
        return None
    return tuple(np.mean(curves, axis=0).tolist())
