"""`answerable models evaluate`: methods of a version compared by metrics, in the command's own process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from service.domain import Floats, Plan, Priority
from service.engine.messages import Failed
from service.engine.protocol import Evaluation
from service.engine.worker.evaluation import evaluate
from service.engine.worker.packing import Live
from service.engine.worker.scheduler import Scheduler
from service.errors import AnswerableError, InvalidRequest
from service.faithfulness.subject import Measure, Measured
from service.faithfulness.summary import Figure, figure_of
from service.lifecycle.checking.trial import Trial
from service.usecases.evaluating import read_measures


def compare_methods(
    trial: Trial,
    rows: Floats,
    methods: Sequence[str],
    metrics: Sequence[str] | None,
    options: Mapping[str, Mapping[str, object]],
    seed: int = 0,
) -> tuple[list[Figure], dict[str, str]]:
    """The figures of each method over `rows` [n, columns], and why a method has none.

    Raises InvalidRequest where the metrics or their options are wrong, or no method can be used.
    """
    measures = read_measures(trial.version, metrics, options)
    figures: list[Figure] = []
    refused: dict[str, str] = {}
    for method in methods:
        try:
            evaluations = evaluated_together(trial, trial.plans(rows, method, seed=seed), measures)
        except AnswerableError as error:
            refused[method] = str(error)
            continue
        for at, measure in enumerate(measures):
            figures.append(figure_of(method, measure, [one.measured[at] for one in evaluations]))
    if not figures:
        raise InvalidRequest("; ".join(refused.values()))
    return figures, refused


def evaluated_together(trial: Trial, plans: Sequence[Plan], measures: Sequence[Measure]) -> list[Evaluation]:
    """The evaluations of plans, all under way at once. Raises the first error that one failed with."""
    scheduler = Scheduler()
    for task, plan in enumerate(plans):
        model = trial.model.for_plan(plan)
        steps = evaluate(plan, measures, None, model)
        scheduler.add(Live(task, steps, model.kernels, str(plan.model), Priority.BULK, None, time.monotonic()))
    ended: dict[int, Evaluation] = {}
    while scheduler:
        scheduler.step()
        for outcome in scheduler.outcomes():
            if isinstance(outcome, Failed):
                raise outcome.error
            assert isinstance(outcome.result, Evaluation)
            ended[outcome.task] = outcome.result
    return [ended[task] for task in range(len(plans))]


def measured_of(trial: Trial, plans: Sequence[Plan], measure: Measure) -> list[Measured]:
    """What one measure says of each plan's explanation."""
    return [one.measured[0] for one in evaluated_together(trial, plans, [measure])]
