"""Two versions of a model on the same rows: which features count, and whose prediction flips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import Floats
from service.errors import InvalidRequest
from service.lifecycle.checking.figures import importance
from service.lifecycle.checking.trial import Answers, Trial
from service.numerics.ranking import rank_correlation

METHOD = "integrated_gradients"
"""The method by which both versions are explained, whatever their defaults are."""
FEATURES_OF_A_FLIP = 3
TOP = 5
"""How many of a row's largest attributions are held against each other."""
LEAST_SHARE = 0.01
"""An attribution with less of its row's sum of absolute ones has no sign worth comparing."""
NO_DECISION = "nothing"
"""What is decided by values without an adverse bound."""


@dataclass(frozen=True, slots=True)
class FeatureChange:
    """A feature's mean absolute attribution in both versions, and its rank, 1 for the largest.

    None for a version without this feature.
    """

    feature: str
    before: float | None
    after: float | None
    rank_before: int | None
    rank_after: int | None

    @property
    def difference(self) -> float:
        """The change from the earlier to the later version; a missing feature counts as zero."""
        return (self.after or 0.0) - (self.before or 0.0)


@dataclass(frozen=True, slots=True)
class Flip:
    """A row of the sample for which the prediction differs; which attributions changed most, and by how much."""

    row: int
    before: str
    after: str
    features: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the explanations of the same rows agree, over the features in common.

    `correlation` is Spearman's of a row's signed attributions, the median over the rows; `overlap` the share of the
    `top` largest attributions of a row, by magnitude, that are among the largest of the other explanation too, and
    `sign_flips` the share of attributions with another sign, of those that are a hundredth of their row's or more:
    means over the rows. `apart` is the mean L1 distance relative to the earlier attributions. NaN where no row has
    numbers on both sides.
    """

    correlation: float
    top: int
    overlap: float
    sign_flips: float
    apart: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions on the same rows.

    `digests` are those of their artefacts: of two different ones nothing that changed says anything of a person.
    `correlation` is Spearman's, of the mean absolute attributions over the features in common; `agreement` is row by
    row. `filled` names the
    inputs of one version that the rows, which come from the other, do not hold: each has the median of its baselines.
    Versions of which neither `decides` anything cannot flip: of values without a bound that is adverse.
    """

    before: str
    after: str
    rows: int
    correlation: float
    flips: Sequence[Flip]
    features: Sequence[FeatureChange]
    filled: Sequence[str]
    digests: tuple[str, str]
    agreement: Agreement
    decides: bool = True

    @property
    def is_one_model(self) -> bool:
        """Whether both are the same artefact."""
        return self.digests[0] == self.digests[1]

    @property
    def flipped(self) -> float:
        """The share of rows for which the prediction differs."""
        return len(self.flips) / self.rows

    @property
    def most_changed(self) -> Sequence[FeatureChange]:
        """The features, the most changed first."""
        return sorted(self.features, key=lambda feature: -abs(feature.difference))


def compare(before: Trial, after: Trial, rows: int, seed: int) -> Comparison:
    """Compares two versions on one sample: the one of the version with more features, which describes the same cases
    more fully.

    Raises InvalidRequest where their outputs or their kinds of input differ, or they have no feature in common.
    """
    _refuse_incomparable(before, after)
    source = before if len(before.features) > len(after.features) else after
    sample = source.sample(rows, seed)
    answers, filled = [], []
    for trial in (before, after):
        seen, unknown = _as_seen_by(trial, source, sample)
        answers.append(trial.answers(seen, METHOD))
        filled += unknown
    first, second = (importance(each.attributions) for each in answers)
    shared = [name for name in before.features if name in set(after.features)]
    return Comparison(
        str(before.version.key),
        str(after.version.key),
        len(sample),
        rank_correlation(_of(before, first, shared), _of(after, second, shared)),
        _flips(before, after, *answers),
        _changes(_ranked(before, first), _ranked(after, second)),
        filled,
        (before.version.key.digest, after.version.key.digest),
        _agreement(*(_columns(*pair, shared) for pair in zip((before, after), answers, strict=True))),
        any(decision is not None for each in answers for decision in each.decisions),
    )


def _refuse_incomparable(before: Trial, after: Trial) -> None:
    names = f"{before.version.key} and {after.version.key}"
    obstacle = before.manifest.outputs.comparison_obstacle(after.manifest.outputs)
    if obstacle is not None:
        raise InvalidRequest(f"{names} {obstacle}")
    inputs, other_inputs = before.manifest.inputs, after.manifest.inputs
    if not inputs.is_comparable_with(other_inputs):
        raise InvalidRequest(f"{names} have inputs of different kinds or shapes")
    if not set(before.features) & set(after.features):
        raise InvalidRequest(f"{names} have no feature in common")


def _as_seen_by(trial: Trial, source: Trial, sample: Floats) -> tuple[Floats, list[str]]:
    """The sample's rows with the columns of another version, and which of these the sample does not hold."""
    own, other = trial.manifest.inputs.named_features, source.manifest.inputs.named_features
    if own == other:
        return sample, []
    column = {(feature.name, feature.categories): at for at, feature in enumerate(other)}
    seen = np.tile(trial.typical(trial.baseline_rows()), (len(sample), 1))
    unknown = []
    for at, feature in enumerate(own):
        same_column = column.get((feature.name, feature.categories))
        if same_column is None:
            unknown.append(feature.name)
        else:
            seen[:, at] = sample[:, same_column]
    return seen, unknown


def _of(trial: Trial, values: Floats, names: Sequence[str]) -> Floats:
    by_name = dict(zip(trial.features, values.tolist(), strict=True))
    return np.array([by_name[name] for name in names])


def _columns(trial: Trial, answers: Answers, names: Sequence[str]) -> Floats:
    """The attributions [rows, names] of these features."""
    places = {name: at for at, name in enumerate(trial.features)}
    columns: Floats = answers.attributions[:, [places[name] for name in names]]
    return columns


def _agreement(before: Floats, after: Floats) -> Agreement:
    """Of attributions [rows, features] of the same rows by two versions."""
    known = np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1)
    pairs = list(zip(before[known], after[known], strict=True))
    top = min(TOP, before.shape[1])
    if not pairs:
        return Agreement(np.nan, top, np.nan, np.nan, np.nan)
    correlations = [rank_correlation(*pair) for pair in pairs]
    largest = [[{*np.argsort(-np.abs(values), kind="stable")[:top].tolist()} for values in pair] for pair in pairs]
    return Agreement(
        float(np.nanmedian(correlations)) if np.isfinite(correlations).any() else np.nan,
        top,
        float(np.mean([len(one & other) / top for one, other in largest])),
        float(np.mean([_sign_flips(*pair) for pair in pairs])),
        float(np.mean([np.abs(one - other).sum() / (np.abs(one).sum() or 1.0) for one, other in pairs])),
    )


def _sign_flips(before: Floats, after: Floats) -> float:
    """The share of one row's attributions with another sign, of those that count on either side."""
    counts = np.logical_or(
        *(np.abs(values) >= LEAST_SHARE * (np.abs(values).sum() or np.inf) for values in (before, after))
    )
    return float((np.sign(before) != np.sign(after))[counts].mean()) if counts.any() else 0.0


def _ranked(trial: Trial, values: Floats) -> dict[str, tuple[float, int]]:
    """By feature, its value and its rank; the first of equal ones comes first."""
    order = np.argsort(-values, kind="stable").tolist()
    return {trial.features[at]: (float(values[at]), rank) for rank, at in enumerate(order, start=1)}


def _changes(before: Mapping[str, tuple[float, int]], after: Mapping[str, tuple[float, int]]) -> list[FeatureChange]:
    """Every feature of either version, in the order of what it counts for in the later one."""
    names = [*after, *(name for name in before if name not in after)]
    pairs = [(name, before.get(name, (None, None)), after.get(name, (None, None))) for name in names]
    return [FeatureChange(name, old[0], new[0], old[1], new[1]) for name, old, new in pairs]


def _flips(before: Trial, after: Trial, first: Answers, second: Answers) -> list[Flip]:
    flips = []
    pairs = list(zip(first.decisions, second.decisions, strict=True))
    for row in (at for at, (old, new) in enumerate(pairs) if old != new):
        earlier = dict(zip(before.features, first.attributions[row].tolist(), strict=True))
        later = dict(zip(after.features, second.attributions[row].tolist(), strict=True))
        changes = {name: later.get(name, 0.0) - earlier.get(name, 0.0) for name in {**later, **earlier}}
        most = sorted(changes, key=lambda name: -abs(changes[name]))[:FEATURES_OF_A_FLIP]
        old, new = (decision or NO_DECISION for decision in pairs[row])
        flips.append(Flip(row, old, new, {name: changes[name] for name in most}))
    return flips
