"""Model stealing: gradient explanations give a model's weights away, and a limiting policy keeps ten queries from it.

Milli, Schmidt, Dragan and Hardt, "Model reconstruction from model explanations" (2019): one integrated-gradients query
of a linear model is the product of its weights and a difference that the caller chose. The attackers here know all but
the weights: which features there are, their ranges, that the model is linear, and how values are rounded. Rounding
holds up few queries only: many of them narrow the weights down, so that a quota, which counts instances, belongs to it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from service.domain import Floats
from tests.conftest import NO_AUTHORITIES, PATIENCE_SECONDS
from tests.faults.conftest import starting

FEATURES = 12
REACH = 1000.0
QUERIES = 10
MANY = 400
DIGITS = 2
POLICY = ("--top", "3", "--digits", str(DIGITS), "--hide-outputs")
QUOTA = ("--requests", str(QUERIES))
CLOSE = 1e-3
"""A relative error at which the model counts as rebuilt."""

Ask = Callable[[Floats, Floats, int], dict[str, float]]
"""The attributions of an input against a baseline, for a target, in logits."""

Clients = Callable[..., list[httpx.Client]]
Until = Callable[[Callable[[], bool]], None]


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


def many_at_once(client: httpx.Client) -> Floats:
    """Two requests of many instances, three features at a time: every rounded value bounds a weight from two sides."""
    low, high = np.full((FEATURES, 2), -np.inf), np.full((FEATURES, 2), np.inf)
    reaches = REACH * np.linspace(0.2, 1.0, MANY // (FEATURES // 3))
    ends = [reach * np.isin(np.arange(FEATURES) // 3, block) for reach in reaches for block in range(FEATURES // 3)]
    for target in (0, 1):
        for end, answer in zip(ends, explained(client, ends, np.zeros(FEATURES), target), strict=True):
            largest = max(map(abs, answer.values()))
            half = 0.5 * 10.0 ** (np.floor(np.log10(largest)) - DIGITS + 1) + 1e-6 * largest
            for name, value in answer.items():
                at = int(name[1:])
                if end[at]:
                    low[at, target] = max(low[at, target], (value - half) / end[at])
                    high[at, target] = min(high[at, target], (value + half) / end[at])
    rebuilt: Floats = (low + high) / 2
    return rebuilt


def explained(client: httpx.Client, ends: Sequence[Floats], start: Floats, target: int) -> list[dict[str, float]]:
    """The attributions of inputs against a baseline, for a target, in logits."""
    parameters = {"baseline": start.tolist(), "target": target, "output_space": "logit"}
    body = {"instances": [end.tolist() for end in ends], "parameters": parameters}
    response = client.post("/v1/models/linear:explain", json=body)
    assert response.status_code == 200, response.text
    return [found["attributions"] for found in response.json()["explanations"]]


def error_of(rebuilt: Floats, weights: Floats) -> float:
    """How far off the model is, relative. What predicts is the difference of the labels' weights."""
    true, found = weights[:, 1] - weights[:, 0], rebuilt[:, 1] - rebuilt[:, 0]
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the service has its model and its data."""
    return tmp_path_factory.mktemp("stealing")


@pytest.fixture(scope="module")
def weights(folder: Path) -> Floats:
    """Those of the model that is served."""
    return linear_model(folder / "models" / "linear" / "1")


@pytest.fixture(scope="module")
def address(folder: Path, weights: Floats) -> Iterator[str]:
    """Of the one service that all attacks are made on, each with keys of its own."""
    with starting(folder, folder / "models") as start:
        yield start("serve").address


@pytest.fixture
def clients(run_here: Callable[..., Any], folder: Path, address: str) -> Iterator[Clients]:
    """Clients of a service of that model, one for each set of options of `answerable keys create`."""
    with ExitStack() as stack:

        def make(*options: Sequence[str]) -> list[httpx.Client]:
            data = ("--data", str(folder / "data"))
            printed = [run_here("keys", "create", "a", *data, *one).stdout for one in options]
            keys = [re.findall(r"^key +(\S+)$", text, re.MULTILINE)[0] for text in printed]
            headers = [{"Authorization": f"Bearer {key}"} for key in keys]
            return [
                stack.enter_context(
                    httpx.Client(
                        base_url=address, headers=one, timeout=PATIENCE_SECONDS, trust_env=False, verify=NO_AUTHORITIES
                    )
                )
                for one in headers
            ]

        yield make


@pytest.mark.parametrize("attack", [all_at_once, a_few_at_a_time])
def test_ten_queries_rebuild_a_linear_model_unless_a_policy_keeps_them_from_it(
    clients: Clients, weights: Floats, attack: Callable[[Ask], Floats]
) -> None:
    errors = []
    for client in clients((), POLICY):
        asked = 0

        def ask(end: Floats, start: Floats, target: int, client: httpx.Client = client) -> dict[str, float]:
            nonlocal asked
            asked += 1
            return explained(client, [end], start, target)[0]

        errors.append(error_of(attack(ask), weights))
        assert asked == QUERIES

    without, with_policy = errors
    assert without < CLOSE
    assert with_policy > CLOSE


def test_under_a_policy_alone_many_instances_rebuild_it_and_a_quota_keeps_them_from_it(
    clients: Clients, weights: Floats, until: Until
) -> None:
    limited, both, by_job, other = clients(POLICY, (*POLICY, *QUOTA), (*POLICY, *QUOTA), ())

    assert error_of(many_at_once(limited), weights) < CLOSE
    body = {"instances": [[1.0] * FEATURES] * (QUERIES + 1)}
    assert both.post("/v1/models/linear:explain", json=body).status_code == 422
    first, *rest = (both.post("/v1/models/linear:explain", json={"instances": [[1.0] * FEATURES] * 4}) for _ in "abc")
    assert [first.status_code, *(one.status_code for one in rest)] == [200, 200, 429]

    job = by_job.post(
        "/v1/jobs", json={"model": "linear", "instances": [[2.0] * FEATURES] * 40, "context": {"cohort": {"of": "job"}}}
    ).json()["id"]
    made = QUERIES - 1  # beside the request for the job
    asked: dict[str, str | int] = {"limit": 200, "cohort.of": "job"}
    until(lambda: len(other.get("/v1/explanations", params=asked).json()["explanations"]) >= made)
    other.delete(f"/v1/jobs/{job}")
    assert len(other.get("/v1/explanations", params=asked).json()["explanations"]) == made
