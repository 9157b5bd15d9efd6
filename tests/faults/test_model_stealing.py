"""Model stealing: gradient explanations give a model's weights away, and a limiting policy keeps ten queries from it.

Milli, Schmidt, Dragan and Hardt, "Model reconstruction from model explanations" (2019): one integrated-gradients query
of a linear model is the product of its weights and a difference that the caller chose. The attackers here know all but
the weights: which features there are, their ranges, that the model is linear, and how values are rounded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from service.domain import Floats

if TYPE_CHECKING:
    from tests.faults.conftest import Start

FEATURES = 12
REACH = 1000.0
QUERIES = 10
CLOSE = 1e-3
"""A relative error at which the model counts as rebuilt."""

Ask = Callable[[Floats, Floats, int], dict[str, float]]
"""The attributions of an input against a baseline, for a target, in logits."""


def linear_model(folder: Path) -> Floats:
    """Writes a linear classifier of two labels; gives its weights [features, labels]."""
    generator = np.random.default_rng(11)
    weights = generator.normal(size=(FEATURES, 2)).astype(np.float32)
    bias = generator.normal(size=2).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "linear",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", FEATURES])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    rows = save({"rows": np.zeros((2, FEATURES), dtype=np.float32)})
    (folder / "zero.safetensors").write_bytes(rows)
    names = [f"f{at}" for at in range(FEATURES)]
    manifest = {
        "name": "linear",
        "version": "1",
        "title": "A linear model",
        "artefact": {"file": "model.onnx", "sha256": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()},
        "inputs": {
            "kind": "tabular",
            "tensor": "features",
            "features": [{"name": name, "title": name, "range": [-REACH, REACH]} for name in names],
        },
        "outputs": {
            "labels": ["no", "yes"],
            "link": "softmax",
            "tensors": {"logit": "logits", "probability": "probabilities"},
        },
        "baselines": [
            {
                "name": "zero",
                "version": "1",
                "size": 2,
                "file": "zero.safetensors",
                "sha256": hashlib.sha256(rows).hexdigest(),
            }
        ],
        "defaults": {"baseline": "zero"},
        "example": dict.fromkeys(names, 0.0),
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return weights.astype(float)


def gathered(answers: list[tuple[Floats, int, dict[str, float]]]) -> Floats:
    """The weights [features, labels] that explain what was answered best: by least squares, a feature and label each.

    An attribution in logits is weight times difference, so that the estimate with the largest difference counts most.
    """
    products, squares = np.zeros((2, FEATURES, 2))
    for difference, target, attributions in answers:
        for name, value in attributions.items():
            at = int(name[1:])
            products[at, target] += difference[at] * value
            squares[at, target] += difference[at] ** 2
    return np.divide(products, squares, out=np.zeros_like(products), where=squares > 0)


def all_at_once(ask: Ask) -> Floats:
    """Everything differs as far as it may, in every query."""
    answers = []
    for number in range(QUERIES):
        signs = np.random.default_rng(number).choice([-1.0, 1.0], FEATURES)
        answers.append((2 * REACH * signs, number % 2, ask(REACH * signs, -REACH * signs, number % 2)))
    return gathered(answers)


def a_few_at_a_time(ask: Ask) -> Floats:
    """Three features differ in a query, so that the largest three are all there is; what is left goes to no rest."""
    answers = []
    for number in range(QUERIES):
        block = np.arange(FEATURES).reshape(-1, 3)[number // 2 % (FEATURES // 3)]
        reach = REACH * (1.0 if number < 8 else 0.77)  # on another place of the rounding's grid
        end = np.zeros(FEATURES)
        end[block] = reach
        answers.append((2 * end, number % 2, ask(end, -end, number % 2)))
    return gathered(answers)


@pytest.mark.parametrize("attack", [all_at_once, a_few_at_a_time])
def test_ten_queries_rebuild_a_linear_model_unless_a_policy_keeps_them_from_it(
    start: Start, run_command: Callable[..., Any], tmp_path: Path, attack: Callable[[Ask], Floats]
) -> None:
    weights = linear_model(tmp_path / "linear" / "linear" / "1")
    data = ("--data", str(tmp_path / "data"))
    keys = [
        re.search(r"^key +(\S+)$", run_command("keys", "create", name, *data, *policy).stdout, re.MULTILINE)
        for name, policy in (("open", ()), ("limited", ("--top", "3", "--digits", "2", "--hide-outputs")))
    ]
    program = start("serve", "--models", str(tmp_path / "linear"))
    errors = []
    for key in keys:
        assert key is not None
        with httpx.Client(
            base_url=program.address, headers={"Authorization": f"Bearer {key[1]}"}, timeout=30, trust_env=False
        ) as client:
            asked = 0

            def ask(end: Floats, start: Floats, target: int, client: httpx.Client = client) -> dict[str, float]:
                nonlocal asked
                asked += 1
                parameters = {"baseline": start.tolist(), "target": target, "output_space": "logit"}
                body = {"instances": [end.tolist()], "parameters": parameters}
                response = client.post("/v1/models/linear:explain", json=body)
                assert response.status_code == 200, response.text
                found: dict[str, float] = response.json()["explanations"][0]["attributions"]
                return found

            rebuilt = attack(ask)
            assert asked == QUERIES
        # What predicts is the difference of the labels' weights.
        true, found = weights[:, 1] - weights[:, 0], rebuilt[:, 1] - rebuilt[:, 0]
        errors.append(float(np.linalg.norm(found - true) / np.linalg.norm(true)))

    without, with_policy = errors
    assert without < CLOSE
    assert with_policy > CLOSE
