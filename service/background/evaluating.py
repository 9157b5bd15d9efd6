"""Jobs of evaluations: figures of many explanations, by the metrics of `service.faithfulness`.

A row is an instance, whose explanation by each method is judged, or a stored explanation, judged as it was given. What
came of a row is its `detail`: figures by method, and nothing of the input. So nothing is measured twice after a
restart, and the result is read off the rows whenever it is asked for. Where a job ends it is also kept with the
version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from service.access.callers import Caller
from service.access.quotas import charged
from service.answers.reading import NOT_WHOLE, personal_of, record_of
from service.background.jobs import RowFailed, RowWork, opened_spec, until_available, with_instances
from service.catalog.versions import Catalog, ModelVersion
from service.domain import Plan
from service.engine.protocol import Engine, Evaluation
from service.faithfulness.registry import BY_NAME
from service.faithfulness.subject import Measure, Measured
from service.faithfulness.summary import Figure, figure_of
from service.ledger import Ledger, Vault
from service.ledger.entries import LogChanged
from service.ledger.jobs import Jobs
from service.ledger.stored_jobs import DONE, Job, JobRow
from service.lifecycle.serving.evaluations import Evaluated, Evaluations
from service.usecases.evaluating import expected_cost
from service.usecases.planning import Parameters
from service.usecases.references import plans_of, referred_rows
from service.usecases.replaying import plan_of

PAGE = 500


@dataclass(frozen=True, slots=True)
class EvaluateSpec:
    """What a job of evaluations is to do. `methods` explain each input; where there are none, stored explanations are
    judged as they are. `source` says in words what the inputs are."""

    model: str
    version: str
    parameters: Parameters
    methods: tuple[str, ...]
    measures: tuple[Measure, ...]
    source: str

    @classmethod
    def of(cls, vault: Vault, job: Job) -> EvaluateSpec:
        """That of a stored job."""
        stored = opened_spec(vault, job)
        measures = tuple(
            Measure(one["metric"], one["replace"], tuple((name, value) for name, value in one["options"]))
            for one in stored["measures"]
        )
        parameters = Parameters(**stored["parameters"])
        methods = tuple(stored["methods"])
        return cls(stored["model"], stored["version"], parameters, methods, measures, stored["source"])


class EvaluateRows(RowWork[EvaluateSpec]):
    """The work of jobs of evaluations."""

    def __init__(
        self, jobs: Jobs, engine: Engine, catalog: Catalog, ledger: Ledger, vault: Vault, kept: Evaluations
    ) -> None:
        super().__init__(jobs, catalog, ledger, vault)
        self._engine = engine
        self._kept = kept

    def _spec(self, job: Job) -> EvaluateSpec:
        return EvaluateSpec.of(self._vault, job)

    async def __call__(self, job: Job, caller: Caller) -> None:
        """Judges every row that is not finished, and keeps the result with the version."""
        await super().__call__(job, caller)
        spec = self._spec(job)
        version = self._version(spec.model, spec.version)
        rows = await until_available(lambda: finished_rows(self._jobs, job.id))
        figures = tuple(figures_of(spec, rows))
        key, manifest = version.key, version.manifest_digest
        evaluated = Evaluated(
            job.id, key.name, key.version, key.digest, manifest, job.tenant, spec.source, len(rows), figures
        )
        await asyncio.to_thread(self._kept.keep, evaluated)

    async def _do(self, job: Job, row: JobRow, spec: EvaluateSpec, caller: Caller) -> str | None:
        version = self._version(spec.model, spec.version)
        async with self._room_of(spec.parameters):
            current = await asyncio.to_thread(self._jobs.unfinished_row, job.id, row.number)
            if current is None:
                return None
            asked = (
                await self._planned(current, spec, caller, version)
                if spec.methods
                else [await self._as_recorded(current, caller, version)]
            )
            measures = await asyncio.to_thread(self._with_boxes, spec.measures, current)
            found: dict[str, Any] = {}
            for plan, attributions in asked:
                evaluation = await self._evaluation(version, plan, measures, attributions, caller)
                found[plan.method] = [[one.value, one.curve, one.reason] for one in evaluation.measured]
            return orjson.dumps(found).decode()

    def _with_boxes(self, measures: tuple[Measure, ...], row: JobRow) -> tuple[Measure, ...]:
        """The measures, of which those that take boxes have those of the row."""
        if row.payload is None or not any(BY_NAME[measure.metric].takes_boxes for measure in measures):
            return measures
        content = orjson.loads(self._vault.open(row.payload, row.explanation_id, None))
        boxes = tuple(tuple(box) for box in content.get("boxes", ()))
        return tuple(replace(one, boxes=boxes) if BY_NAME[one.metric].takes_boxes else one for one in measures)

    async def _planned(
        self, row: JobRow, spec: EvaluateSpec, caller: Caller, version: ModelVersion
    ) -> list[tuple[Plan, None]]:
        """A plan of each method for the input of a row. Raises RowFailed, InvalidRequest."""
        read, _ = await self._input(row, caller, version)
        parameters = await asyncio.to_thread(with_instances, version, spec.parameters)
        space, answers = version.manifest.outputs.default_space, {}
        for referred in referred_rows(version, [read], parameters):
            answers[referred] = (await self._engine.predict(version.ref, referred)).outputs[space]
        of_methods = (replace(parameters, method=method) for method in spec.methods)
        planned = (plans_of(version, [read], one, answers, caller.tenant) for one in of_methods)
        return [(plan, None) for plans in planned for _, plan in plans]

    async def _as_recorded(
        self, row: JobRow, caller: Caller, version: ModelVersion
    ) -> tuple[Plan, tuple[float, ...] | None]:
        """The plan and the attributions of a stored explanation of this version. Raises RowFailed."""
        stored = None if row.source is None else await self._ledger.get(caller.tenant, row.source)
        if stored is None or stored.tombstone is not None:
            raise RowFailed("the explanation that was to be judged is no longer there")
        try:
            record, personal = record_of(stored), personal_of(stored)
            if record.model is None or record.model.digest != version.key.digest:
                raise RowFailed("the explanation is of another artefact than this version's")
            if record.attributions is None:
                raise RowFailed("the explanation has no attributions")
            inputs = version.manifest.inputs
            values = inputs.recorded_values(record.attributions, inputs.of_record(personal.content))
            return plan_of(record, personal, version), values
        except (LogChanged, *NOT_WHOLE):
            raise RowFailed("the record is not whole") from None

    async def _evaluation(
        self,
        version: ModelVersion,
        plan: Plan,
        measures: tuple[Measure, ...],
        attributions: tuple[float, ...] | None,
        caller: Caller,
    ) -> Evaluation:
        """Charged with what it is expected to cost."""
        cost = expected_cost(version, plan, measures, is_explained=attributions is not None)

        async def evaluate() -> Evaluation:
            return await self._engine.evaluate(version.ref, plan, measures, attributions, cost)

        return await charged(caller.account, cost, evaluate, lambda _: cost)


def finished_rows(jobs: Jobs, job_id: str) -> list[JobRow]:
    """All finished rows of a job, in their order."""
    rows: list[JobRow] = []
    while page := jobs.results(job_id, rows[-1].number if rows else -1, PAGE):
        rows += page
    return rows


def figures_of(spec: EvaluateSpec, rows: Sequence[JobRow]) -> list[Figure]:
    """The figures over finished rows, by method and metric; a place for each row, empty where it failed."""
    found = [_measured(row) for row in rows]
    methods = spec.methods or tuple(dict.fromkeys(method for one in found for method in one))
    return [
        figure_of(method, measure, [one[method][at] if method in one else None for one in found])
        for method in methods
        for at, measure in enumerate(spec.measures)
    ]


def _measured(row: JobRow) -> Mapping[str, Sequence[Measured]]:
    """By method what was measured of a row; nothing where it failed."""
    if row.outcome != DONE or row.detail is None:
        return {}
    return {
        method: [Measured(value, None if curve is None else tuple(curve), reason) for value, curve, reason in measured]
        for method, measured in orjson.loads(row.detail).items()
    }
