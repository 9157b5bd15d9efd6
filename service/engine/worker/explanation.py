"""One explanation, from plan to result, as a generator that yields questions to the artefact and the twin."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from service.domain import (
    Completeness,
    Continuation,
    Explanation,
    Floats,
    Plan,
    PlanTarget,
    Prediction,
    Target,
    ToleranceOf,
    output_of,
    read_target,
)
from service.engine.kernels.kernel import Deployed, DeployedOutputs
from service.engine.worker.device import DeviceModel
from service.engine.worker.prepared_baselines import PreparedBaseline
from service.errors import Kind, invalid, pointer_to
from service.methods.problem import Attribution, Problem
from service.methods.questions import DeadlinePassed
from service.methods.registry import BY_NAME
from service.methods.shared.noise import noisy
from service.numerics.errors import completeness_error, relative_to_attributions

Steps = Generator[object, object, Explanation | Prediction]
Explaining = Generator[object, object, Explanation]


def predict(row: tuple[float, ...], model: DeviceModel) -> Steps:
    """The deployed artefact's outputs at one row, in every output space; `model` is at a length that holds it."""
    outputs = yield from _deployed(np.array([row[: model.length]]))
    return Prediction({space: tuple(values[0].tolist()) for space, values in outputs.items()})


def explain(plan: Plan, model: DeviceModel) -> Steps:
    """The explanation of a plan; `model` is at a length that holds its rows.

    Its ends f(x) and f(x') come from the deployed artefact; the method sees nothing but its `Problem`.
    """
    inputs, kind, target = model.manifest.inputs, model.manifest.outputs, plan.target
    if target is None and inputs.are_prompts:  # the network is given what is explained
        outputs = yield from _deployed(np.array([plan.input[: model.length]]))
        target = kind.default_target(outputs[plan.output_space][0])
    row = np.array(inputs.with_target(plan.input, target)[: model.length])
    if plan.baseline.row is None:
        if plan.baseline.digest not in model.baselines:  # it was planned before, with the sets attached then
            detail = f"baseline {plan.baseline.name}@{plan.baseline.version}: rows of it have just been erased"
            raise invalid(Kind.UNKNOWN_BASELINE, pointer_to("parameters", "baseline"), detail)
        baseline = model.baselines[plan.baseline.digest]
        outputs = yield from _deployed(row[None])
    else:
        own = np.array(inputs.with_target(plan.baseline.row, target)[: model.length])
        outputs = yield from _deployed(np.stack([row, own]))
        ends = {space: values[1] for space, values in outputs.items()}
        seen = model.seen(own[None])
        baseline = PreparedBaseline(seen, seen[0], {s: v[None] for s, v in ends.items()}, ends)
    at_input = outputs[plan.output_space][0]
    target = kind.default_target(at_input) if target is None else target
    problem = _problem(plan, model, row, baseline, at_input, output_of(target))
    if not np.isfinite([problem.output, problem.center_output, *problem.baseline_outputs]).all():
        return _not_finite(at_input, target, 0, str(model.shapes))
    if not isinstance(target, Continuation):
        return (yield from _attributed(plan, problem, at_input, model))
    share = plan.max_evaluations // target.explanations
    explanation = yield from _attributed(plan, replace(problem, max_evaluations=share), at_input, model)
    per_token = []
    for output in target.outputs_of_tokens if target.per_token else ():
        problem = _problem(plan, model, row, baseline, at_input, output)
        per_token.append((yield from _attributed(plan, replace(problem, max_evaluations=share), at_input, model)))
    return _with_tokens(explanation, target, per_token)


def _attributed(plan: Plan, problem: Problem, at_input: Floats, model: DeviceModel) -> Explaining:
    """The explanation of one number of the outputs."""
    attribute = BY_NAME[plan.method].attribute
    method = attribute(problem) if plan.noise is None else noisy(attribute, problem, plan.noise)
    attribution = yield from method
    return _whole(_explanation(plan, problem, attribution, at_input, str(model.shapes)), len(plan.input), model)


def _with_tokens(explanation: Explanation, target: Continuation, per_token: Sequence[Explanation]) -> Explanation:
    """The explanation of a continuation with those of its tokens: it has converged where all of them have."""
    missed = next((one for one in (explanation, *per_token) if not one.converged), explanation)
    return replace(
        explanation,
        target=target,
        per_token=tuple(replace(one, outputs=None) for one in per_token),
        converged=missed.converged,
        reason=missed.reason,
        evaluations=explanation.evaluations + sum(one.evaluations for one in per_token),
    )


def _whole(explanation: Explanation, units: int, model: DeviceModel) -> Explanation:
    """Of cut rows, the explanation of whole ones: what was cut off is padding, whose values are zero."""
    if model.length is None or explanation.attributions is None:
        return explanation
    padding, pairs = (0.0,) * (units - model.length), explanation.interactions

    def with_padding(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if values is None else values + padding

    if pairs is not None:
        pairs = (*(row + padding for row in pairs), *((0.0,) * units for _ in padding))
    return replace(
        explanation,
        interactions=pairs,
        attributions=explanation.attributions + padding,
        shape=(units,),
        standard_error=with_padding(explanation.standard_error),
        attribution_errors=with_padding(explanation.attribution_errors),
    )


def interrupted(steps: Steps, answers: int) -> Steps:
    """The same steps, with a deadline that passes once so many questions are answered."""
    try:
        question = next(steps)
        for _ in range(answers):
            question = steps.send((yield question))
        steps.throw(DeadlinePassed())
    except StopIteration as stop:
        ended: Explanation | Prediction = stop.value
        return ended
    raise RuntimeError("a method went on after its deadline")


def _deployed(rows: Floats) -> Generator[object, object, DeployedOutputs]:
    answer = yield Deployed(rows)
    assert isinstance(answer, dict)
    return answer


def _problem(
    plan: Plan, model: DeviceModel, row: Floats, baseline: PreparedBaseline, at_input: Floats, target: Target
) -> Problem:
    space, baseline_outputs = plan.output_space, read_target(baseline.outputs[plan.output_space], target)
    inputs, low, high = model.seen(row[None])[0], model.low, model.high
    default_floor = model.manifest.outputs.default_floor
    if model.fixed is not None:  # methods do not move inputs whose range is empty
        low, high = np.where(model.fixed, inputs, low), np.where(model.fixed, inputs, high)
    return Problem(
        input=inputs,
        output=float(read_target(at_input, target)),
        baselines=baseline.rows,
        baseline_outputs=baseline_outputs,
        center=baseline.center,
        center_output=float(read_target(baseline.center_outputs[space], target)),
        low=low,
        high=high,
        target=target,
        output_space=space,
        tolerance=plan.tolerance,
        floor=default_floor(space, baseline_outputs, target) if plan.floor is None else plan.floor,
        max_evaluations=plan.max_evaluations,
        seed=plan.seed,
        options=dict(plan.options),
        traits=model.traits,
        tolerance_of=plan.tolerance_of,
    )


def _explanation(
    plan: Plan, problem: Problem, attribution: Attribution, at_input: Floats, chunk_rows: str
) -> Explanation:
    values = attribution.values
    path_error = attribution.path_error
    if not (np.isfinite(values).all() and (path_error is None or np.isfinite(path_error))):
        return _not_finite(at_input, problem.target, attribution.evaluations, chunk_rows)
    error = None
    if attribution.completeness is not Completeness.NONE:
        end = problem.output if attribution.output is None else attribution.output
        error = completeness_error(values, end, attribution.baseline_output, problem.floor)
    by_component = _summed_by_component(values, problem)
    stated = None
    if path_error is not None:
        judged = by_component if attribution.interactions is None else attribution.interactions
        stated = relative_to_attributions(path_error, judged, problem.floor)
    adds_up = error is None or _adds_up(plan, error, by_component, attribution, problem)
    converged = attribution.stopped is None and adds_up and (stated is None or stated <= plan.tolerance)
    reason = None if converged else attribution.stopped or _unstopped(attribution.completeness, adds_up)
    return Explanation(
        outputs=tuple(at_input.tolist()),
        target=problem.target,
        output=problem.output,
        baseline_output=attribution.baseline_output,
        attributions=tuple(by_component.ravel().tolist()),
        shape=by_component.shape,
        standard_error=None if attribution.standard_error is None else tuple(attribution.standard_error.tolist()),
        completeness=attribution.completeness,
        completeness_error=error,
        attribution_error=stated,
        converged=converged,
        reason=reason,
        evaluations=attribution.evaluations,
        rule=attribution.rule,
        small_difference=abs(problem.output - attribution.baseline_output) < problem.floor,
        chunk_rows=chunk_rows,
        interactions=_matrix(attribution.interactions),
        groups=attribution.groups,
        noisy_output=attribution.output,
        attribution_errors=_errors(plan, problem, attribution, by_component),
    )


def _adds_up(plan: Plan, completeness: float, by_component: Floats, attribution: Attribution, problem: Problem) -> bool:
    """Whether the sum of the values misses the change of the output by no more than the tolerance; see
    `ToleranceOf`."""
    if plan.tolerance_of is ToleranceOf.COMPLETENESS:
        return completeness <= plan.tolerance
    end = problem.output if attribution.output is None else attribution.output
    missed = abs(float(by_component.sum()) - (end - attribution.baseline_output))
    return relative_to_attributions(missed, by_component, problem.floor) <= plan.tolerance


def _errors(plan: Plan, problem: Problem, attribution: Attribution, by_component: Floats) -> tuple[float, ...] | None:
    """Bounds of the error of each value: those that the method knows, else the whole L1 error."""
    if attribution.path_error is None or not (plan.errors or problem.traits.has_features):
        return None
    known = attribution.errors
    if known is None or known.size != by_component.size:
        known = np.full(by_component.size, attribution.path_error)
    return tuple(known.tolist())


def _unstopped(completeness: Completeness, adds_up: bool) -> str:
    """Why an explanation missed its tolerance although nothing stopped it: float precision, or a fixed number of
    steps."""
    in_few_steps = completeness is Completeness.ASYMPTOTIC or (completeness is Completeness.BY_CONSTRUCTION and adds_up)
    return "steps" if in_few_steps else "precision"


def _summed_by_component(values: Floats, problem: Problem) -> Floats:
    """The attributions as answers have them: one for each component; where there are channels, one a value or one a
    pixel."""
    if not problem.traits.has_channels:
        return values if values.size == problem.traits.components else problem.per_component(values)
    shape = problem.shape if values.size == prod(problem.shape) else problem.shape[1:]
    return values.reshape(shape)


def _matrix(values: Floats | None) -> tuple[tuple[float, ...], ...] | None:
    return None if values is None else tuple(tuple(row) for row in values.tolist())


def _not_finite(at_input: Floats, target: PlanTarget, evaluations: int, chunk_rows: str) -> Explanation:
    finite = bool(np.isfinite(at_input).all())
    return Explanation(
        outputs=tuple(at_input.tolist()) if finite else None,
        target=target,
        output=float(read_target(at_input, output_of(target))) if finite else None,
        baseline_output=None,
        attributions=None,
        shape=(),
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
