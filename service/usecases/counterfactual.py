"""A counterfactual hint: how far the principal reasons would have to be otherwise for the model to answer differently.

The explanation speaks of the way from the baseline to the input. The hint goes that way back, from the input towards
the baseline, but with the features of the principal reasons only: first of the strongest reason alone, then of two, and
so on. It stops at the fewest, and at the smallest step at which the deployed model, asked at that very row, answers
another label, or a value that is not beyond the bound any more. On the way are only values that could be: within the
range, and whole where all baseline rows are. Protected features are never moved.

It says what this model would answer, and no more. It is no advice; features that depend on one another in the world (an
amount and a ratio of it) are moved on their own; and there may be nearer rows elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.answers.items import ReasonItem
from service.answers.reading import NOT_WHOLE, personal_of, record_of
from service.answers.record import RecordItem
from service.answers.replies import ChangeItem, HintItem
from service.catalog.baselines import KeptSets
from service.catalog.inputs.kind import Inputs
from service.catalog.version_files import read_baseline_rows
from service.catalog.versions import Catalog, ModelVersion
from service.domain import Floats, Plan
from service.engine.protocol import Engine
from service.errors import AnswerableError, CatalogError
from service.ledger.entries import LogChanged, Stored
from service.usecases.replaying import plan_of

STEPS = 32
"""Of the way to the baseline, tried together; the deployed artefact takes as many rows at once."""
HALVINGS = 12
"""Of the step in which the decision changes: the smallest is found to within one part in 130,000 of the way."""
NOT_AS_WRITTEN = "the record of the explanation is not what was written"
NOT_MOVED = "protected features and categories"
NOTE = (
    "what the model would answer if only these values were others; it is no advice and no promise, and values that "
    "depend on one another are moved on their own"
)

Row = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Way:
    """From the input towards the baseline, for the `moved` features."""

    input: Floats
    baseline: Floats
    low: Floats
    high: Floats
    whole: NDArray[np.bool_]
    moved: Sequence[int]

    def at(self, step: float) -> Row:
        """The row at a share of the way; every value is one that could be."""
        row = self.input.copy()
        own = list(self.moved)
        to = self.input[own] + step * (self.baseline[own] - self.input[own])
        to = np.where(self.whole[own], np.round(to), to)
        row[own] = np.where(to == self.input[own], self.input[own], np.clip(to, self.low[own], self.high[own]))
        return tuple(row.tolist())


@dataclass(frozen=True, slots=True)
class _Decision:
    """What the deployed model decides at a row, as people are told it, and whether that is bad news."""

    text: str
    is_adverse: bool


class Counterfactuals:
    """Finds hints for stored explanations."""

    def __init__(self, engine: Engine, catalog: Catalog, kept: KeptSets) -> None:
        self._engine = engine
        self._catalog = catalog
        self._kept = kept

    async def find(self, stored: Stored, most: int) -> HintItem:
        """The hint over the first `most` reasons of a record that has reasons, or why there is none."""
        record = record_of(stored)
        if record.model is None:
            return _none(NOT_AS_WRITTEN)
        try:
            version = self._catalog.find(record.model.name, record.model.version)
        except AnswerableError:
            return _none("the model version is not served here any more")
        inputs, outputs = version.manifest.inputs, version.manifest.outputs
        if record.model.digest != version.key.digest or not inputs.named_features:
            return _none("the model version that is served here is another artefact")
        try:
            plan = plan_of(record, personal_of(stored), version)
            reasons = [_members(inputs, reason) for reason in record.reasons or ()]
        except (LogChanged, *NOT_WHOLE):
            return _none(NOT_AS_WRITTEN)
        try:
            own = await self._decision(version, plan.input)
        except AnswerableError as error:
            return _none(f"the model could not be asked: {error}")
        if not own.is_adverse:
            return _none(f"the prediction is {own.text}, which is not the adverse {outputs.noun}")
        try:
            baseline, whole = await asyncio.to_thread(_baseline, version, self._kept, plan, stored.tenant)
        except CatalogError:
            return _none("the baseline set is not here any more")
        features = inputs.named_features
        low, high = map(np.array, inputs.bounds)
        moved: list[int] = []
        for members in reasons[:most]:
            moved += [at for at in members if not features[at].protected and not features[at].categories]
            way = _Way(np.array(plan.input), baseline, low, high, whole, tuple(moved))
            try:
                found = await self._nearest(version, way) if moved else None
            except AnswerableError as error:
                return _none(f"the model could not be asked: {error}")
            if found is not None:
                return _hint(record, inputs, way, *found)
        return _none(
            f"with these reasons as at the baseline, the prediction is still {own.text}; {NOT_MOVED} are not moved"
        )

    async def _nearest(self, version: ModelVersion, way: _Way) -> tuple[float, str] | None:
        """The smallest step found at which the answer is not adverse, and what the model decides there."""
        steps = [number / STEPS for number in range(1, STEPS + 1)]
        decisions = await asyncio.gather(*(self._decision(version, way.at(step)) for step in steps))
        first = next((at for at, found in enumerate(decisions) if not found.is_adverse), None)
        if first is None:
            return None
        same, other, new = (steps[first - 1] if first else 0.0), steps[first], decisions[first]
        for _ in range(HALVINGS):
            middle = (same + other) / 2
            if way.at(middle) == way.at(other):
                other = middle
            elif (found := await self._decision(version, way.at(middle))).is_adverse:
                same = middle
            else:
                other, new = middle, found
        return other, new.text

    async def _decision(self, version: ModelVersion, row: Row) -> _Decision:
        prediction = await self._engine.predict(version.ref, row)
        outputs, space = version.manifest.outputs, version.manifest.outputs.default_space
        answered = prediction.outputs[space]
        return _Decision(outputs.decision(answered, space) or "", outputs.is_adverse(answered, space))


def _baseline(version: ModelVersion, kept: KeptSets, plan: Plan, tenant: str) -> tuple[Floats, NDArray[np.bool_]]:
    """The end of the explained path, the mean of a set, and which features are whole numbers. Raises CatalogError."""
    manifest, inputs = version.manifest, version.manifest.inputs
    listed = [(version.folder, one) for one in manifest.baselines]
    listed += [(kept.place(version.key.name), one.listed) for one in version.fitting_sets(tenant)]
    sets = {"sha256:" + one.sha256: read_baseline_rows(folder, manifest, one).astype(float) for folder, one in listed}
    rows = np.concatenate([*sets.values()]) if sets else np.full((1, inputs.shape[0]), 0.5)
    whole = (rows % 1 == 0).all(axis=0)
    if plan.baseline.row is not None:
        return np.array(plan.baseline.row), whole
    if plan.baseline.digest not in sets:
        raise CatalogError("the baseline set is neither in the manifest nor kept")
    return sets[plan.baseline.digest].mean(axis=0), whole


def _none(why: str) -> HintItem:
    return HintItem(found=False, why=why)


def _members(inputs: Inputs, reason: ReasonItem) -> list[int]:
    """The numbers of the features that a reason speaks of, those of groups included."""
    members = {unit.name: unit.members for unit in inputs.units}
    return [at for name in (reason.features or (reason.feature,)) for at in members[name]]


def _hint(record: RecordItem, inputs: Inputs, way: _Way, step: float, label: str) -> HintItem:
    row, features = way.at(step), inputs.named_features
    codes = {at: reason.code for reason in record.reasons or () for at in _members(inputs, reason)}
    changes = tuple(
        ChangeItem(
            feature=features[at].name,
            code=codes[at],
            before=float(way.input[at]),
            after=row[at],
            unit=features[at].unit,
        )
        for at in sorted(way.moved, key=list(way.moved).index)
        if row[at] != way.input[at]
    )
    return HintItem(found=True, label=label, step=step, changes=changes, note=NOTE)
