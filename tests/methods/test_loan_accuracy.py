"""The acceptance figures: held-out rows through the real scheduler and kernels, in float32.

All 389 for the exact rule, every eighth for the others; `make accuracy` takes all for these too, and four times as many
for Expected Gradients. Each rule and tolerance is tried in one output space, and with `make slow` in the other.

References are float64 and independent: the ReLU network's lines are walked from kink to kink (checked here against
20,000 midpoints), the GELU network's are integrated with many Gauss nodes. Completeness is recomputed from the
attributions and from outputs that ONNX Runtime gives in this file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from service.catalog.outputs.classes import Classes
from service.domain import Completeness, Explanation, Floats, OutputSpace, ToleranceOf
from service.engine.worker.device import DeviceModel

if TYPE_CHECKING:
    from tests.methods.conftest import Attributions, PlanMaker, Reference, Run

SPACES = list(Classes.spaces)
REFINING = ["gauss_legendre", "midpoint"]
TOLERANCES = [0.05, 0.01, 0.001]
ONE_SPACE_EACH = [
    pytest.param(tolerance, space, marks=() if (at + in_logits) % 2 else pytest.mark.slow)
    for at, tolerance in enumerate(TOLERANCES)
    for in_logits, space in enumerate(SPACES)
]
PROBABILITY, LOGIT = OutputSpace.PROBABILITY, OutputSpace.LOGIT
RULE_IN_ONE_SPACE = [
    ("gauss_legendre", PROBABILITY),
    ("midpoint", LOGIT),
    pytest.param("gauss_legendre", LOGIT, marks=pytest.mark.slow),
    pytest.param("midpoint", PROBABILITY, marks=pytest.mark.slow),
]
RULE_IN_THE_OTHER = [
    ("gauss_legendre", LOGIT),
    ("midpoint", PROBABILITY),
    pytest.param("gauss_legendre", PROBABILITY, marks=pytest.mark.slow),
    pytest.param("midpoint", LOGIT, marks=pytest.mark.slow),
]
STEP = int(os.environ.get("LOAN_STEP", "8"))
SOME, FEWER, FEWEST = slice(None, None, STEP), slice(None, None, 3 * STEP), slice(None, None, 6 * STEP)
"""Rows that rules are tried on; that Expected Gradients are, and are of a network whose truth is dear."""


def attributions_of(results: Sequence[Explanation]) -> Floats:
    return np.array([result.attributions for result in results])


def relative_errors(results: Sequence[Explanation], truth: Floats) -> Floats:
    """Relative L1 errors of the attributions."""
    differences: Floats = np.abs(attributions_of(results) - truth).sum(axis=1)
    relative: Floats = differences / np.abs(truth).sum(axis=1)
    return relative


def expect_accuracy(results: Sequence[Explanation], truth: Floats) -> None:
    """At most 2% off at the 95th percentile, and at most the reported error in 95 of 100."""
    errors = relative_errors(results, truth)
    reported = np.array([result.attribution_error for result in results])
    assert np.percentile(errors, 95) <= 0.02
    assert (errors <= reported).mean() >= 0.95


@pytest.fixture(scope="module")
def center(training_baselines: NDArray[np.float32]) -> Floats:
    """The mean baseline, as float32 holds it."""
    mean: Floats = training_baselines.mean(axis=0, dtype=np.float64).astype(np.float32).astype(np.float64)
    return mean


@pytest.fixture(scope="module")
def truth(reference: Reference, heldout: Floats, center: Floats) -> Attributions:
    """Integrated gradients of every row, exact."""
    return reference.walked(np.tile(center, (len(heldout), 1)), heldout)


@pytest.fixture(scope="module")
def gelu_truth(reference: Reference, heldout: Floats, center: Floats) -> Attributions:
    """Integrated gradients of the `SOME` rows for the GELU network."""
    rows = heldout[SOME]
    return reference.gelu(np.tile(center, (len(rows), 1)), rows, nodes=32)


def over_baselines(of_lines: Attributions, baselines: int) -> Attributions:
    return {space: values.reshape(-1, baselines, values.shape[1]).mean(axis=1) for space, values in of_lines.items()}


def all_lines(rows: Floats, baselines: Floats) -> tuple[Floats, Floats]:
    """Starts and ends of the lines from every baseline to every row."""
    return np.tile(baselines, (len(rows), 1)), np.repeat(rows, len(baselines), axis=0)


@pytest.fixture(scope="module")
def expected_truth(reference: Reference, heldout: Floats, training_baselines: NDArray[np.float32]) -> Attributions:
    """Expected gradients of the `FEWER` rows, exact over the 128 baselines."""
    lines = all_lines(heldout[FEWER], training_baselines.astype(np.float64))
    return over_baselines(reference.walked(*lines), len(training_baselines))


@pytest.fixture(scope="module")
def gelu_expected_truth(reference: Reference, heldout: Floats, training_baselines: NDArray[np.float32]) -> Attributions:
    """Expected gradients of the `FEWEST` rows for the GELU network."""
    lines = all_lines(heldout[FEWEST], training_baselines.astype(np.float64))
    return over_baselines(reference.gelu(*lines, nodes=24), len(training_baselines))


@pytest.fixture(scope="module")
def own_outputs(model_file: str, heldout: Floats, center: Floats) -> dict[OutputSpace, Floats]:
    """ONNX Runtime's outputs for label 1, one row at a time; the last is the mean baseline's."""
    session = onnxruntime.InferenceSession(model_file)
    rows = np.concatenate([heldout, center[None]]).astype(np.float32)
    logits, probabilities = zip(
        *[session.run(["logits", "probabilities"], {"features": row[None]}) for row in rows], strict=True
    )
    return {
        OutputSpace.LOGIT: np.concatenate(logits)[:, 1].astype(np.float64),
        OutputSpace.PROBABILITY: np.concatenate(probabilities)[:, 1].astype(np.float64),
    }


def completeness_errors(values: Floats, outputs: Floats, space: OutputSpace, baseline_outputs: Floats) -> Floats:
    """|sum - change| over the larger of the change and the floor: 0.01, in logits 0.01 of the baselines' spread."""
    changes = outputs[:-1] - outputs[-1]
    floor = 0.01 if space is OutputSpace.PROBABILITY else 0.01 * float(np.ptp(baseline_outputs))
    errors: Floats = np.abs(values.sum(axis=1) - changes) / np.maximum(np.abs(changes), floor)
    return errors


@pytest.fixture(scope="module")
def baseline_outputs(model: DeviceModel, plans: PlanMaker, heldout: Floats) -> dict[OutputSpace, Floats]:
    (plan,) = plans(heldout[:1])
    outputs = model.baselines[plan.baseline.digest].outputs
    return {space: values[:, 1] for space, values in outputs.items()}


def test_the_reference_is_complete_and_agrees_with_dense_midpoints(
    reference: Reference, truth: Attributions, heldout: Floats, center: Floats
) -> None:
    dense = reference.midpoints(np.tile(center, (8, 1)), heldout[:8], nodes=20_000)
    logits = reference.logits(torch.from_numpy(np.concatenate([heldout, center[None]])), torch.relu)
    outputs = {OutputSpace.LOGIT: logits[:, 1], OutputSpace.PROBABILITY: torch.softmax(logits, dim=1)[:, 1]}
    for space in SPACES:
        differences = np.abs(truth[space][:8] - dense[space]).sum(axis=1)
        assert (differences <= 1e-4 * np.abs(dense[space]).sum(axis=1)).all()
        changes = (outputs[space][:-1] - outputs[space][-1]).numpy()
        np.testing.assert_allclose(truth[space].sum(axis=1), changes, atol=1e-12)


def test_the_gelu_reference_has_nodes_enough(
    reference: Reference, gelu_truth: Attributions, heldout: Floats, center: Floats
) -> None:
    finer = reference.gelu(np.tile(center, (40, 1)), heldout[SOME][:40], nodes=64)
    coarser = reference.gelu(np.tile(center, (40, 1)), heldout[SOME][:40], nodes=24)
    for space in SPACES:
        np.testing.assert_allclose(gelu_truth[space][:40], finer[space], rtol=0, atol=1e-12)
        np.testing.assert_allclose(coarser[space], finer[space], rtol=0, atol=1e-9)


@pytest.mark.parametrize("space", SPACES)
def test_auto_is_exact(
    run: Run,
    model: DeviceModel,
    plans: PlanMaker,
    heldout: Floats,
    truth: Attributions,
    own_outputs: dict[OutputSpace, Floats],
    baseline_outputs: dict[OutputSpace, Floats],
    space: OutputSpace,
) -> None:
    results = run(model, plans(heldout, output_space=space))
    assert {result.completeness for result in results} == {Completeness.EXACT}
    assert all(result.converged for result in results)
    own = completeness_errors(attributions_of(results), own_outputs[space], space, baseline_outputs[space])
    assert own.max() <= 1e-4
    assert max(result.completeness_error or 0 for result in results) <= 1e-4
    errors = relative_errors(results, truth[space])
    assert errors.max() <= 1e-5
    assert (errors <= [result.attribution_error for result in results]).all()


@pytest.mark.parametrize(("tolerance", "space"), ONE_SPACE_EACH)
@pytest.mark.parametrize("rule", ["auto", *REFINING])
def test_a_converged_answer_is_complete_within_its_tolerance(
    run: Run,
    model: DeviceModel,
    plans: PlanMaker,
    heldout: Floats,
    own_outputs: dict[OutputSpace, Floats],
    baseline_outputs: dict[OutputSpace, Floats],
    rule: str,
    tolerance: float,
    space: OutputSpace,
) -> None:
    results = run(
        model,
        plans(
            heldout[SOME],
            rule=rule,
            tolerance=tolerance,
            output_space=space,
            tolerance_of=ToleranceOf.COMPLETENESS,
        ),
    )
    converged = np.array([result.converged for result in results])
    outputs = np.append(own_outputs[space][:-1][SOME], own_outputs[space][-1])
    own = completeness_errors(attributions_of(results), outputs, space, baseline_outputs[space])
    assert own[converged].max() <= tolerance
    assert converged.mean() >= 0.99
    assert {result.reason for result in results} <= {None, "budget"}
    assert all((result.reason is None) == result.converged for result in results)
    assert max(result.evaluations for result in results) <= 4096


@pytest.mark.parametrize(("rule", "space"), RULE_IN_ONE_SPACE)
def test_refining_rules_are_as_accurate_as_they_say(
    run: Run,
    model: DeviceModel,
    plans: PlanMaker,
    heldout: Floats,
    truth: Attributions,
    rule: str,
    space: OutputSpace,
) -> None:
    expect_accuracy(run(model, plans(heldout[SOME], rule=rule, output_space=space)), truth[space][SOME])


@pytest.mark.parametrize(("rule", "space"), RULE_IN_THE_OTHER)
def test_refining_rules_are_as_accurate_as_they_say_on_a_gelu_network(
    run: Run,
    gelu_model: DeviceModel,
    plans: PlanMaker,
    heldout: Floats,
    gelu_truth: Attributions,
    rule: str,
    space: OutputSpace,
) -> None:
    results = run(gelu_model, plans(heldout[SOME], rule=rule, output_space=space))
    assert all(result.converged for result in results)
    expect_accuracy(results, gelu_truth[space])


@pytest.mark.parametrize("space", SPACES)
def test_on_a_gelu_network_gauss_legendre_needs_few_points(
    run: Run, gelu_model: DeviceModel, plans: PlanMaker, heldout: Floats, space: OutputSpace
) -> None:
    results = run(gelu_model, plans(heldout[SOME], rule="gauss_legendre", output_space=space))
    assert np.median([result.evaluations for result in results]) <= 15


@pytest.mark.parametrize("space", [PROBABILITY, pytest.param(LOGIT, marks=pytest.mark.slow)])
def test_expected_gradients_are_as_accurate_as_they_say(
    run: Run,
    model: DeviceModel,
    plans: PlanMaker,
    heldout: Floats,
    expected_truth: Attributions,
    space: OutputSpace,
) -> None:
    results = run(model, plans(heldout[FEWER], method="expected_gradients", output_space=space))
    assert all(result.converged for result in results)
    expect_accuracy(results, expected_truth[space])


@pytest.mark.parametrize("space", [LOGIT, pytest.param(PROBABILITY, marks=pytest.mark.slow)])
def test_expected_gradients_are_as_accurate_as_they_say_on_a_gelu_network(
    run: Run,
    gelu_model: DeviceModel,
    plans: PlanMaker,
    heldout: Floats,
    gelu_expected_truth: Attributions,
    space: OutputSpace,
) -> None:
    results = run(gelu_model, plans(heldout[FEWEST], method="expected_gradients", output_space=space))
    assert all(result.converged for result in results)
    expect_accuracy(results, gelu_expected_truth[space])


@pytest.mark.parametrize(("tolerance", "space"), ONE_SPACE_EACH)
def test_expected_gradients_are_complete_and_keep_to_their_budget(
    run: Run, model: DeviceModel, plans: PlanMaker, heldout: Floats, tolerance: float, space: OutputSpace
) -> None:
    rows = heldout[FEWEST]
    results = run(model, plans(rows, method="expected_gradients", tolerance=tolerance, output_space=space))
    assert {result.completeness for result in results} == {Completeness.BY_CONSTRUCTION}
    assert max(result.completeness_error or 0 for result in results) <= 1e-9
    assert max(result.evaluations for result in results) <= 4096
    assert all(result.converged or result.reason == "budget" for result in results)
    assert all(np.isfinite(result.attribution_error or 0) for result in results)


def test_a_budget_too_small_is_said(run: Run, model: DeviceModel, plans: PlanMaker, heldout: Floats) -> None:
    results = run(model, plans(heldout[SOME], rule="midpoint", tolerance=0.001, max_evaluations=10))
    assert {(result.converged, result.reason) for result in results} == {(False, "budget")}
    assert max(result.evaluations for result in results) <= 10
