"""A segmentation from request to record and replay, held against Captum with the sum in a box wrapped around it."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch
import yaml
from captum.attr import InputXGradient, IntegratedGradients
from safetensors.numpy import save
from torch import Tensor, nn

from service.app import create_app
from service.catalog.outputs.classes import Classes
from service.errors import InvalidRequest
from service.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "k" * 40
LABELS = ["road", "sky", "car"]
PIXELS, PLACES = 12, 6
TOLERANCE = 1e-5


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(5, len(LABELS), 3, padding=1)
    ).eval()


def write_version(models: Path) -> None:
    folder = models / "street" / "1"
    folder.mkdir(parents=True)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names: dict[str, Any] = {"input_names": ["image"], "output_names": ["map"]}
        axes = {"image": {0: "n"}, "map": {0: "n"}}
        rows = torch.zeros(1, 2, PIXELS, PIXELS)
        torch.onnx.export(network(), (rows,), content, dynamo=False, dynamic_axes=axes, **names)
    baseline = save({"rows": np.full((1, 2 * PIXELS**2), 0.25, np.float32)})
    files = {"model.onnx": content.getvalue(), "grey.safetensors": baseline}
    for name, own in files.items():
        (folder / name).write_bytes(own)
    digests = {name: hashlib.sha256(own).hexdigest() for name, own in files.items()}
    manifest = {
        "name": "street",
        "version": "1",
        "title": "Street",
        "artefact": {"file": "model.onnx", "sha256": digests["model.onnx"]},
        "inputs": {"kind": "image", "tensor": "image", "shape": [2, PIXELS, PIXELS], "range": [0, 1]},
        "outputs": {
            "kind": "maps",
            "labels": LABELS,
            "size": [PLACES, PLACES],
            "image": [PIXELS, PIXELS],
            "tensors": {"logit": "map"},
        },
        "baselines": [
            {
                "name": "grey",
                "version": "1",
                "size": 1,
                "file": "grey.safetensors",
                "sha256": digests["grey.safetensors"],
            }
        ],
        "defaults": {"baseline": "grey"},
        "example": image(1).tolist(),
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))


def image(seed: int) -> Tensor:
    return torch.rand(2, PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("maps")
    write_version(folder / "models")
    app = create_app(
        Settings(_env_file=None, data=folder / "data", models=folder / "models", key=KEY, workers=1, ledger="required")
    )
    async with app.router.lifespan_context(app):
        await app.state.services.loading
        transport, headers = httpx.ASGITransport(app), {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url="http://here", transport=transport, timeout=300, headers=headers) as one:
            yield one


async def asked(client: httpx.AsyncClient, parameters: dict[str, Any], verb: str = "explain") -> httpx.Response:
    body = {"instances": [image(0).tolist()], "parameters": parameters}
    return await client.post(f"/v1/models/street:{verb}", json=body)


def in_box(images: Tensor, label: int, places: tuple[int, int, int, int]) -> Tensor:
    left, top, right, bottom = places
    answer: Tensor = network().to(images.dtype)(images)[:, label, top:bottom, left:right].sum((1, 2))
    return answer


BOXES = [
    ({"box": [2, 4, 8, 10], "label": "car"}, 2, (1, 2, 4, 5), 9),
    ({"box": [0, 0, 12, 12], "label": 0}, 0, (0, 0, 6, 6), 36),
    ({"box": [-5, 10.9, 3.1, 99], "label": "sky"}, 1, (0, 5, 2, 6), 2),
    ("sky", 1, (0, 0, 6, 6), 36),
]


@pytest.mark.parametrize(("target", "label", "places", "count"), BOXES)
async def test_a_box_is_explained_as_captum_explains_the_sum_in_it(
    client: httpx.AsyncClient, target: Any, label: int, places: tuple[int, int, int, int], count: int
) -> None:
    reply = await asked(client, {"target": target, "tolerance": 1e-6, "channels": True})
    assert reply.status_code == 200, reply.text
    (explanation,) = reply.json()["explanations"]
    own, grey = image(0)[None].double(), torch.full((1, 2, PIXELS, PIXELS), 0.25).double()
    captum = IntegratedGradients(lambda images: in_box(images, label, places))
    expected = captum.attribute(own, grey, n_steps=64, method="gausslegendre")[0].detach().numpy()
    found = np.array(explanation["attributions"]["channels"])
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()
    assert explanation["output"] == pytest.approx(in_box(own, label, places).item(), rel=TOLERANCE)
    assert explanation["target"]["label"] == LABELS[label]
    assert explanation["target"]["places"] == count
    assert explanation["target"]["box"] == [2.0 * edge for edge in places]
    assert explanation["output_space"] == "logit"

    record = (await client.get(f"/v1/explanations/{explanation['id']}")).json()
    assert record["target"] == explanation["target"]
    assert record["parameters"]["target"]["places"] == list(places)
    replayed = (await client.post(f"/v1/explanations/{explanation['id']}:replay")).json()
    assert replayed["verdict"] == "bit_exact"


async def test_a_method_of_single_rows_reads_the_box_too(client: httpx.AsyncClient) -> None:
    target, label, places, _ = BOXES[0]
    reply = await asked(client, {"target": target, "method": "input_x_gradient", "channels": True})
    assert reply.status_code == 200, reply.text
    own = image(0)[None].double().requires_grad_()
    grey = torch.full_like(own, 0.25)
    (gradient,) = torch.autograd.grad(in_box(own, label, places).sum(), own)
    expected = InputXGradient(lambda images: in_box(images, label, places)).attribute(own)[0].detach().numpy()
    found = np.array(reply.json()["explanations"][0]["attributions"]["channels"])
    against_baseline = (gradient * (own - grey))[0].detach().numpy()
    differences = [np.abs(found - one).max() / np.abs(one).max() for one in (expected, against_baseline)]
    assert min(differences) < TOLERANCE


async def test_a_prediction_says_how_much_of_the_image_each_label_has(client: httpx.AsyncClient) -> None:
    reply = await asked(client, {}, "predict")
    (prediction,) = reply.json()["predictions"]
    largest = network()(image(0)[None]).argmax(1).flatten().bincount(minlength=3) / PLACES**2
    assert prediction["areas"] == pytest.approx(dict(zip(LABELS, largest.tolist(), strict=True)))
    assert prediction["label"] == LABELS[int(largest.argmax())]
    explained = (await asked(client, {})).json()["explanations"][0]
    assert explained["target"]["label"] == prediction["label"]
    assert explained["target"]["places"] == PLACES**2
    found = (await client.get("/v1/explanations", params={"label": prediction["label"]})).json()["explanations"]
    assert explained["id"] in {record["id"] for record in found}
    described = (await client.get("/v1/models/street")).json()["outputs"]
    assert described["kind"] == "maps"
    assert (described["size"], described["image"]) == ([PLACES, PLACES], [PIXELS, PIXELS])


async def test_several_boxes_are_explained_of_one_image(client: httpx.AsyncClient) -> None:
    reply = await asked(client, {"targets": [target for target, *_ in BOXES]})
    assert [one["target"]["places"] for one in reply.json()["explanations"]] == [count for *_, count in BOXES]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ({"box": [3.1, 3, 3.5, 3.5], "label": "car"}, "holds the centre of no place of the map"),
        ({"box": [8, 4, 2, 10], "label": "car"}, "holds the centre of no place of the map"),
        ({"box": [0, 0, 4, 4]}, "a box needs its `label`, one of road, sky, car"),
        ({"box": [0, 0, 4, 4], "label": "tram"}, "is not a label"),
        ({"label": "car", "rather_than": "sky"}, "a box of one label is explained"),
        ({"box": [0, 0, 4], "label": "car"}, "at least 4|four|4 items"),
    ],
)
async def test_what_is_no_box_is_refused_in_a_sentence(client: httpx.AsyncClient, target: Any, sentence: str) -> None:
    reply = await asked(client, {"target": target})
    assert reply.status_code in (400, 422)
    assert any(part in reply.text for part in sentence.split("|")), reply.text


async def test_a_box_is_no_target_of_other_models() -> None:
    classes = Classes(labels=("a", "b"), link="softmax")
    with pytest.raises(InvalidRequest, match="`box` and `label` says nothing of classes; name a label, or two"):
        classes.read_target({"box": [0, 0, 1, 1], "label": "a"})
