"""The use case: a request for predictions with explanations, from plans to recorded answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, TypeVar

from service.access.callers import Caller
from service.access.permissions import Policy
from service.access.quotas import charged, counted
from service.answers.cache import Cache, plan_cache_digest
from service.answers.disclosure import limited, limited_prediction
from service.answers.explanation import Answered, ExplanationItem, answered
from service.answers.items import StabilityItem, TimingsItem
from service.answers.record import ledger_entry
from service.answers.replies import RememberedReply
from service.catalog.inputs.kind import Row
from service.catalog.outputs.registry import AnyPrediction
from service.catalog.review_rules import Condition, Rule
from service.catalog.versions import ModelVersion
from service.domain import Context, Explanation, OutputSpace, Plan, Priority, Timings
from service.engine.protocol import Engine
from service.errors import InvalidRequest, LedgerFull, LedgerUnavailable, NotConverged, PolicyForbids
from service.ledger.append_queue import Room
from service.ledger.entries import Entry, RequestKey
from service.ledger.ids import uuid7
from service.ledger.ledger import Ledger
from service.monitoring.health import Health
from service.monitoring.metrics import Metrics
from service.monitoring.review import holds
from service.monitoring.timings import RequestTimings
from service.usecases.fragility import stability_of
from service.usecases.planning import Parameters, deadline_of, expected_points, make_plans, read_when
from service.usecases.references import check_explained, plans_of, referred_rows

LOG = logging.getLogger("answerable.explaining")
LedgerMode = Literal["required", "best_effort", "off"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One `:explain` or `:predict` call, parsed: a row and a context for each instance.

    Explanations are those of the first row, one for each target, then those of the second. `ids` are theirs, None for
    new ones. `counted` is how many of them were counted already against the key's quota of requests. `timings` is
    filled in while the request is answered. `chosen` are the numbers of the rows among those of a whole request, None
    where these are all.
    With `must_be_recorded` there is no answer without its record, whatever the ledger's mode is; nor with an
    idempotency `key`, under which the answer is remembered together with its records.
    `job_row` is the job, and the number of its row, that this explains: once either has ended, nothing is recorded.
    """

    version: ModelVersion
    rows: Sequence[Row]
    parameters: Parameters
    contexts: Sequence[Context]
    caller: Caller
    use_cache: bool
    received: float
    priority: Priority = Priority.INTERACTIVE
    ids: Sequence[str] | None = None
    counted: int = 0
    timings: RequestTimings = field(default_factory=RequestTimings)
    must_be_recorded: bool = False
    job_row: tuple[str, int] | None = None
    key: RequestKey | None = None
    chosen: tuple[int, ...] | None = None

    @property
    def explanations(self) -> int:
        """How many explanations are asked for."""
        return len(self.rows) * self.parameters.explanations


@dataclass(frozen=True, slots=True)
class Answer:
    """One explanation and the prediction that it is of, as they are sent."""

    prediction: AnyPrediction
    explanation: ExplanationItem


@dataclass(frozen=True, slots=True)
class NotExplained:
    """The prediction of an instance that was not to be explained."""

    prediction: AnyPrediction
    explanation: None = None


_Result = tuple[Explanation, bool, Timings | None]
"""The explanation of a plan, whether it came from the cache, and how long it took if not."""


_FlightKey = tuple[str, str, Priority]
"""The tenant, the digest of the plan, and the priority: an interactive request does not wait for a bulk one."""


@dataclass(slots=True)
class _Flight:
    """A look-up, and perhaps a computation, that identical requests wait for; it ends when the last of them leaves."""

    task: asyncio.Task[_Result]
    waiters: int = 0


class Explaining:
    """Answers requests: from the cache or the engine, and never without a record.

    `max_points` is the most work that the engine queues; a request that exceeds it on its own is refused as impossible,
    not as too early.
    """

    def __init__(
        self,
        engine: Engine,
        cache: Cache,
        ledger: Ledger | None,
        ledger_mode: LedgerMode,
        metrics: Metrics,
        health: Health,
        max_points: int,
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._ledger = ledger
        self._ledger_mode = ledger_mode
        self._metrics = metrics
        self._health = health
        self._max_points = max_points
        self._flights: dict[_FlightKey, _Flight] = {}

    @property
    def waiting(self) -> tuple[int, ...]:
        """Of each computation that identical requests share and that is under way, how many rows wait for it."""
        return tuple(flight.waiters for flight in self._flights.values())

    async def explain(self, request: Request) -> list[Answer]:
        """One answer for each instance and target, or an error for all of them.

        Raises InvalidRequest, NotConverged (if `strict`), Overloaded, LedgerFull, QuotaSpent, DeadlineExceeded,
        WorkerLost, ComputationFailed, LedgerUnavailable; EntryRefused where a request with the same key was answered.
        """
        return await self._explain_all(request, deadline_of(request.parameters, time.monotonic()))

    async def explain_where(self, request: Request, when: str) -> list[Answer | NotExplained]:
        """As `explain`, of the instances for whose prediction the rule `when` holds; of the others the prediction only,
        once for each target. These cost a forward pass, and no record is written of them.

        Raises what `explain` does; PolicyForbids where the rule would tell what the policy withholds.
        """
        version, parameters, policy = request.version, request.parameters, request.caller.policy
        outputs, rule = version.outputs, rule_of(version, when, policy)
        deadline = deadline_of(parameters, time.monotonic())
        (first, *_) = make_plans(version, [request.rows[0].values], parameters, request.caller.tenant)
        refuse_method(policy, first.method)
        with counted(request.caller.account, len(request.rows), request.counted):
            predicted = await self._predicted(request, first.output_space, deadline)
            chosen = [at for at, values in enumerate(predicted) if holds(rule, outputs, values, first.output_space)]
            times = parameters.explanations
            ids = None if request.ids is None else [request.ids[at * times + n] for at in chosen for n in range(times)]
            part = replace(
                request,
                rows=[request.rows[at] for at in chosen],
                contexts=[request.contexts[at] for at in chosen],
                ids=ids,
                counted=len(chosen),
                chosen=tuple(chosen),
            )
            explained = iter(await self._explain_all(part, deadline) if chosen else ())
        answers: list[Answer | NotExplained] = []
        are_chosen = frozenset(chosen)
        for at, (values, row) in enumerate(zip(predicted, request.rows, strict=True)):
            if at in are_chosen:
                answers += islice(explained, times)
            else:
                item = outputs.prediction_item(values, first.output_space, truncated=row.truncated)
                answers += [NotExplained(limited_prediction(item, policy))] * times
        return answers

    async def _explain_all(self, request: Request, deadline: float | None) -> list[Answer]:
        with counted(request.caller.account, request.explanations, request.counted), self._room(request) as room:
            return await self._explain(request, deadline, room)

    @contextmanager
    def _room(self, request: Request) -> Iterator[Room | None]:
        """Reserves room for the records first: what cannot be recorded is not computed in vain."""
        with ExitStack() as held:
            room = None
            if self._ledger is not None:
                try:
                    room = held.enter_context(self._ledger.room(request.explanations))
                except (LedgerFull, LedgerUnavailable):
                    if self._must_be_recorded(request):
                        raise  # otherwise: there may be room once it is computed
            yield room

    def _must_be_recorded(self, request: Request) -> bool:
        return request.must_be_recorded or request.key is not None or self._ledger_mode == "required"

    async def _explain(self, request: Request, deadline: float | None, room: Room | None) -> list[Answer]:
        version, parameters = request.version, request.parameters
        check_explained(version, request.rows, parameters, request.chosen)
        planned = await self._planned(request, deadline)
        plans = [plan for _, plan in planned]
        digests = [plan.digest() for plan in plans]
        self._refuse_what_never_fits(version, plans, len(request.rows))
        refuse_method(request.caller.policy, plans[0].method)

        async def all_results() -> list[_Result]:
            calls = [self._result(request, plan, digest, deadline) for plan, digest in zip(plans, digests, strict=True)]
            return await all_of(calls)

        measured = request.timings
        measured.version, measured.explanations, measured.submitted = version.key.version, len(plans), time.monotonic()
        max_points = sum(plan.max_evaluations for plan in plans)
        results = await charged(request.caller.account, max_points, all_results, _computed_points)
        measured.computed = [
            (timings, explanation.evaluations) for explanation, _, timings in results if timings is not None
        ]

        if parameters.strict:
            _refuse_not_converged([explanation for explanation, _, _ in results])
        stabilities = await self._stabilities(request, plans, [explanation for explanation, _, _ in results])
        outputs, times = version.outputs, parameters.explanations
        untimed = []
        entries: list[Entry] = []
        ids = request.ids or [uuid7() for _ in plans]
        for (row, plan), digest, (explanation, cached, _), stability, context, own_id in zip(
            planned, digests, results, stabilities, _each(request.contexts, times), ids, strict=True
        ):
            prediction = outputs.prediction_item(explanation.outputs, plan.output_space, truncated=row.truncated)
            answer = answered(
                version,
                plan,
                explanation,
                row.places,
                id=own_id,
                cached=cached,
                detail=parameters.detail,
                stability=stability,
            )
            if not cached:
                self._health.observe(version, plan, explanation, context.cohort)
            untimed.append((prediction, answer))
            if self._ledger is not None:
                caller, places, job_row = request.caller, row.places, request.job_row
                entries.append(
                    ledger_entry(
                        version, plan, digest, explanation, prediction, answer, caller, context, places, job_row
                    )
                )
        recording = time.monotonic()
        remembered = None
        if request.key is not None:  # what it remembers leaves out the time that this takes
            remembered = [_milliseconds(timings, recording - request.received) for _, _, timings in results]
        await self._record(request, entries, room, remembered)
        recorded = time.monotonic()
        measured.recorded = recording, recorded
        timing_items = remembered or [_milliseconds(timings, recorded - request.received) for _, _, timings in results]
        watched = version.manifest.inputs.segment_names
        for _, answer in untimed:
            self._metrics.observe_flags(version.key.name, answer.flags)
            self._metrics.observe_segments(version.key.name, watched, answer.segments or ())
        policy = request.caller.policy
        return [
            limited_answer(prediction, answer, policy, timings)
            for (prediction, answer), timings in zip(untimed, timing_items, strict=True)
        ]

    async def _stabilities(
        self, request: Request, plans: Sequence[Plan], explanations: Sequence[Explanation]
    ) -> Sequence[StabilityItem | None]:
        """Of each explanation how much of its ranking is left near its input, where that is asked for."""
        if not request.parameters.stability:
            return [None] * len(plans)
        version, account = request.version, request.caller.account
        pairs = zip(plans, explanations, strict=True)
        return await all_of([stability_of(self._engine, version, plan, one, account) for plan, one in pairs])

    async def _planned(self, request: Request, deadline: float | None) -> list[tuple[Row, Plan]]:
        """The plans, each with the row that it explains; the artefact is asked first about what targets refer to."""
        version, parameters = request.version, request.parameters
        needed = referred_rows(version, request.rows, parameters)
        answers = await self._outputs_at(version, needed, version.manifest.outputs.default_space, deadline)
        return plans_of(
            version, request.rows, parameters, dict(zip(needed, answers, strict=True)), request.caller.tenant
        )

    async def _record(
        self, request: Request, entries: Sequence[Entry], room: Room | None, remembered: Sequence[TimingsItem] | None
    ) -> None:
        """Records the explanations; with an idempotency key also the timings that repetitions of the answer state."""
        if self._ledger is None:
            return
        kept = None
        if request.key is not None and remembered is not None:
            ids = tuple(entry.id for entry in entries)
            reply = RememberedReply(ids=ids, timings=tuple(remembered), explained=request.chosen)
            kept = request.key.remembered(reply.to_mapping())
        try:
            await self._ledger.append(entries, kept, room)
        except LedgerUnavailable:
            if self._must_be_recorded(request):
                raise
            LOG.exception("explanations were answered without a record")
        else:
            for entry in entries:
                if entry.subject is None:
                    self._metrics.without_subject.labels(entry.model).inc()

    def _refuse_what_never_fits(self, version: ModelVersion, plans: Sequence[Plan], instances: int) -> None:
        points = sum(expected_points(version, plan) for plan in plans)
        if points > self._max_points:
            fitting = self._max_points * instances // points
            raise InvalidRequest(
                f"this is more work than the engine ever holds; send at most {fitting} instances at once"
            )

    async def predict(self, request: Request) -> list[AnyPrediction]:
        """The deployed artefact's prediction for each instance."""
        version, parameters = request.version, request.parameters
        outputs = version.outputs
        space = outputs.read_space(parameters.output_space)
        request.timings.version = version.key.version
        deadline = deadline_of(parameters, time.monotonic())
        with counted(request.caller.account, len(request.rows), request.counted):
            predicted = await self._predicted(request, space, deadline)
        return [
            limited_prediction(outputs.prediction_item(values, space, truncated=row.truncated), request.caller.policy)
            for values, row in zip(predicted, request.rows, strict=True)
        ]

    async def _predicted(self, request: Request, space: OutputSpace, deadline: float | None) -> list[tuple[float, ...]]:
        """The outputs for each row."""
        return await self._outputs_at(request.version, [row.values for row in request.rows], space, deadline)

    async def _outputs_at(
        self, version: ModelVersion, rows: Sequence[tuple[float, ...]], space: OutputSpace, deadline: float | None
    ) -> list[tuple[float, ...]]:
        seconds_left = _seconds_left(deadline)
        calls = [self._engine.predict(version.ref, row, seconds_left) for row in rows]
        return [prediction.outputs[space] for prediction in await all_of(calls)]

    async def _result(self, request: Request, plan: Plan, plan_digest: str, deadline: float | None) -> _Result:
        if not request.use_cache:
            return await self._compute(request.version, plan, deadline, request.priority)
        tenant, version, priority = request.caller.tenant, request.version, request.priority
        digest = plan_cache_digest(plan_digest, version.manifest_digest, version.environment or {})
        key = tenant, digest, priority
        if deadline is None:
            return await self._shared(key, version, plan)
        return await self._cached_or_computed(key, version, plan, deadline)

    async def _shared(self, key: _FlightKey, version: ModelVersion, plan: Plan) -> _Result:
        """One look-up in the cache, and at most one computation, for all identical requests that are under way.

        If each looked for itself, one could miss in the cache while another computes and stores the result, and would
        compute it again.
        """
        flight = self._flights.get(key)
        if flight is None:
            work = self._cached_or_computed(key, version, plan, None)
            flight = self._flights[key] = _Flight(asyncio.get_running_loop().create_task(work))
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                flight.task.cancel()
            if not flight.waiters or flight.task.done():
                self._remove_flight(key, flight)

    def _remove_flight(self, key: _FlightKey, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _cached_or_computed(
        self, key: _FlightKey, version: ModelVersion, plan: Plan, deadline: float | None
    ) -> _Result:
        tenant, digest, _ = key
        stored = await self._cache.result(tenant, digest)
        if stored is not None:
            return stored, True, None
        return await self._computed_and_kept(key, version, plan, deadline)

    async def _computed_and_kept(
        self, key: _FlightKey, version: ModelVersion, plan: Plan, deadline: float | None
    ) -> _Result:
        tenant, digest, priority = key
        forgotten = self._cache.forgotten
        result = await self._compute(version, plan, deadline, priority)
        explanation = result[0]
        may_be_erased = self._cache.forgotten != forgotten  # somebody was erased meanwhile: this may be theirs
        if explanation.reason not in ("deadline", "non_finite") and not may_be_erased:
            self._cache.keep_result(tenant, digest, explanation)
        return result

    async def _compute(self, version: ModelVersion, plan: Plan, deadline: float | None, priority: Priority) -> _Result:
        points = expected_points(version, plan)
        seconds_left = _seconds_left(deadline)
        explanation, timings = await self._engine.explain(version.ref, plan, points, priority, seconds_left)
        self._metrics.observe_explanation(plan.model.name, plan.method, plan.tolerance, explanation, timings.queue)
        self._health.consider(version, plan, explanation, points)
        return explanation, False, timings


def limited_answer(prediction: AnyPrediction, answer: Answered, policy: Policy, timings: TimingsItem) -> Answer:
    """An answer as the policy lets it be seen."""
    return Answer(limited_prediction(prediction, policy), limited(answer, policy, prediction).taking(timings))


def refuse_method(policy: Policy, method: str) -> None:
    """Raises PolicyForbids for a method that the policy does not allow."""
    if policy.methods is not None and method not in policy.methods:
        raise PolicyForbids(f"the key's policy allows the methods {', '.join(sorted(policy.methods))}")


def rule_of(version: ModelVersion, when: str, policy: Policy) -> Rule:
    """The rule of a request that says which instances are explained.

    Raises InvalidRequest; PolicyForbids for a rule on numbers that the policy withholds or rounds: asked often enough,
    whether it holds tells them.
    """
    rule = read_when(version.manifest, when)
    if not isinstance(rule, Condition) and (policy.digits is not None or not policy.outputs):
        raise PolicyForbids("the key's policy limits what is shown of outputs, so `when` may only ask for the label")
    return rule


def _seconds_left(deadline: float | None) -> float | None:
    """Until a moment on the monotonic clock; None where there is no deadline."""
    return None if deadline is None else deadline - time.monotonic()


def _computed_points(results: Sequence[_Result]) -> int:
    return sum(explanation.evaluations for explanation, cached, _ in results if not cached)


def _refuse_not_converged(explanations: Sequence[Explanation]) -> None:
    for explanation in explanations:
        if not explanation.converged:
            error = explanation.completeness_error
            reached = "" if error is None else f"; the completeness error is {error:.2g}"
            raise NotConverged(
                f"the tolerance was not met after {explanation.evaluations} evaluations ({explanation.reason}){reached}"
            )


def _milliseconds(timings: Timings | None, total: float) -> TimingsItem:
    queue, compute = (timings.queue, timings.compute) if timings is not None else (0.0, 0.0)
    return TimingsItem(queue=round(queue * 1e3, 3), compute=round(compute * 1e3, 3), total=round(total * 1e3, 3))


def _each(items: Sequence[T], times: int) -> list[T]:
    """Every item so many times, one after the other."""
    return [item for item in items for _ in range(times)]


async def all_of(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all calls; the first error cancels the others and is raised as it is."""
    if len(calls) == 1:
        return [await calls[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
