"""Replay: an explanation is computed again from its record, and compared with what the record says.

The plan is read from the record, the personal part included, and computed in chunks of the same shapes. An explanation
that ended at its deadline is ended after the same number of answered questions. Then all numbers are compared, bit for
bit (`service.answers.comparison` says what the tolerance applies to).

- `bit_exact`: everything that the numbers depend on is as it was, and so is every bit of them.
- `within_tolerance`: everything is as it was, but some numbers differ, by no more than the explanation's tolerance.
- `differs`: everything is as it was, and yet numbers differ by more; or the record cannot be read or contradicts
  itself. Then it was changed, or something here is broken.
- `environment_differs`: something that the numbers depend on is not what it was: a version of a library, the device,
  the artefact, the baseline set. What differs is named. If the artefact or the baseline set is gone, or rows of the
  set were erased, nothing is computed; otherwise `numbers` says how the numbers compare all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.access.quotas import Account, charged
from service.access.visibility import Absent
from service.answers.comparison import Computed, Numbers, compared
from service.answers.explanation import answered
from service.answers.items import ModelItem
from service.answers.reading import NO_VERSION, NOT_WHOLE, personal_of, record_of
from service.answers.record import Personal, RecordItem
from service.answers.replies import DifferenceItem, ReplayReply, Verdict
from service.catalog.inputs.kind import PLAIN
from service.catalog.versions import Catalog, ModelVersion
from service.domain import (
    BaselineChoice,
    ChunkShapes,
    Conditions,
    Explanation,
    ModelKey,
    Noise,
    NoiseKind,
    OptionValue,
    OutputSpace,
    Plan,
    ToleranceOf,
)
from service.engine.protocol import Engine
from service.errors import ModelNotReady, NotFound, ReplayImpossible
from service.ledger.entries import LogChanged, Stored
from service.usecases.planning import expected_points

CHUNK_ROWS = "chunk_rows"
CODE = "environment.answerable"
ERASED = "erased"
"""What a reply says of a baseline set from which rows of an erased person were removed."""
MAX_CHUNK_ROWS = 2**16
"""No model is computed in larger chunks, so a record that names one was changed."""


class Replaying:
    """Replays stored explanations."""

    def __init__(self, engine: Engine, catalog: Catalog) -> None:
        self._engine = engine
        self._catalog = catalog

    async def replay(self, stored: Stored, account: Account | None) -> ReplayReply:
        """The verdict on one record; what is computed is charged to the account.

        Raises ReplayImpossible, ModelNotReady, QuotaSpent, InvalidRequest, and what the engine raises.
        """

        def not_computed(verdict: Verdict, differences: Sequence[DifferenceItem], *fields: str) -> ReplayReply:
            return ReplayReply(id=stored.id, verdict=verdict, fields=fields, differences=tuple(differences))

        try:
            record, personal = record_of(stored), personal_of(stored)
        except LogChanged:
            return not_computed("differs", (), "record")
        if record.model is None:
            return not_computed("differs", (), "record")
        try:
            version = version_of(self._catalog, record.model)
            differences = [*_environment_differences(record, version)]
            missing = [*missing_parts(record, version, stored.tenant)]
        except NOT_WHOLE:
            return not_computed("differs", (), "record")
        if missing:
            return not_computed("environment_differs", [*missing, *differences])
        try:
            plan, conditions = plan_of(record, personal, version), _conditions(record)
        except NOT_WHOLE:
            return not_computed("differs", differences, "record")
        if personal.plan_digest != plan.digest() and not any(difference.what == CODE for difference in differences):
            return not_computed("differs", differences, "plan")

        async def repeat() -> Explanation:
            return await self._engine.repeat(version.ref, plan, expected_points(version, plan), conditions)

        explanation = await charged(account, plan.max_evaluations, repeat, lambda explanation: explanation.evaluations)
        if explanation.chunk_rows != str(conditions.shapes):
            differences.append(_difference(f"environment.{CHUNK_ROWS}", str(conditions.shapes), explanation.chunk_rows))
        recorded = Computed(record, record.prediction, record.rule)
        now = _computed(version, plan, explanation, record, personal)
        numbers, largest, fields = compared(recorded, now, plan.tolerance)
        has_other_manifest = record.manifest != version.manifest_digest
        if has_other_manifest and (differences or numbers != "equal"):
            # Where all bits are equal, what changed in the manifest (a reason text, perhaps) did not matter.
            differences.append(_difference("manifest", record.manifest, version.manifest_digest))
        verdicts: Mapping[Numbers, Verdict] = {
            "equal": "bit_exact",
            "within_tolerance": "within_tolerance",
            "differ": "differs",
        }
        return ReplayReply(
            id=stored.id,
            verdict="environment_differs" if differences else verdicts[numbers],
            numbers=numbers,
            max_difference=largest,
            fields=fields,
            differences=tuple(differences),
        )


def version_of(catalog: Catalog, model: ModelItem) -> ModelVersion:
    """The version that a record names, as it is served here. Raises ReplayImpossible, ModelNotReady."""
    try:
        return catalog.find(model.name, model.version)
    except NotFound:
        raise ReplayImpossible(f"{model.name}@{model.version} is not served here; load it to replay this") from None
    except ModelNotReady:
        raise ModelNotReady(f"{model.name}@{model.version} is not ready") from None


def plan_of(record: RecordItem, personal: Personal, version: ModelVersion) -> Plan:
    """The plan that a record was made for. Raises KeyError, TypeError, ValueError or AttributeError where parts of it
    are missing or are not what they should be."""
    model, parameters, baseline = record.model, record.parameters, record.baseline
    if model is None or parameters is None or baseline is None:
        raise ValueError("the record has no model, no parameters or no baseline")
    noise, row = parameters.noise, personal.baseline.row
    return Plan(
        model=ModelKey(model.name, model.version, model.digest),
        method=record.method,
        options=tuple((name, _option(value)) for name, value in sorted(parameters.options.items())),
        input=version.manifest.inputs.of_record(personal.content).values,
        target=version.outputs.target_of_record(parameters.target, personal.content),
        output_space=OutputSpace(str(record.output_space)),
        baseline=BaselineChoice(
            baseline.name,
            baseline.version or NO_VERSION,
            personal.baseline.digest,
            baseline.size,
            None if row is None else tuple(map(float, row)),
        ),
        tolerance=parameters.tolerance,
        max_evaluations=parameters.max_evaluations,
        seed=parameters.seed,
        floor=parameters.floor,
        noise=None if noise is None else Noise(NoiseKind(noise.kind), noise.samples, noise.scale),
        # records made before there was a choice were made for completeness
        tolerance_of=ToleranceOf(parameters.tolerance_of or ToleranceOf.COMPLETENESS),
        errors=bool(parameters.errors),
        schema=record.schema,
    )


def _option(value: Any) -> OptionValue:
    if isinstance(value, list):
        return tuple(tuple(group) for group in value)
    option: OptionValue = value
    return option


def _conditions(record: RecordItem) -> Conditions:
    answers = None if isinstance(record.answers_until_deadline, Absent) else record.answers_until_deadline
    if answers is None and record.reason == "deadline":
        raise ReplayImpossible("the explanation ended at its deadline, and its record does not hold where")
    shapes = ChunkShapes.read((record.environment or {})[CHUNK_ROWS])
    if not 1 <= shapes.brief <= shapes.long <= MAX_CHUNK_ROWS:
        raise ValueError("no model was ever computed at such shapes")
    return Conditions(shapes, answers)


def _environment_differences(record: RecordItem, version: ModelVersion) -> Iterator[DifferenceItem]:
    recorded, now = record.environment or {}, version.environment or {}
    for name in sorted({*recorded, *now} - {CHUNK_ROWS}):
        if recorded.get(name) != now.get(name):
            yield _difference(f"environment.{name}", recorded.get(name), now.get(name))


def missing_parts(record: RecordItem, version: ModelVersion, tenant: str) -> Iterator[DifferenceItem]:
    """What the record was computed with and the tenant cannot use here any more: the artefact, the baseline set."""
    model, baseline = record.model, record.baseline
    if model is not None and model.digest != version.key.digest:
        yield _difference("artefact", model.digest, version.key.digest)
    if baseline is None or baseline.digest is None:  # it came with the request, and is in the record
        return
    known = [*version.manifest.baselines, *(kept.listed for kept in version.fitting_sets(tenant))]
    sets = {"sha256:" + listed.sha256: f"{listed.name}@{listed.version}" for listed in known}
    if baseline.digest in sets:
        return
    if any(baseline.digest in kept.erased for kept in version.sets_of(tenant)):
        yield _difference("baseline", baseline.digest, ERASED)
    else:
        same = [digest for digest, name in sets.items() if name == f"{baseline.name}@{baseline.version}"]
        yield _difference("baseline", baseline.digest, same[0] if same else None)


def _difference(what: str, recorded: str | None, now: str | None) -> DifferenceItem:
    return DifferenceItem(what=what, recorded=recorded, now=now)


def _computed(
    version: ModelVersion, plan: Plan, explanation: Explanation, record: RecordItem, personal: Personal
) -> Computed:
    """What a record of this explanation would say, shown as it was in `record`."""
    row = version.manifest.inputs.of_record(personal.content)
    detail = PLAIN if record.attributions is None else record.attributions.detail
    answer = answered(version, plan, explanation, row.places, id=record.id, cached=False, detail=detail)
    prediction = version.outputs.prediction_item(explanation.outputs, plan.output_space, truncated=row.truncated)
    return Computed(answer, prediction, explanation.rule)
