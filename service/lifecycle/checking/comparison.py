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
"""Both versions are explained by the same one, whatever their defaults are."""
FEATURES_OF_A_FLIP = 3
NO_DECISION = "nothing"
"""What values decide without a bound that is adverse."""


@dataclass(frozen=True, slots=True)
class FeatureChange:
    """A feature's mean absolute attribution in both versions, and its rank, 1 for the largest.

    None where it is no input.
    """

    feature: str
    before: float | None
    after: float | None
    rank_before: int | None
    rank_after: int | None

    @property
    def difference(self) -> float:
        """What was added; a feature that is no input counts as nothing."""
        return (self.after or 0.0) - (self.before or 0.0)


@dataclass(frozen=True, slots=True)
class Flip:
    """A row of the sample of which something else is predicted; which attributions changed most, and by how much."""

    row: int
    before: str
    after: str
    features: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions on the same rows.

    `digests` are those of their artefacts: of two different ones nothing that changed says anything of a person.
    `correlation` is Spearman's, of the mean absolute attributions over the features in common. `filled` names the
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
    decides: bool = True

    @property
    def is_one_model(self) -> bool:
        """Whether both are the same artefact."""
        return self.digests[0] == self.digests[1]

    @property
    def flipped(self) -> float:
        """The share of rows of which something else is predicted."""
        return len(self.flips) / self.rows

    @property
    def most_changed(self) -> Sequence[FeatureChange]:
        """The features, that which changed most first."""
        return sorted(self.features, key=lambda feature: -abs(feature.difference))


def compare(before: Trial, after: Trial, rows: int, seed: int) -> Comparison:
    """Compares two versions on one sample: that of the version with more features, which knows more of the same cases.

    Raises InvalidRequest where the two do not answer the same question.
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
        any(decision is not None for each in answers for decision in each.decisions),
    )


def _refuse_incomparable(before: Trial, after: Trial) -> None:
    names = f"{before.version.key} and {after.version.key}"
    ours, theirs = before.manifest.outputs, after.manifest.outputs
    if ours.names != theirs.names or ours.noun != theirs.noun:
        raise InvalidRequest(f"{names} have different {ours.noun}s")
    if not ours.is_comparable_with(theirs):
        raise InvalidRequest(f"{names} answer different kinds of output")
    one, other = before.manifest.inputs, after.manifest.inputs
    if not one.is_comparable_with(other):
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
        found = column.get((feature.name, feature.categories))
        if found is None:
            unknown.append(feature.name)
        else:
            seen[:, at] = sample[:, found]
    return seen, unknown


def _of(trial: Trial, values: Floats, names: Sequence[str]) -> Floats:
    by_name = dict(zip(trial.features, values.tolist(), strict=True))
    return np.array([by_name[name] for name in names])


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
