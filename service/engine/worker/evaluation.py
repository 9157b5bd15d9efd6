"""One explanation judged, from plan to figures, as a generator that yields questions like an explanation."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from math import isfinite

import numpy as np

from service.domain import Plan
from service.engine.protocol import Evaluation
from service.engine.worker.device import DeviceModel
from service.engine.worker.explanation import pose, solve
from service.faithfulness.registry import BY_NAME
from service.faithfulness.subject import Measure, Measured, Subject, no_figure

NOT_FINITE = "the model answered no finite number"


def evaluate(
    plan: Plan, measures: Sequence[Measure], attributions: Sequence[float] | None, model: DeviceModel
) -> Generator[object, object, Evaluation]:
    """The figures of the explanation of a plan; of `attributions` that are known already, one a component, where there
    are any. `model` is at a length that holds the plan's rows.

    Measures share what they ask of the model alike: deletion, insertion and AOPC take two curves together.
    """
    posed = yield from pose(plan, model)
    problem, evaluations = posed.problem(), 0
    if problem.is_finite and attributions is None:
        explanation = yield from solve(posed, problem)
        attributions, evaluations = explanation.attributions, explanation.evaluations
    if not problem.is_finite or attributions is None or not np.isfinite(attributions).all():
        return Evaluation((no_figure(NOT_FINITE),) * len(measures), evaluations)
    subject = Subject(
        problem,
        problem.components_of(np.array(attributions)[: model.length]),
        model.manifest.inputs,
        model.manifest.outputs,
        posed.row,
        posed.baseline.artefact_rows,
        posed.attribute,
        Measure(""),
    )
    measured: list[Measured] = []
    for measure in measures:
        of_measure = replace(subject, measure=measure)
        found = yield from BY_NAME[measure.metric].measure(of_measure)
        measured.append(found if found.value is None or isfinite(found.value) else no_figure(NOT_FINITE))
    return Evaluation(tuple(measured), evaluations)
