"""Methods, noise and images over HTTP: what is asked, what is answered, what is refused, what is recorded."""

from __future__ import annotations

import base64
import copy
import io
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain

DIGITS = "/v1/models/digits:explain"
LOAN = "/v1/models/loan/versions/1:explain"


@pytest.fixture
async def digit(client: httpx.AsyncClient) -> list[list[int]]:
    """The digits model's example: a 3, [8][8]."""
    example: list[list[int]] = (await client.get("/v1/models/digits")).json()["example"]
    return example


async def test_an_image_is_explained_by_pixel(explain: Explain, digit: list[list[int]]) -> None:
    reply = await explain([digit], path=DIGITS)
    (explanation,), (prediction,) = reply["explanations"], reply["predictions"]
    assert prediction["label"] == "3"
    assert explanation["attributions"]["shape"] == [8, 8]
    total = sum(explanation["attributions"]["values"])
    difference = explanation["output"] - explanation["baseline_output"]
    assert total == pytest.approx(difference, abs=0.01 * abs(difference) + 1e-6)


async def test_one_channel_needs_no_list_of_its_own(explain: Explain, digit: list[list[int]]) -> None:
    plain = (await explain([digit], path=DIGITS))["explanations"][0]
    nested = (await explain([[digit]], path=DIGITS))["explanations"][0]
    assert nested["attributions"] == plain["attributions"]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda d: d[:7], "by channel, row and column"),
        (lambda d: [row[:7] for row in d], "by channel, row and column"),
        (lambda d: {"image": d}, "by channel, row and column"),
        (lambda d: [["1"] * 8, *d[1:]], "must be a number"),
        (lambda d: [[True] * 8, *d[1:]], "must be a number"),
        (lambda d: [[17] + [0] * 7, *d[1:]], "row 0, column 0 is 17, outside the range from 0 to 16"),
        (lambda d: [*d[:7], [0] * 7 + [-1]], "row 7, column 7 is -1"),
    ],
)
async def test_what_is_no_image_is_refused(
    client: httpx.AsyncClient, digit: list[list[int]], assert_problem: AssertProblem, broken: Any, says: str
) -> None:
    response = await client.post(DIGITS, json={"instances": [broken(copy.deepcopy(digit))]})
    assert says in assert_problem(response, 422)


async def test_expected_gradients_of_an_image_have_an_error_a_pixel(explain: Explain, digit: list[list[int]]) -> None:
    (explanation,) = (await explain([digit], path=DIGITS, method="expected_gradients"))["explanations"]
    assert len(explanation["standard_error"]["values"]) == 64
    assert min(explanation["standard_error"]["values"]) >= 0


async def test_noise_is_told_with_its_own_mean_output(explain: Explain, fresh: dict[str, Any]) -> None:
    noise = {"kind": "smoothgrad", "samples": 8, "scale": 0.02}
    (explanation,) = (await explain([fresh], noise=noise))["explanations"]
    assert explanation["noise"] == {**noise, "output": explanation["noise"]["output"]}
    difference = explanation["noise"]["output"] - explanation["baseline_output"]
    assert sum(explanation["attributions"].values()) == pytest.approx(difference, rel=0.02, abs=1e-3)
    assert explanation["completeness_error"] < 0.01
    (again,) = (await explain([fresh], noise=noise, headers={"Cache-Control": "no-cache"}))["explanations"]
    assert again["attributions"] == explanation["attributions"]
    (other,) = (await explain([fresh], noise=noise, seed=1))["explanations"]
    assert other["attributions"] != explanation["attributions"]


async def test_a_variance_promises_no_sum(explain: Explain, fresh: dict[str, Any]) -> None:
    (explanation,) = (await explain([fresh], noise={"kind": "vargrad", "samples": 4}))["explanations"]
    assert explanation["completeness"] == "none"
    assert "completeness_error" not in explanation
    assert "reasons" not in explanation
    assert min(explanation["attributions"].values()) >= 0


@pytest.mark.parametrize(
    ("noise", "says"),
    [
        ({"kind": "white"}, "noise.kind"),
        ({"kind": "smoothgrad", "samples": 1}, "noise.samples"),
        ({"kind": "smoothgrad", "scale": 0}, "noise.scale"),
        ({"kind": "smoothgrad", "samples": 1000}, "needs at least 1000 evaluations"),
    ],
)
async def test_noise_that_cannot_be_is_refused(
    client: httpx.AsyncClient, fresh: dict[str, Any], assert_problem: AssertProblem, noise: dict[str, Any], says: str
) -> None:
    body = {"instances": [fresh], "parameters": {"noise": noise, "max_evaluations": 999}}
    assert says in assert_problem(await client.post(LOAN, json=body), 422)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("grad_cam", "convolution"),
        ("blur_ig", "image"),
        ("integrated_hessians", "softplus"),
        ("sequential_ig", "token"),
    ],
)
async def test_a_method_that_does_not_apply_is_refused_with_what_to_use_instead(
    client: httpx.AsyncClient, fresh: dict[str, Any], assert_problem: AssertProblem, method: str, says: str
) -> None:
    detail = assert_problem(await client.post(LOAN, json={"instances": [fresh], "parameters": {"method": method}}), 422)
    assert says in detail
    assert "use " in detail or "ask for" in detail


async def test_a_budget_below_the_smallest_cost_is_refused_with_the_number(
    client: httpx.AsyncClient, fresh: dict[str, Any], assert_problem: AssertProblem
) -> None:
    body = {"instances": [fresh], "parameters": {"method": "expected_gradients", "max_evaluations": 50}}
    assert "expected_gradients with a baseline set of 128 rows needs at least 128 evaluations" in assert_problem(
        await client.post(LOAN, json=body), 422
    )


async def test_interactions_are_a_symmetric_matrix_by_feature(explain: Explain, fresh: dict[str, Any]) -> None:
    reply = await explain([fresh], method="integrated_hessians", options={"smooth": "softplus"})
    (explanation,) = reply["explanations"]
    matrix = np.array(explanation["interactions"])
    assert matrix.shape == (38, 38)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    np.testing.assert_allclose(matrix.sum(axis=1), list(explanation["attributions"].values()), atol=1e-6)


async def test_groups_are_answered_by_name(explain: Explain, fresh: dict[str, Any]) -> None:
    groups = [["applicant_income", "coapplicant_income"], ["black", "hispanic", "male"]]
    (explanation,) = (await explain([fresh], method="directional_ig", options={"groups": groups}))["explanations"]
    assert [group["features"] for group in explanation["groups"]] == groups
    assert all({"features", "dividend", "value"} == set(group) for group in explanation["groups"])


async def test_a_record_holds_the_options_and_the_noise(
    client: httpx.AsyncClient, explain: Explain, fresh: dict[str, Any]
) -> None:
    noise = {"kind": "smoothgrad", "samples": 4, "scale": 0.1}
    options = {"phi": 0.5}
    (explanation,) = (await explain([fresh], method="split_ig", options=options, noise=noise, seed=7))["explanations"]
    record = (await client.get(f"/v1/explanations/{explanation['id']}")).json()
    parameters = record["parameters"]
    assert parameters["options"]["phi"] == 0.5
    assert parameters["noise"] == noise
    assert parameters["seed"] == 7


@pytest.mark.parametrize("method", ["idgi", "saliency", "agi"])
async def test_values_that_are_no_account_of_the_decision_give_no_reasons(
    explain: Explain, fresh: dict[str, Any], method: str
) -> None:
    reply = await explain([fresh], path=LOAN, method=method, target="denied")
    (explanation,) = reply["explanations"]
    assert "reasons" not in explanation
    assert explanation["flags"] == []


@pytest.mark.parametrize(
    "groups", [[["black"] * 39], [["black"]] * 101, [["black", "nobody"]], ["black"], [[]], [[38]], [[True]]]
)
async def test_groups_are_bounded(
    client: httpx.AsyncClient, fresh: dict[str, Any], assert_problem: AssertProblem, groups: Any
) -> None:
    parameters = {"method": "directional_ig", "options": {"groups": groups}}
    response = await client.post(LOAN, json={"instances": [fresh] * 3, "parameters": parameters})
    assert "option groups" in assert_problem(response, 422)


async def test_regions_are_not_looked_for_in_many_noisy_copies(
    client: httpx.AsyncClient, digit: list[list[int]], assert_problem: AssertProblem
) -> None:
    parameters = {"method": "xrai", "noise": {"kind": "smoothgrad", "samples": 9}}
    response = await client.post(DIGITS, json={"instances": [digit], "parameters": parameters})
    assert "from 2 to 8 for xrai" in assert_problem(response, 422)


async def test_a_file_is_the_same_image_as_its_pixels(explain: Explain, digit: list[list[int]]) -> None:
    pixels = np.array(digit, dtype=np.float64)
    written = io.BytesIO()
    Image.fromarray((pixels * 255 / 16).round().astype(np.uint8)).save(written, "PNG")
    file = {"image": base64.b64encode(written.getvalue()).decode()}
    (of_file,) = (await explain([file], path=DIGITS, method="saliency"))["predictions"]
    (of_pixels,) = (await explain([digit], path=DIGITS, method="saliency"))["predictions"]
    assert of_file["label"] == of_pixels["label"]
    np.testing.assert_allclose(of_file["outputs"], of_pixels["outputs"], atol=0.01)
