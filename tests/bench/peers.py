"""The peers: what people write today, served by uvicorn. `python -m tests.bench.peers NAME PORT ...`.

`captum PORT FOLDER STEPS [THREADS]`: FastAPI and Captum's Integrated Gradients with a fixed number of steps from the
mean of the training set, one request one call, on the torch twin of the model, in probability space; torch has as many
threads as it takes unless told. `floor PORT REPLY`: FastAPI that validates the body with this service's own schema and
returns the content of the file REPLY, without computing. `bare_floor PORT`: FastAPI that parses the body as JSON and
returns a small constant.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from fastapi import FastAPI, Request

from service.api.schemas import ExplainBody

Answer = dict[str, Any]


def captum_explainer(folder: Path, baselines: Path, steps: int) -> Callable[[Mapping[str, float]], Answer]:
    """A function from an instance to its prediction and attributions, one call of Captum."""
    import torch
    from captum.attr import IntegratedGradients
    from safetensors.numpy import load_file

    from service.artefacts.onnx.parsing import parse_onnx
    from service.artefacts.onnx.twins import build_twin

    twin = build_twin(parse_onnx((folder / "model.onnx").read_bytes()), "features", "logits")
    baseline = torch.from_numpy(load_file(baselines)["rows"]).mean(dim=0, keepdim=True)
    features = yaml.safe_load((folder / "manifest.yaml").read_text())["inputs"]["features"]
    names = [feature["name"] for feature in features]
    explainer = IntegratedGradients(lambda x: torch.softmax(twin(x), dim=1))

    def explain(instance: Mapping[str, float]) -> Answer:
        row = torch.tensor([[instance[name] for name in names]], dtype=torch.float32)
        attributions = explainer.attribute(row, baseline, target=1, n_steps=steps)
        with torch.no_grad():
            outputs = torch.softmax(twin(row), dim=1)
        return {
            "predictions": outputs.tolist(),
            "attributions": dict(zip(names, attributions[0].tolist(), strict=True)),
        }

    return explain


def captum_app(folder: Path, steps: int, threads: int | None) -> FastAPI:
    """One request, one call of Captum."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    explainer = captum_explainer(folder, folder / "baselines" / "training.safetensors", steps)
    app = FastAPI()

    @app.post("/explain")
    def explain(body: dict[str, Any]) -> dict[str, Any]:
        return explainer(body["instances"][0])

    return app


def floor_app(reply: dict[str, Any]) -> FastAPI:
    """The same body, validated as by the service; the same content back; no computation."""
    app = FastAPI()

    @app.post("/explain")
    async def explain(body: ExplainBody) -> dict[str, Any]:
        return reply

    return app


def bare_floor_app() -> FastAPI:
    """A body that is JSON; a small constant back."""
    constant = {"predictions": [[0.2, 0.8]], "attributions": {f"feature_{k}": 0.123456789 for k in range(38)}}
    app = FastAPI()

    @app.post("/explain")
    async def explain(request: Request) -> dict[str, Any]:
        await request.json()
        return constant

    return app


def main(name: str, port: str, *arguments: str) -> None:
    """Serves the peer of that name."""
    match name:
        case "captum":
            folder, steps, *threads = arguments
            app = captum_app(Path(folder), int(steps), int(threads[0]) if threads else None)
        case "floor":
            app = floor_app(json.loads(Path(arguments[0]).read_text()))
        case "bare_floor":
            app = bare_floor_app()
        case _:
            raise SystemExit(f"there is no peer {name}")
    uvicorn.run(app, port=int(port), access_log=False, log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
