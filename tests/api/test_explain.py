"""Predict and explain: what a caller gets, checked against the artefact itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.conftest import MODELS

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain

FOLDER = MODELS / "loan" / "1"
EXPLAIN = "/v1/models/loan/versions/1:explain"
PREDICT = "/v1/models/loan/versions/1:predict"
METHODS = ["integrated_gradients", "expected_gradients"]
SPACES = ["probability", "logit"]
TENSORS = {"probability": "probabilities", "logit": "logits"}


@pytest.fixture(scope="module")
def artefact() -> onnxruntime.InferenceSession:
    """The deployed model, run by nobody but this test."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(FOLDER / "model.onnx", options, providers=["CPUExecutionProvider"])


def outputs_of(artefact: onnxruntime.InferenceSession, rows: NDArray[Any], space: str) -> NDArray[np.float64]:
    """The artefact's outputs [rows, labels]."""
    (outputs,) = artefact.run([TENSORS[space]], {"features": rows.astype(np.float32)})
    return np.asarray(outputs, np.float64)


def assert_nothing_is_null(value: object) -> None:
    assert value is not None
    if isinstance(value, float):
        assert math.isfinite(value)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        assert_nothing_is_null(item)


def numbers(explanation: dict[str, Any]) -> dict[str, Any]:
    """An explanation without what differs from one request to the next."""
    return {name: value for name, value in explanation.items() if name not in ("id", "cached", "timings_ms")}


@pytest.mark.parametrize("method", METHODS)
async def test_reply_has_the_documented_shape(
    explain: Explain, fresh: dict[str, Any], loan: dict[str, Any], method: str
) -> None:
    reply = await explain([fresh], method=method)
    features = [feature["name"] for feature in loan["inputs"]["features"]]

    assert set(reply) == {"predictions", "explanations"}
    (prediction,), (explanation,) = reply["predictions"], reply["explanations"]
    assert set(prediction) == {"label", "index", "outputs", "output_space"}
    own = {"standard_error"} if method == "expected_gradients" else set()
    assert set(explanation) == own | {
        *("id", "model", "method", "target", "output_space", "output", "baseline_output", "attributions"),
        *("completeness", "completeness_error", "attribution_error", "converged", "evaluations", "baseline"),
        *("reasons", "flags", "cached", "timings_ms"),
    }
    assert_nothing_is_null(reply)
    assert explanation["model"] == {"name": "loan", "version": "1", "digest": f"sha256:{loan['artefact']['sha256']}"}
    assert explanation["method"] == method
    assert explanation["completeness"] in ("exact", "asymptotic", "by_construction")
    assert explanation["baseline"] == {
        "name": "training",
        "version": "1",
        "digest": f"sha256:{loan['baselines'][0]['sha256']}",
        "size": 128,
    }
    assert list(explanation["attributions"]) == features
    assert list(explanation.get("standard_error", features)) == features
    assert explanation["converged"] is True
    assert explanation["cached"] is False
    assert explanation["evaluations"] > 0
    assert set(explanation["timings_ms"]) == {"queue", "compute", "total"}
    assert explanation["id"][14] == "7"


@pytest.mark.parametrize("space", SPACES)
async def test_prediction_is_the_artefacts_own(
    explain: Explain, artefact: onnxruntime.InferenceSession, instance: dict[str, Any], space: str
) -> None:
    expected = outputs_of(artefact, np.array([list(instance.values())]), space)[0]

    reply = await explain([instance], output_space=space)

    (prediction,), (explanation,) = reply["predictions"], reply["explanations"]
    assert prediction["outputs"] == pytest.approx(expected, abs=1e-6)
    assert (prediction["label"], prediction["index"]) == ("denied", 1)
    assert prediction["output_space"] == explanation["output_space"] == space
    assert explanation["target"] == {"label": "denied", "index": 1}
    assert explanation["output"] == prediction["outputs"][1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
async def test_attributions_sum_to_the_difference_from_the_baseline(
    explain: Explain, artefact: onnxruntime.InferenceSession, fresh: dict[str, Any], method: str, space: str
) -> None:
    rows = load_file(FOLDER / "baselines" / "training.safetensors")["rows"]
    baseline = rows.mean(0, keepdims=True) if method == "integrated_gradients" else rows
    expected = outputs_of(artefact, baseline, space)[:, 1].mean()

    (explanation,) = (await explain([fresh], method=method, output_space=space, target="denied"))["explanations"]

    assert explanation["baseline_output"] == pytest.approx(expected, abs=2e-5)
    difference = explanation["output"] - explanation["baseline_output"]
    error = abs(math.fsum(explanation["attributions"].values()) - difference) / abs(difference)
    assert error <= 0.01
    assert explanation["completeness_error"] == pytest.approx(error, abs=1e-6)


async def test_reasons_are_the_strongest_adverse_features_in_order(explain: Explain, instance: dict[str, Any]) -> None:
    (explanation,) = (await explain([instance]))["explanations"]
    adverse = sorted(((v, k) for k, v in explanation["attributions"].items() if v > 0), reverse=True)

    assert [(reason["contribution"], reason["feature"]) for reason in explanation["reasons"]] == adverse[:4]
    assert all(reason["code"] and reason["text"] for reason in explanation["reasons"])


async def test_reasons_do_not_depend_on_the_label_that_is_explained(explain: Explain, instance: dict[str, Any]) -> None:
    found = [(await explain([instance], target=label))["explanations"][0] for label in ("denied", "approved")]

    denied, approved = ([reason["code"] for reason in explanation["reasons"]] for explanation in found)
    assert denied == approved
    assert [reason["contribution"] for reason in found[1]["reasons"]] == pytest.approx(
        [reason["contribution"] for reason in found[0]["reasons"]], abs=1e-3
    )


async def test_a_feature_that_does_not_speak_against_the_applicant_is_no_reason(
    explain: Explain, instance: dict[str, Any]
) -> None:
    baseline = {**instance, "public_record": 0}

    (explanation,) = (await explain([instance], baseline=baseline))["explanations"]

    assert [reason["feature"] for reason in explanation["reasons"]] == ["public_record"]


async def test_protected_features_that_decide_raise_a_flag(explain: Explain, instance: dict[str, Any]) -> None:
    (explanation,) = (await explain([instance], baseline={**instance, "black": 0}))["explanations"]

    assert explanation["flags"] == ["protected_share"]
    assert {name for name, value in explanation["attributions"].items() if value} == {"black"}


async def test_a_list_in_feature_order_is_the_same_instance(
    explain: Explain, fresh: dict[str, Any], loan: dict[str, Any]
) -> None:
    row = [fresh[feature["name"]] for feature in loan["inputs"]["features"]]
    shuffled = dict(reversed(fresh.items()))

    reply = await explain([fresh, row, shuffled], method="expected_gradients")

    by_name, by_order, by_shuffled_name = map(numbers, reply["explanations"])
    assert by_name == by_order == by_shuffled_name


async def test_null_stands_for_the_value_of_a_missing_feature(
    explain: Explain, fresh: dict[str, Any], loan: dict[str, Any]
) -> None:
    missing = {f["name"]: f["missing"] for f in loan["inputs"]["features"] if "missing" in f}
    assert len(missing) > 3

    reply = await explain([{**fresh, **dict.fromkeys(missing)}, {**fresh, **missing}])

    with_nulls, imputed = map(numbers, reply["explanations"])
    assert with_nulls == imputed


async def test_instances_are_answered_each_with_its_own_id(
    explain: Explain, fresh: dict[str, Any], approved: dict[str, Any]
) -> None:
    alone = [(await explain([one]))["explanations"][0] for one in (fresh, approved)]

    reply = await explain([fresh, approved, fresh], headers={"Cache-Control": "no-cache"})

    explanations = reply["explanations"]
    assert [prediction["label"] for prediction in reply["predictions"]] == ["denied", "approved", "denied"]
    assert len({explanation["id"] for explanation in explanations}) == 3
    first, second, third = map(numbers, explanations)
    assert first == third == numbers(alone[0])
    assert second == numbers(alone[1])


async def test_ids_sort_by_time(explain: Explain, instance: dict[str, Any]) -> None:
    ids = [(await explain([instance]))["explanations"][0]["id"] for _ in range(3)]

    assert [one[:13] for one in ids] == sorted(one[:13] for one in ids)


@pytest.mark.parametrize(("target", "index"), [("denied", 1), (1, 1), ("approved", 0), (0, 0), ("predicted", 1)])
async def test_target_by_label_index_or_prediction(
    explain: Explain, instance: dict[str, Any], target: str | int, index: int
) -> None:
    reply = await explain([instance], target=target)

    (prediction,), (explanation,) = reply["predictions"], reply["explanations"]
    assert prediction["index"] == 1
    assert explanation["target"] == {"index": index, "label": ["approved", "denied"][index]}
    assert explanation["output"] == prediction["outputs"][index]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("asked", "name", "size"),
    [("training", "training", 128), ("approved@1", "approved", 128), ("zeros", "zeros", 1)],
)
async def test_baseline_by_name(
    explain: Explain, instance: dict[str, Any], method: str, asked: str, name: str, size: int
) -> None:
    (explanation,) = (await explain([instance], baseline=asked, method=method, tolerance=0.05))["explanations"]

    assert (explanation["baseline"]["name"], explanation["baseline"]["version"]) == (name, "1")
    assert explanation["baseline"]["size"] == size
    assert explanation["converged"]


async def test_baseline_inline(
    explain: Explain, artefact: onnxruntime.InferenceSession, instance: dict[str, Any], approved: dict[str, Any]
) -> None:
    expected = outputs_of(artefact, np.array([list(approved.values())]), "probability")[0, 1]
    unchanged = [name for name in instance if instance[name] == approved[name]]

    reply = await explain([instance, instance], baseline=approved)
    as_list = await explain([instance], baseline=list(approved.values()))

    first, second = reply["explanations"]
    assert first["baseline_output"] == pytest.approx(expected, abs=1e-6)
    assert first["baseline"]["name"] == "inline"
    assert first["baseline"]["size"] == 1
    assert first["baseline"]["digest"].startswith("sha256:")
    assert [first["attributions"][name] for name in unchanged] == [0] * len(unchanged)
    assert numbers(first) == numbers(second) == numbers(as_list["explanations"][0])


async def test_an_explanation_over_its_tolerance_is_marked(explain: Explain, fresh: dict[str, Any]) -> None:
    (explanation,) = (await explain([fresh], options={"rule": "midpoint"}, tolerance=1e-9, max_evaluations=2))[
        "explanations"
    ]

    assert explanation["converged"] is False
    assert explanation["reason"] == "budget"
    assert explanation["evaluations"] <= 2
    assert explanation["completeness_error"] > 1e-9


async def test_strict_refuses_an_explanation_over_its_tolerance(
    client: httpx.AsyncClient, fresh: dict[str, Any], assert_problem: AssertProblem
) -> None:
    parameters = {"options": {"rule": "midpoint"}, "tolerance": 1e-9, "max_evaluations": 2, "strict": True}

    response = await client.post(EXPLAIN, json={"instances": [fresh], "parameters": parameters})

    assert "the tolerance was not met after" in assert_problem(response, 422)
    assert "budget" in response.text


async def test_strict_changes_nothing_for_one_that_converges(explain: Explain, fresh: dict[str, Any]) -> None:
    strict = await explain([fresh], strict=True)
    plain = await explain([fresh])

    assert numbers(strict["explanations"][0]) == numbers(plain["explanations"][0])


async def test_rules_agree(explain: Explain, fresh: dict[str, Any]) -> None:
    exact, quadrature = [
        (await explain([fresh], options={"rule": rule}, tolerance=1e-3))["explanations"][0]
        for rule in ("exact", "gauss_legendre")
    ]

    assert exact["completeness"] == "exact"
    assert quadrature["completeness"] == "asymptotic"
    assert quadrature["attributions"] == pytest.approx(exact["attributions"], abs=0.01)


async def test_a_deadline_is_met_or_said_to_have_passed(
    client: httpx.AsyncClient, fresh: dict[str, Any], assert_problem: AssertProblem
) -> None:
    parameters = {"method": "expected_gradients", "tolerance": 1e-9, "max_evaluations": 65_536, "deadline_ms": 1}

    response = await client.post(EXPLAIN, json={"instances": [fresh], "parameters": parameters})

    if response.status_code == 200:
        (explanation,) = response.json()["explanations"]
        assert (explanation["converged"], explanation["reason"]) == (False, "deadline")
    else:
        assert "deadline" in assert_problem(response, 504)


async def test_a_path_without_a_version_means_the_newest(
    client: httpx.AsyncClient, explain: Explain, fresh: dict[str, Any]
) -> None:
    known = (await client.get("/v1/models/loan")).json()["example"]
    instance = {name: fresh[name] for name in known}
    newest = await explain([instance], path="/v1/models/loan:explain")
    by_version = await explain([instance], path="/v1/models/loan/versions/2:explain")

    assert newest["explanations"][0]["model"]["version"] == "2"
    assert numbers(by_version["explanations"][0]) == numbers(newest["explanations"][0])


@pytest.mark.parametrize("space", SPACES)
async def test_predict(
    client: httpx.AsyncClient,
    artefact: onnxruntime.InferenceSession,
    instance: dict[str, Any],
    approved: dict[str, Any],
    space: str,
) -> None:
    body = {"instances": [instance, list(approved.values())], "parameters": {"output_space": space}}

    response = await client.post(PREDICT, json=body)

    assert response.status_code == 200
    assert set(response.json()) == {"predictions"}
    predictions = response.json()["predictions"]
    assert [prediction["label"] for prediction in predictions] == ["denied", "approved"]
    assert [prediction["index"] for prediction in predictions] == [1, 0]
    expected = outputs_of(artefact, np.array([list(instance.values()), list(approved.values())]), space)
    for prediction, outputs in zip(predictions, expected, strict=True):
        assert prediction["outputs"] == pytest.approx(outputs, abs=1e-6)
        assert prediction["output_space"] == space


async def test_timings_are_in_a_header_too(client: httpx.AsyncClient, fresh: dict[str, Any]) -> None:
    response = await client.post(EXPLAIN, json={"instances": [fresh]})

    timings = response.json()["explanations"][0]["timings_ms"]
    assert response.headers["server-timing"] == ", ".join(f"{name};dur={value}" for name, value in timings.items())
    assert 0 < timings["compute"] <= timings["total"]


async def test_a_number_is_answered_as_it_is_kept(client: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    """Integers and floats that are equal are one instance."""
    as_floats = {name: float(value) for name, value in instance.items()}

    first = await client.post(EXPLAIN, json={"instances": [instance]})
    second = await client.post(EXPLAIN, json={"instances": [as_floats]})

    assert numbers(first.json()["explanations"][0]) == numbers(second.json()["explanations"][0])
