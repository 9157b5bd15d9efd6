"""Replay: an explanation is computed again from its record, and compared with what the record says.

The plan is read back from the record, the personal part included, and run at the chunk shapes that it was computed at;
one that its deadline ended is ended after as many answers. Then all its numbers are compared, bit for bit (see
`service.answers.comparison` for what the tolerance applies to).

- `bit_exact`: everything that the numbers depend on is as it was, and so is every bit of them.
- `within_tolerance`: as it was, but some numbers differ, by no more than the explanation's own tolerance.
- `differs`: as it was, and yet they differ by more, or the record cannot be read or contradicts itself: it was
  changed, or something here is broken.
- `environment_differs`: something that the numbers depend on is not what it was: a version of a library, the device,
  the artefact, the baseline set. What differs is named. With the artefact or the baseline set gone, or rows of the
  set erased, nothing is computed; else `numbers` tells how the numbers compare all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from service.access.quotas import Account, charged
from service.answers.comparison import Numbers, compared
from service.answers.records import explanation_body, prediction_of, whole_record
from service.catalog.inputs.sequences import Spans
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
from service.ledger.entries import Stored
from service.usecases.planning import expected_points

Verdict = Literal["bit_exact", "within_tolerance", "environment_differs", "differs"]
CHUNK_ROWS = "chunk_rows"
CODE = "environment.answerable"
ERASED = "erased"
"""What a baseline set is now if rows of it were removed since."""
LARGEST_SHAPE = 2**16


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that the numbers depend on and that is not what it was."""

    what: str
    recorded: object
    now: object


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a replay.

    `numbers` and `max_difference`, the largest absolute one, are None if nothing was computed; `fields` are the parts
    of the explanation that differ.
    """

    verdict: Verdict
    numbers: Numbers | None
    max_difference: float | None
    differences: tuple[Difference, ...]
    fields: tuple[str, ...] = ()


class Replaying:
    """Replays stored explanations."""

    def __init__(self, engine: Engine, catalog: Catalog) -> None:
        self._engine = engine
        self._catalog = catalog

    async def replay(self, stored: Stored, account: Account | None) -> Replayed:
        """The verdict on one record; the account pays for what is computed.

        Raises ReplayImpossible, ModelNotReady, QuotaSpent, InvalidRequest, and what the engine raises.
        """
        record, personal = whole_record(stored), personal_of(stored)
        version = self._version(record["model"])
        differences = [*_environment_differences(record, version)]
        missing = [*_missing(record, version, stored.tenant)]
        if missing:
            return Replayed("environment_differs", None, None, (*missing, *differences))
        try:
            plan, conditions = plan_of(record, personal), _conditions(record)
        except (KeyError, TypeError, ValueError):
            return Replayed("differs", None, None, tuple(differences), ("record",))
        if personal["plan_digest"] != plan.digest() and not any(d.what == CODE for d in differences):
            return Replayed("differs", None, None, tuple(differences), ("plan",))

        async def repeated() -> Explanation:
            return await self._engine.repeat(version.ref, plan, expected_points(version, plan), conditions)

        explanation = await charged(account, plan.max_evaluations, repeated, lambda found: found.evaluations)
        if explanation.chunk_rows != str(conditions.shapes):
            differences.append(Difference(f"environment.{CHUNK_ROWS}", str(conditions.shapes), explanation.chunk_rows))
        told = _told(version, plan, explanation, record, personal)
        numbers, largest, fields = compared(record, told, plan.tolerance)
        is_manifest_another = record["manifest"] != version.manifest_digest
        if is_manifest_another and (differences or numbers != "equal"):
            # On its own it is a reason text, perhaps: where all bits are as they were, it did not matter.
            differences.append(Difference("manifest", record["manifest"], version.manifest_digest))
        if differences:
            return Replayed("environment_differs", numbers, largest, tuple(differences), fields)
        verdicts: Mapping[Numbers, Verdict] = {
            "equal": "bit_exact",
            "within_tolerance": "within_tolerance",
            "differ": "differs",
        }
        return Replayed(verdicts[numbers], numbers, largest, (), fields)

    def _version(self, model: Mapping[str, str]) -> ModelVersion:
        name, number = model["name"], model["version"]
        try:
            return self._catalog.find(name, number)
        except NotFound:
            raise ReplayImpossible(f"{name}@{number} is not served here; load it to replay this") from None
        except ModelNotReady:
            raise ModelNotReady(f"{name}@{number} is not ready") from None


def personal_of(stored: Stored) -> dict[str, Any]:
    """The personal part of a record."""
    personal: dict[str, Any] = orjson.loads(stored.personal)
    return personal


def plan_of(record: Mapping[str, Any], personal: Mapping[str, Any]) -> Plan:
    """The plan that a record was made for."""
    model, parameters, baseline = record["model"], record["parameters"], record["baseline"]
    row = personal["baseline"]["row"]
    noise = parameters["noise"]
    return Plan(
        model=ModelKey(model["name"], model["version"], model["digest"]),
        method=record["method"],
        options=tuple((name, _option(value)) for name, value in sorted(parameters["options"].items())),
        input=_row(personal.get("row", personal["input"])),
        target=parameters["target"],
        output_space=OutputSpace(record["output_space"]),
        baseline=BaselineChoice(
            baseline["name"],
            baseline.get("version", "1"),
            personal["baseline"]["digest"],
            baseline["size"],
            None if row is None else tuple(map(float, row)),
        ),
        tolerance=parameters["tolerance"],
        max_evaluations=parameters["max_evaluations"],
        seed=parameters["seed"],
        floor=parameters["floor"],
        noise=None if noise is None else Noise(NoiseKind(noise["kind"]), noise["samples"], noise["scale"]),
        # records made before there was a choice were made for completeness
        tolerance_of=ToleranceOf(parameters.get("tolerance_of", ToleranceOf.COMPLETENESS)),
        errors=parameters.get("errors", False),
    )


def _row(given: Any) -> tuple[float, ...]:
    """Values by name lie in the order of the features, as they were written."""
    return tuple(map(float, given.values() if isinstance(given, Mapping) else given))


def _option(value: Any) -> OptionValue:
    if isinstance(value, list):
        return tuple(tuple(group) for group in value)
    option: OptionValue = value
    return option


def _conditions(record: Mapping[str, Any]) -> Conditions:
    answers = record.get("answers_until_deadline")
    if answers is None and record.get("reason") == "deadline":
        raise ReplayImpossible("the explanation ended at its deadline, and its record does not hold where")
    shapes = ChunkShapes.read(record["environment"][CHUNK_ROWS])
    if not 1 <= shapes.brief <= shapes.long <= LARGEST_SHAPE:
        raise ValueError("no model was ever computed at such shapes")
    return Conditions(shapes, answers)


def _environment_differences(record: Mapping[str, Any], version: ModelVersion) -> Iterator[Difference]:
    recorded, now = record["environment"], version.environment or {}
    for name in sorted({*recorded, *now} - {CHUNK_ROWS}):
        if recorded.get(name) != now.get(name):
            yield Difference(f"environment.{name}", recorded.get(name), now.get(name))


def _missing(record: Mapping[str, Any], version: ModelVersion, tenant: str) -> Iterator[Difference]:
    """What is no longer here, for the tenant whose record it is, of what it was computed with."""
    if record["model"]["digest"] != version.key.digest:
        yield Difference("artefact", record["model"]["digest"], version.key.digest)
    baseline = record["baseline"]
    if "digest" not in baseline:  # it came with the request, and is in the record
        return
    known = [*version.manifest.baselines, *(kept.listed for kept in version.fitting_sets(tenant))]
    sets = {"sha256:" + found.sha256: f"{found.name}@{found.version}" for found in known}
    if baseline["digest"] in sets:
        return
    if any(baseline["digest"] in one.erased for one in version.sets_of(tenant)):
        yield Difference("baseline", baseline["digest"], ERASED)
    else:
        same = [digest for digest, name in sets.items() if name == f"{baseline['name']}@{baseline['version']}"]
        yield Difference("baseline", baseline["digest"], same[0] if same else None)


def _told(
    version: ModelVersion,
    plan: Plan,
    explanation: Explanation,
    record: Mapping[str, Any],
    personal: Mapping[str, Any],
) -> Mapping[str, Any]:
    """What a record of this explanation would say, shown as it was in `record`."""
    spans = Spans(**personal["spans"]) if "spans" in personal else None
    shown = record.get("attributions")
    has_channels = isinstance(shown, Mapping) and "channels" in shown and "shape" in shown
    body = explanation_body(version, plan, explanation, spans, cached=False, has_channels=has_channels)
    prediction = prediction_of(version, plan.output_space, explanation.outputs, spans)
    told: Mapping[str, Any] = orjson.loads(orjson.dumps({**body, "prediction": prediction, "rule": explanation.rule}))
    return told
