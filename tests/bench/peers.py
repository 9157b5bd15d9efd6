"""The peers: what people write today, served by uvicorn. `python tests/bench/peers.py NAME PORT [STEPS]`.

`captum`: FastAPI and Captum's Integrated Gradients with a fixed number of steps from the mean of the training set, one
request one call, on the torch twin of the loan model, in probability space. `floor`: FastAPI parsing the same body and
answering a constant of the same size, without computing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from fastapi import FastAPI, Request
from safetensors.numpy import load_file

LOAN = Path(__file__).parents[2] / "models" / "loan" / "1"


def captum_app(steps: int) -> FastAPI:
    """One request, one call of Captum."""
    import torch
    from captum.attr import IntegratedGradients

    from service.catalog.twins import build_twin, parse_onnx

    twin = build_twin(parse_onnx((LOAN / "model.onnx").read_bytes()), "features", "logits")
    rows = torch.from_numpy(load_file(LOAN / "baselines" / "training.safetensors")["rows"])
    baseline = rows.mean(dim=0, keepdim=True)
    features = yaml.safe_load((LOAN / "manifest.yaml").read_text())["inputs"]["features"]
    names = [feature["name"] for feature in features]
    explainer = IntegratedGradients(lambda x: torch.softmax(twin(x), dim=1))
    app = FastAPI()

    @app.post("/explain")
    def explain(body: dict[str, Any]) -> dict[str, Any]:
        row = torch.tensor([[body["instances"][0][name] for name in names]], dtype=torch.float32)
        attributions = explainer.attribute(row, baseline, target=1, n_steps=steps)
        outputs = torch.softmax(twin(row), dim=1)
        return {
            "predictions": outputs.tolist(),
            "attributions": dict(zip(names, attributions[0].tolist(), strict=True)),
        }

    return app


def floor_app() -> FastAPI:
    """The same body, no computation."""
    names = [f["name"] for f in yaml.safe_load((LOAN / "manifest.yaml").read_text())["inputs"]["features"]]
    constant = {"predictions": [[0.2, 0.8]], "attributions": dict.fromkeys(names, 0.123456789)}
    app = FastAPI()

    @app.post("/explain")
    async def explain(request: Request) -> dict[str, Any]:
        await request.json()
        return constant

    return app


if __name__ == "__main__":
    name, port = sys.argv[1], int(sys.argv[2])
    served = floor_app() if name == "floor" else captum_app(int(sys.argv[3]))
    uvicorn.run(served, port=port, access_log=False, log_level="warning")
