"""Replay: an explanation is computed again from its record, and compared with what the record says.

The plan is read back from the record, the personal part included, and run at the chunk shapes that it was computed at;
one that its deadline ended is ended after as many answers. Then all its numbers are compared, bit for bit. What the
explanation cost and how far it is off do not count against the tolerance; what it says does.

- `bit_exact`: everything that the numbers depend on is as it was, and so is every bit of them.
- `within_tolerance`: as it was, but some numbers differ, by no more than the explanation's own tolerance.
- `differs`: as it was, and yet they differ by more, or the record cannot be read or contradicts itself: it was
  changed, or something here is broken.
- `environment_differs`: something that the numbers depend on is not what it was: a version of a library, the device,
  the artefact, the baseline set. What differs is named. With the artefact or the baseline set gone nothing is
  computed; else `numbers` tells how the numbers compare all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import orjson

from service.catalog.sequences import Spans
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
)
from service.errors import ModelNotReady, NotFound, ReplayImpossible
from service.ledger.entries import Stored
from service.planning import expected_points
from service.records import explanation_body, prediction_of, whole_record

Verdict = Literal["bit_exact", "within_tolerance", "environment_differs", "differs"]
Numbers = Literal["equal", "within_tolerance", "differ"]

COMPARED = (
    "target",
    "output",
    "baseline_output",
    "attributions",
    "completeness",
    "completeness_error",
    "attribution_error",
    "standard_error",
    "interactions",
    "groups",
    "noise",
    "converged",
    "reason",
    "evaluations",
)
"""Of an explanation, everything that was computed."""
OF_THE_COURSE = frozenset({"completeness_error", "attribution_error", "converged", "reason", "evaluations"})
"""How the numbers came about, not what they say."""
CHUNK_ROWS = "chunk_rows"
CODE = "environment.answerable"
LARGEST_SHAPE = 2**16


class Engine(Protocol):
    """What a replay needs of the engine."""

    async def repeat(self, plan: Plan, expected_points: int, conditions: Conditions) -> Explanation: ...


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

    async def replay(self, stored: Stored) -> Replayed:
        """The verdict on one record.

        Raises ReplayImpossible, ModelNotReady, and what the engine raises.
        """
        record, personal = whole_record(stored), personal_of(stored)
        version = self._version(record["model"])
        differences = [*_environment_differences(record, version)]
        missing = [*_missing(record, version)]
        if missing:
            return Replayed("environment_differs", None, None, (*missing, *differences))
        try:
            plan, conditions = plan_of(record, personal), _conditions(record)
        except (KeyError, TypeError, ValueError):
            return Replayed("differs", None, None, tuple(differences), ("record",))
        if personal["plan_digest"] != plan.digest() and not any(d.what == CODE for d in differences):
            return Replayed("differs", None, None, tuple(differences), ("plan",))
        explanation = await self._engine.repeat(plan, expected_points(version, plan), conditions)
        if explanation.chunk_rows != str(conditions.shapes):
            differences.append(Difference(f"environment.{CHUNK_ROWS}", str(conditions.shapes), explanation.chunk_rows))
        numbers, largest, fields = _compared(record, _told(version, plan, explanation, record, personal), plan)
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
        input=_row(record["features"], personal.get("row", personal["input"])),
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
    )


def _row(names: Sequence[str], given: Any) -> tuple[float, ...]:
    values = [given[name] for name in names] if isinstance(given, Mapping) else given
    return tuple(map(float, values))


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


def _missing(record: Mapping[str, Any], version: ModelVersion) -> Iterator[Difference]:
    """What is no longer here of what the record was computed with."""
    if record["model"]["digest"] != version.key.digest:
        yield Difference("artefact", record["model"]["digest"], version.key.digest)
    baseline = record["baseline"]
    if "digest" not in baseline:  # it came with the request, and is in the record
        return
    known = [*version.manifest.baselines, *(kept.listed for kept in version.fitting_sets)]
    sets = {"sha256:" + found.sha256: f"{found.name}@{found.version}" for found in known}
    if baseline["digest"] not in sets:
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


def _compared(record: Mapping[str, Any], now: Mapping[str, Any], plan: Plan) -> tuple[Numbers, float, tuple[str, ...]]:
    """How the numbers of both compare, the largest absolute difference, and the fields that differ."""
    fields = [name for name in (*COMPARED, "prediction", "rule") if record.get(name) != now.get(name)]
    if not fields:
        return "equal", 0.0, ()
    differences = {name: _difference(record.get(name), now.get(name)) for name in fields}
    largest = max((found.largest for name, found in differences.items() if name not in OF_THE_COURSE), default=0.0)
    is_close = all(
        name in OF_THE_COURSE or (found.is_of_numbers and found.total <= plan.tolerance * found.size)
        for name, found in differences.items()
    )
    return "within_tolerance" if is_close else "differ", largest, tuple(fields)


@dataclass(frozen=True, slots=True)
class _Distance:
    """Between two values of JSON: the largest difference of two numbers, the sum of all, and the sum of the second's
    absolute numbers; `is_of_numbers` says that nothing but numbers differs."""

    largest: float
    total: float
    size: float
    is_of_numbers: bool


def _difference(recorded: object, now: object) -> _Distance:
    pairs = list(_pairs(recorded, now))
    numbers = [(a, b) for a, b in pairs if _is_number(a) and _is_number(b)]
    each = [abs(a - b) for a, b in numbers]
    is_of_numbers = all(a == b for a, b in pairs if not (_is_number(a) and _is_number(b)))
    return _Distance(max(each, default=0.0), sum(each), sum(abs(b) for _, b in numbers), is_of_numbers)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _pairs(recorded: Any, now: Any) -> Iterator[tuple[Any, Any]]:
    """The leaves of both, side by side; where one has more, None stands in the other's place."""
    if isinstance(recorded, Mapping) and isinstance(now, Mapping):
        for name in {**recorded, **now}:
            yield from _pairs(recorded.get(name), now.get(name))
    elif isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        for one, other in zip(recorded, now, strict=True):
            yield from _pairs(one, other)
    else:
        yield recorded, now
