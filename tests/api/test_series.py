"""Series from request to replay: a recurrent network in ONNX and a convolutional one in torch.export's format, held
against Captum on the networks themselves."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch
import yaml
from captum.attr import IntegratedGradients
from fastapi import FastAPI
from safetensors.numpy import save_file
from torch import nn
from torch.export import Dim, export

from service.app import create_app
from service.settings import Settings
from tests.forked import fork_worker

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "k" * 40
STEPS, NAMES = 6, ("heart_rate", "oxygen", "pressure")
LOW, HIGH = (40.0, 80.0, 60.0), (180.0, 100.0, 190.0)
LABELS = ("stable", "worsening")
DRAWS = np.random.default_rng(5)


class Scaled(nn.Module):
    """What both networks begin with: numbers of a usual size, [rows, steps, features]."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Buffer(torch.tensor(LOW)), nn.Buffer(torch.tensor(HIGH))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = (2 * rows - self.low - self.high) / (self.high - self.low)
        return scaled


class Recurrent(nn.Module):
    """[rows, steps, features] -> logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.gru, self.out = Scaled(), nn.GRU(3, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.gru(self.scaled(rows))[0][:, -1])
        return 3 * logits


class Convolutional(nn.Module):
    """[rows, features, steps] -> logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = Scaled()
        self.layers = nn.Sequential(
            nn.Conv1d(3, 8, 3, padding=1),
            nn.BatchNorm1d(8),
            nn.GELU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(8, 2),
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(self.scaled(rows.transpose(1, 2)).transpose(1, 2))
        return 5 * logits


torch.manual_seed(3)
RECURRENT, CONVOLUTIONAL = Recurrent().eval(), Convolutional().eval()
ROWS = torch.from_numpy(DRAWS.uniform(LOW, HIGH, (9, STEPS, 3)).astype(np.float32))


def onnx_file() -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            RECURRENT,
            (ROWS,),
            content,
            input_names=["readings"],
            output_names=["logits"],
            dynamic_axes={"readings": {0: "rows"}},
            dynamo=False,
        )
    return content.getvalue()


def pt2_file() -> bytes:
    content = io.BytesIO()
    program = export(CONVOLUTIONAL, (ROWS.transpose(1, 2).contiguous(),), dynamic_shapes=({0: Dim("rows")},))
    torch.export.save(program, content)
    return content.getvalue()


def write(folder: Path, file: str, content: bytes, inputs: dict[str, Any], outputs: dict[str, Any], rows: Any) -> str:
    """A version of a model; returns the digest of its artefact."""
    folder.mkdir(parents=True)
    (folder / file).write_bytes(content)
    digests = {file: hashlib.sha256(content).hexdigest()}
    save_file({"rows": rows.reshape(len(rows), -1).numpy().copy()}, folder / "usual.safetensors")
    digests["usual"] = hashlib.sha256((folder / "usual.safetensors").read_bytes()).hexdigest()
    features = [
        {"name": name, "title": name.title(), "range": [low, high], "reason": {"code": f"S{at}", "text": f"{name}."}}
        for at, (name, low, high) in enumerate(zip(NAMES, LOW, HIGH, strict=True))
    ]
    manifest = {
        "name": folder.parent.name,
        "version": "1",
        "title": "Will this patient get worse?",
        "description": "From six readings.",
        "owner": "tests",
        "artefact": {"file": file, "sha256": digests[file]},
        "inputs": {"kind": "series", "steps": STEPS, "features": features, **inputs},
        "outputs": {
            "labels": [*LABELS],
            "adverse": "worsening",
            "link": "softmax",
            "default_space": "probability",
            **outputs,
        },
        "baselines": [
            {
                "name": "usual",
                "version": "1",
                "size": len(rows),
                "file": "usual.safetensors",
                "sha256": digests["usual"],
                "description": "usual readings",
            }
        ],
        "defaults": {"method": "integrated_gradients", "baseline": "usual", "tolerance": 0.001},
        "floor": {"probability": 0.01},
        "example": ROWS[0].tolist(),
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return digests[file]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("series")
    models = folder / "models"
    write(
        models / "ward" / "1",
        "model.onnx",
        onnx_file(),
        {"tensor": "readings"},
        {"tensors": {"logit": "logits"}},
        ROWS[1:],
    )
    digest = write(
        models / "monitor" / "1",
        "model.pt2",
        pt2_file(),
        {"order": "features first"},
        {},
        ROWS[1:].transpose(1, 2).contiguous(),
    )
    settings = Settings(_env_file=None, data=folder / "data", models=models, key=KEY, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANSWERABLE_TRUSTED_ARTEFACTS", digest)  # which the worker reads
        app = create_app(settings, [fork_worker(0)])
        async with running(app) as one:
            yield one


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with app.router.lifespan_context(app):
        await app.state.services.loading
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(
            base_url="http://here", transport=httpx.ASGITransport(app), timeout=300, headers=headers
        ) as one:
            yield one


def captum(network: nn.Module, row: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """Of the probability that the patient gets worse, in double precision, over enough nodes."""
    probability = nn.Sequential(network, nn.Softmax(1)).double()
    values = IntegratedGradients(probability).attribute(
        row[None].double(), baseline[None].double(), target=1, n_steps=200, method="gausslegendre"
    )
    network.float()
    found: torch.Tensor = values[0]
    return found


async def test_the_models_are_served(client: httpx.AsyncClient) -> None:
    ready = (await client.get("/v2/health/ready")).json()
    assert ready == {"ready": True}
    described = (await client.get("/v1/models/ward")).json()
    (inputs,) = described["inputs"]
    assert (inputs["kind"], inputs["steps"], inputs["order"]) == ("series", STEPS, "steps first")
    assert [feature["name"] for feature in inputs["features"]] == [*NAMES]


@pytest.mark.parametrize("model", ["ward", "monitor"])
async def test_attributions_by_step_and_feature_are_captums(client: httpx.AsyncClient, model: str) -> None:
    body = {"instances": [ROWS[0].tolist()], "parameters": {"target": "worsening", "over": "time"}}
    reply = await client.post(f"/v1/models/{model}/versions/1:explain", json=body)
    assert reply.status_code == 200, reply.text
    (explanation,) = reply.json()["explanations"]

    assert explanation["converged"]
    assert explanation["attributions"]["shape"] == [STEPS, len(NAMES)]
    assert explanation["attributions"]["features"] == [*NAMES]
    values = torch.tensor(explanation["attributions"]["values"], dtype=torch.double).reshape(STEPS, len(NAMES))
    mean = ROWS[1:].mean(0)
    network, transposed = (RECURRENT, False) if model == "ward" else (CONVOLUTIONAL, True)
    expected = captum(network, *((part.T if transposed else part) for part in (ROWS[0], mean)))
    expected = expected.T if transposed else expected
    error = float((values - expected).abs().sum() / expected.abs().sum())
    assert error <= max(explanation["attribution_error"], 1e-5)
    assert error < 1e-3

    assert explanation["attributions"]["over_time"] == pytest.approx(values.sum(0).tolist())
    reasons = {reason["code"]: reason["contribution"] for reason in explanation["reasons"]}
    by_feature = expected.sum(0)
    assert reasons
    for code, contribution in reasons.items():
        assert contribution == pytest.approx(float(by_feature[int(code[1:])]), abs=1e-3)


@pytest.mark.parametrize("model", ["ward", "monitor"])
async def test_a_record_is_replayed(client: httpx.AsyncClient, model: str) -> None:
    parameters = {"method": "expected_gradients", "over": "feature"}
    body = {"instances": [ROWS[2].tolist()], "parameters": parameters}
    (explanation,) = (await client.post(f"/v1/models/{model}/versions/1:explain", json=body)).json()["explanations"]
    record = (await client.get(f"/v1/explanations/{explanation['id']}")).json()
    assert record["attributions"] == explanation["attributions"]
    assert "over_feature" not in explanation["standard_error"]
    values = np.reshape(record["attributions"]["values"], (STEPS, len(NAMES)))
    assert record["attributions"]["over_feature"] == pytest.approx(values.sum(1).tolist())
    replayed = (await client.post(f"/v1/explanations/{explanation['id']}:replay")).json()
    assert replayed["verdict"] == "bit_exact"


@pytest.mark.parametrize(
    ("instance", "says"),
    [
        ([[90, 97, 120]] * 5, "a series is a list of 6 steps, each a list of 3 numbers"),
        ([[90, 97, 120]] * 5 + [[90, 97]], "step 5 must be a list of 3 numbers"),
        ([[90, 97, 120]] * 5 + [[90, 10, 120]], "step 5: oxygen is 10, outside its range from 80 to 100"),
        ([[90, 97, 120]] * 5 + [[90, None, 120]], "step 5: oxygen must be a number"),
        ({"heart_rate": 1}, "a series is a list of 6 steps"),
    ],
)
async def test_what_is_no_series_is_refused(client: httpx.AsyncClient, instance: Any, says: str) -> None:
    reply = await client.post("/v1/models/ward/versions/1:explain", json={"instances": [instance]})
    assert reply.status_code == 422, reply.text
    assert says in reply.json()["detail"]
