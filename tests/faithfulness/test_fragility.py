"""The stability of a ranking near an input: in closed form, where it turns within a ball that is known."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper

from service.catalog.traits import Axis
from service.domain import OutputSpace, Plan
from service.faithfulness.fragility import FIXED, UNRANKED
from service.lifecycle.checking.trial import load_trial
from service.methods.problem import Problem
from tests.faithfulness.conftest import Judge, measure

CURVES = np.array([1.3, 1.0, 0.1, 0.2])
ROW = np.array([1.0, 1.1, 1.0, 1.0])
TURNS_AT = (np.sqrt(1.3) - 1.1) / (1 + np.sqrt(1.3)) / 2
"""The radius at whose corner the first two change places: 1.3 (1 - d)^2 = (1.1 + d)^2, with d the radius times 2."""
WHERE_TURNED = 1 - 6 * 2 / (4 * 15)
"""Spearman's correlation of four values, of which two neighbours have changed places."""


@pytest.fixture(scope="module")
def quadratic(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """f = sum q x^2 of four features from 0 to 2, the last a whole number: from zeros, q x^2 are the attributions."""
    nodes = [
        helper.make_node("Mul", ["features", "features"], ["squares"]),
        helper.make_node("MatMul", ["squares", "curves"], ["value"]),
    ]
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", 4])
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, ["rows", 1])
    stored = [numpy_helper.from_array(CURVES[:, None].astype(np.float32), "curves")]
    graph = helper.make_graph(nodes, "quadratic", [features], [value], stored)
    content = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    folder = tmp_path_factory.mktemp("models") / "quadratic" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    of_all = {"unit": "1", "range": [0, 2]}
    declared = [{"name": name, "title": name, **of_all, **({"whole": True} if name == "d" else {})} for name in "abcd"]
    manifest = {
        "name": "quadratic",
        "version": "1",
        "title": "Quadratic",
        "artefact": {"file": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()},
        "inputs": {"kind": "tabular", "tensor": "features", "features": declared},
        "outputs": {"kind": "values", "values": [{"name": "f", "unit": "1"}], "tensors": {"value": "value"}},
        "defaults": {"baseline": "zeros", "tolerance": 1e-4},
        "example": dict(zip("abcd", ROW.tolist(), strict=True)),
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return Judge(load_trial(folder, torch.device("cpu")))


def found(judge: Judge, plan: Plan, **options: float) -> list[float | None]:
    """The lowest rank correlation, and the smallest share of the top one, within the ball."""
    asked = [measure(name, None, **{"top": 1, **options}) for name in ("rank_stability", "top_stability")]
    rank, top = judge.evaluation(plan, asked).measured
    return [rank.value, top.value]


@pytest.mark.parametrize("search", [{"samples": 0, "steps": 4}, {"samples": 64, "steps": 0}])
def test_a_ranking_turns_where_it_must_and_nowhere_else(quadratic: Judge, search: dict[str, int]) -> None:
    """The gradient search goes to the very corner; random signs and lengths find it in a ball a little larger."""
    plan = quadratic.plan(ROW)
    assert found(quadratic, plan, radius=0.99 * TURNS_AT, **search) == [1.0, 1.0]
    beyond = 1.01 if search["steps"] else 1.2
    assert found(quadratic, plan, radius=beyond * TURNS_AT, **search) == pytest.approx([WHERE_TURNED, 0.0])


def test_the_prediction_must_stay(quadratic: Judge) -> None:
    """At that corner the value moves by 0.2% of its change from the baseline: with a bound below, nothing turns."""
    plan, ball = quadratic.plan(ROW), {"radius": 1.05 * TURNS_AT, "samples": 0, "steps": 8}
    assert found(quadratic, plan, bound=0.004, **ball) == pytest.approx([WHERE_TURNED, 0.0])
    assert found(quadratic, plan, bound=0.0002, **ball) == [1.0, 1.0]


def test_where_nothing_is_ranked_or_nothing_moves_there_is_no_figure(quadratic: Judge) -> None:
    asked = measure("rank_stability")
    assert quadratic.figures(ROW, np.ones(4), asked)[0].reason == UNRANKED
    declared = quadratic.trial.model.manifest.inputs.named_features
    whole = {"features": tuple(feature.model_copy(update={"whole": True}) for feature in declared)}
    inputs = quadratic.trial.model.manifest.inputs.model_copy(update=whole)
    assert not inputs.continuous(ROW).any()
    manifest = quadratic.trial.model.manifest.model_copy(update={"inputs": inputs})
    model = replace(quadratic.trial.model, manifest=manifest)
    assert Judge(replace(quadratic.trial, model=model)).figures(ROW, None, asked)[0].reason == FIXED


@pytest.mark.parametrize("method", ["integrated_gradients", "saliency"])
def test_on_a_network_the_gradient_search_finds_more_than_chance(digits: Judge, method: str) -> None:
    """With as many explanations; and though the second derivatives of a network of ReLUs are zero."""
    by_chance, by_ascent = [], []
    for row in digits.trial.sample(3, 0):
        plan = digits.plan(row, method)
        by_chance.append(found(digits, plan, radius=0.05, samples=8, steps=0, top=8)[1])
        by_ascent.append(found(digits, plan, radius=0.05, samples=0, steps=4, top=8)[1])
    assert np.mean(np.array(by_ascent, dtype=float)) < np.mean(np.array(by_chance, dtype=float)) < 1


@pytest.mark.parametrize(
    ("axes", "shape", "columns"),
    [
        ((Axis.FEATURE,), (4,), ()),
        ((Axis.FEATURE,), (5,), (0, 1, 1, 2, 0)),
        ((Axis.CHANNEL, Axis.HEIGHT, Axis.WIDTH), (3, 2, 4), ()),
        ((Axis.POSITION, Axis.EMBEDDING), (4, 3), ()),
    ],
)
def test_weights_of_inputs_are_those_of_their_components(
    quadratic: Judge, axes: tuple[Axis, ...], shape: tuple[int, ...], columns: tuple[int, ...]
) -> None:
    """However inputs are summed to components: w . sums(v) = spread(w) . v."""
    traits = replace(quadratic.trial.model.traits, axes=axes, shape=shape, columns=columns)
    draws = np.random.default_rng(0)
    values, weights = draws.normal(size=math.prod(shape)), draws.normal(size=traits.components)
    nothing = np.zeros(0)
    of_traits = Problem(
        nothing, 0, nothing, nothing, nothing, 0, nothing, nothing, 0, OutputSpace.VALUE, 0.01, 1, 1, 0, {}, traits
    )
    assert weights @ of_traits.per_component(values) == pytest.approx(of_traits.per_input(weights) @ values)
