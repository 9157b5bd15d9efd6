"""One explanation judged, from plan to figures, as a generator that yields questions like an explanation."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np

from service.domain import Explanation, Floats, Plan
from service.engine.protocol import Evaluation
from service.engine.worker.device import DeviceModel
from service.engine.worker.explanation import Posed, pose, solve
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
    explanation = None
    if attributions is None:
        explanation = yield from solve(plan, posed, model)
    values = _by_component(explanation, posed) if attributions is None else np.array(attributions)
    if values is None or not posed.is_finite or not np.isfinite(values).all():
        return Evaluation((no_figure(NOT_FINITE),) * len(measures))
    subject = Subject(
        posed.problem,
        values[: model.length],
        model.manifest.inputs,
        posed.row,
        posed.baselines,
        posed.attribute,
        Measure(""),
    )
    measured: list[Measured] = []
    for measure in measures:
        of_measure = replace(subject, measure=measure)
        measured.append((yield from BY_NAME[measure.metric].measure(of_measure)))
    return Evaluation(tuple(measured), 0 if explanation is None else explanation.evaluations)


def _by_component(explanation: Explanation | None, posed: Posed) -> Floats | None:
    """The attributions of an explanation, [components]; None where it has none."""
    if explanation is None or explanation.attributions is None:
        return None
    return posed.problem.components_of(np.array(explanation.attributions))
