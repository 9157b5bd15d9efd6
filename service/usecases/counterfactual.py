"""A counterfactual hint: how far the features of the principal reasons would have to change for another decision.

The explanation is of the path from the baseline to the input. The hint goes back along that path, from the input
towards the baseline, but changes the features of the principal reasons only: first of the strongest reason alone, then
of two, and so on. It takes the fewest reasons, and then the smallest step, for which the deployed model, asked at that
very row, answers another label, or a value that is no longer beyond the bound. All values on the path are possible
ones: within the range, and whole where those of all baseline rows are. Protected features never change.

It says what this model would answer, and no more. It is no advice; features that depend on one another in the world (an
amount and a ratio of it) are changed independently; and there may be nearer rows off this path.
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
"""Points of the path that are tried together; the deployed artefact takes as many rows at once."""
HALVINGS = 12
"""Bisections of the step in which the decision changes, which locate the change to 1/130,000 of the path."""
NOT_AS_WRITTEN = "the record of the explanation is not what was written"
NOT_MOVED = "protected features and categories"
NOTE = (
    "what the model would answer if only these values were others; it is no advice and no promise, and values that "
    "depend on one another are moved on their own"
)

Row = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _PathToBaseline:
    """The straight line from the input to the baseline, along which only the `moved` features change."""

    input: Floats
    baseline: Floats
    low: Floats
    high: Floats
    whole: NDArray[np.bool_]
    moved: Sequence[int]

    def at(self, step: float) -> Row:
        """The row at `step`, a fraction of the path; every value is within its range, and whole where it has to be."""
        row = self.input.copy()
        moved = list(self.moved)
        start = self.input[moved]
        values = start + step * (self.baseline[moved] - start)
        values = np.where(self.whole[moved], np.round(values), values)
        row[moved] = np.where(values == start, start, np.clip(values, self.low[moved], self.high[moved]))
        return tuple(row.tolist())


@dataclass(frozen=True, slots=True)
class _Decision:
    """What the deployed model decides for a row, in words, and whether that is adverse."""

    text: str
    is_adverse: bool


class Counterfactuals:
    """Finds hints for stored explanations."""

    def __init__(self, engine: Engine, catalog: Catalog, kept: KeptSets) -> None:
        self._engine = engine
        self._catalog = catalog
        self._kept = kept

    async def find(self, stored: Stored, max_reasons: int) -> HintItem:
        """A hint that changes only features of the first `max_reasons` reasons of the record, or why there is none."""
        record = record_of(stored)
        if record.model is None:
            return _no_hint(NOT_AS_WRITTEN)
        try:
            version = self._catalog.find(record.model.name, record.model.version)
        except AnswerableError:
            return _no_hint("the model version is not served here any more")
        inputs, outputs = version.manifest.inputs, version.manifest.outputs
        if record.model.digest != version.key.digest or not inputs.named_features:
            return _no_hint("the model version that is served here is another artefact")
        try:
            plan = plan_of(record, personal_of(stored), version)
            reasons = [_members(inputs, reason) for reason in record.reasons or ()]
        except (LogChanged, *NOT_WHOLE):
            return _no_hint(NOT_AS_WRITTEN)
        try:
            decision = await self._decision(version, plan.input)
        except AnswerableError as error:
            return _no_hint(f"the model could not be asked: {error}")
        if not decision.is_adverse:
            return _no_hint(f"the prediction is {decision.text}, which is not the adverse {outputs.noun}")
        try:
            baseline, whole = await asyncio.to_thread(_baseline, version, self._kept, plan, stored.tenant)
        except CatalogError:
            return _no_hint("the baseline set is not here any more")
        features = inputs.named_features
        low, high = map(np.array, inputs.bounds)
        moved: list[int] = []
        for members in reasons[:max_reasons]:
            moved += [at for at in members if not features[at].protected and not features[at].categories]
            path = _PathToBaseline(np.array(plan.input), baseline, low, high, whole, tuple(moved))
            try:
                nearest = await self._nearest(version, path) if moved else None
            except AnswerableError as error:
                return _no_hint(f"the model could not be asked: {error}")
            if nearest is not None:
                return _hint(record, inputs, path, *nearest)
        return _no_hint(
            f"with these reasons as at the baseline, the prediction is still {decision.text}; {NOT_MOVED} are not moved"
        )

    async def _nearest(self, version: ModelVersion, path: _PathToBaseline) -> tuple[float, str] | None:
        """The smallest step at which the decision is found not to be adverse, and that decision in words."""
        steps = [number / STEPS for number in range(1, STEPS + 1)]
        decisions = await asyncio.gather(*(self._decision(version, path.at(step)) for step in steps))
        first = next((at for at, decision in enumerate(decisions) if not decision.is_adverse), None)
        if first is None:
            return None
        same, other, new = (steps[first - 1] if first else 0.0), steps[first], decisions[first]
        for _ in range(HALVINGS):
            middle = (same + other) / 2
            if path.at(middle) == path.at(other):
                other = middle
            elif (decision := await self._decision(version, path.at(middle))).is_adverse:
                same = middle
            else:
                other, new = middle, decision
        return other, new.text

    async def _decision(self, version: ModelVersion, row: Row) -> _Decision:
        prediction = await self._engine.predict(version.ref, row)
        outputs, space = version.manifest.outputs, version.manifest.outputs.default_space
        values = prediction.outputs[space]
        return _Decision(outputs.decision(values, space) or "", outputs.is_adverse(values, space))


def _baseline(version: ModelVersion, kept: KeptSets, plan: Plan, tenant: str) -> tuple[Floats, NDArray[np.bool_]]:
    """The baseline of the plan (the mean, for a set), and which features are whole numbers. Raises CatalogError."""
    manifest, inputs = version.manifest, version.manifest.inputs
    listed = [(version.folder, baseline) for baseline in manifest.baselines]
    listed += [(kept.place(version.key.name), kept_set.listed) for kept_set in version.fitting_sets(tenant)]
    sets = {
        "sha256:" + baseline.sha256: read_baseline_rows(folder, manifest, baseline).astype(float)
        for folder, baseline in listed
    }
    rows = np.concatenate([*sets.values()]) if sets else np.full((1, inputs.shape[0]), 0.5)
    whole = (rows % 1 == 0).all(axis=0)
    if plan.baseline.row is not None:
        return np.array(plan.baseline.row), whole
    if plan.baseline.digest not in sets:
        raise CatalogError("the baseline set is neither in the manifest nor kept")
    return sets[plan.baseline.digest].mean(axis=0), whole


def _no_hint(why: str) -> HintItem:
    return HintItem(found=False, why=why)


def _members(inputs: Inputs, reason: ReasonItem) -> list[int]:
    """The indices of the features that a reason is about, those of groups included."""
    members = {component.name: component.members for component in inputs.components}
    return [at for name in (reason.features or (reason.feature,)) for at in members[name]]


def _hint(record: RecordItem, inputs: Inputs, path: _PathToBaseline, step: float, label: str) -> HintItem:
    row, features = path.at(step), inputs.named_features
    codes = {at: reason.code for reason in record.reasons or () for at in _members(inputs, reason)}
    changes = tuple(
        ChangeItem(
            feature=features[at].name,
            code=codes[at],
            before=float(path.input[at]),
            after=row[at],
            unit=features[at].unit,
        )
        for at in sorted(path.moved, key=list(path.moved).index)
        if row[at] != path.input[at]
    )
    return HintItem(found=True, label=label, step=step, changes=changes, note=NOTE)
