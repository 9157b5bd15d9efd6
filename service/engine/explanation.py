"""One explanation from plan to figures, as a generator over questions to the artefact and the twin."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from service.domain import Completeness, Explanation, Floats, OutputSpace, Plan, Prediction
from service.engine.device import DeviceModel, PreparedBaseline
from service.engine.kernels import Deployed, DeployedOutputs
from service.methods.oracle import Attribution, Problem
from service.methods.registry import BY_NAME
from service.numerics.errors import completeness_error, relative_to_attributions

LEAST_LOGIT_FLOOR = 1e-6

Steps = Generator[object, object, Explanation | Prediction]


def predict(row: tuple[float, ...]) -> Steps:
    """The deployed artefact's outputs at one row, in every output space."""
    outputs = yield from _deployed(np.array([row]))
    return Prediction({space: tuple(values[0].tolist()) for space, values in outputs.items()})


def explain(plan: Plan, model: DeviceModel) -> Steps:
    """The explanation of a plan.

    Its ends f(x) and f(x') come from the deployed artefact; the method sees nothing but its `Problem`.
    """
    row = np.array(plan.input)
    if plan.baseline.row is None:
        baseline = model.baselines[plan.baseline.digest]
        outputs = yield from _deployed(row[None])
    else:
        own = np.array(plan.baseline.row)
        outputs = yield from _deployed(np.stack([row, own]))
        ends = {space: values[1] for space, values in outputs.items()}
        baseline = PreparedBaseline(own[None], own, {s: v[None] for s, v in ends.items()}, ends)
    at_input = outputs[plan.output_space][0]
    target = int(np.argmax(at_input)) if plan.target is None else plan.target
    problem = _problem(plan, model, row, baseline, at_input, target)
    if not np.isfinite([problem.output, problem.center_output, *problem.baseline_outputs]).all():
        return _not_finite(at_input, target, 0, str(model.shapes))
    attribution = yield from BY_NAME[plan.method].attribute(problem)
    return _explanation(plan, problem, attribution, at_input, str(model.shapes))


def _deployed(rows: Floats) -> Generator[object, object, DeployedOutputs]:
    answer = yield Deployed(rows)
    assert isinstance(answer, dict)
    return answer


def _problem(
    plan: Plan, model: DeviceModel, row: Floats, baseline: PreparedBaseline, at_input: Floats, target: int
) -> Problem:
    baseline_outputs = baseline.outputs[plan.output_space][:, target]
    return Problem(
        input=row,
        output=float(at_input[target]),
        baselines=baseline.rows,
        baseline_outputs=baseline_outputs,
        center=baseline.center,
        center_output=float(baseline.center_outputs[plan.output_space][target]),
        target=target,
        labels=len(at_input),
        output_space=plan.output_space,
        tolerance=plan.tolerance,
        floor=_floor(plan, baseline_outputs),
        max_evaluations=plan.max_evaluations,
        seed=plan.seed,
        options=dict(plan.options),
        is_piecewise_linear=model.obstacle is None,
        has_kinks=model.has_kinks,
    )


def _floor(plan: Plan, baseline_outputs: Floats) -> float:
    if plan.floor is not None:
        return plan.floor
    if plan.output_space is OutputSpace.PROBABILITY:
        return 0.01
    spread = float(baseline_outputs.max() - baseline_outputs.min())
    return max(0.01 * spread, LEAST_LOGIT_FLOOR)


def _explanation(
    plan: Plan, problem: Problem, attribution: Attribution, at_input: Floats, chunk_rows: str
) -> Explanation:
    values = attribution.values
    if not (np.isfinite(values).all() and np.isfinite(attribution.path_error)):
        return _not_finite(at_input, problem.target, attribution.evaluations, chunk_rows)
    error = completeness_error(values, problem.output, attribution.baseline_output, problem.floor)
    checked = attribution.completeness is not Completeness.NONE
    converged = attribution.stopped is None and (error <= plan.tolerance or not checked)
    reason = None if converged else attribution.stopped or "precision"
    return Explanation(
        outputs=tuple(at_input.tolist()),
        target=problem.target,
        output=problem.output,
        baseline_output=attribution.baseline_output,
        attributions=tuple(values.tolist()),
        standard_error=None if attribution.standard_error is None else tuple(attribution.standard_error.tolist()),
        completeness=attribution.completeness,
        completeness_error=error,
        attribution_error=relative_to_attributions(attribution.path_error, values, problem.floor),
        converged=converged,
        reason=reason,
        evaluations=attribution.evaluations,
        rule=attribution.rule,
        small_difference=abs(problem.output - attribution.baseline_output) < problem.floor,
        chunk_rows=chunk_rows,
    )


def _not_finite(at_input: Floats, target: int, evaluations: int, chunk_rows: str) -> Explanation:
    finite = bool(np.isfinite(at_input).all())
    return Explanation(
        outputs=tuple(at_input.tolist()) if finite else None,
        target=target,
        output=float(at_input[target]) if finite else None,
        baseline_output=None,
        attributions=None,
        standard_error=None,
        completeness=Completeness.NONE,
        completeness_error=None,
        attribution_error=None,
        converged=False,
        reason="non_finite",
        evaluations=evaluations,
        rule="none",
        small_difference=False,
        chunk_rows=chunk_rows,
    )
