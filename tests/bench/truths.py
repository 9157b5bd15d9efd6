"""What the accuracy figures are held against, with torch, in a process of its own.

`python -m tests.bench.truths steps FOLDER` finds the fewest steps of Captum, `paths FOLDER` the true Integrated
Gradients, `expected ROWS POINTS:SEEDS...` the true Expected Gradients and shap's; each prints one JSON line. Truths
are composite midpoints in float64 on the torch twin, hundreds or thousands to a path.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.bench.rounds import LOAN

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float64]
SPACES = ("logit", "probability")
ERROR, PERCENTILE = 0.01, 95
FLOOR = 0.01
"""The smallest change of the probability to which an error is taken as relative: the manifest's."""
MOST_STEPS = 1000
PATH_MIDPOINTS = 2048
EXPECTED_MIDPOINTS = 512


def heldout(folder: Path) -> Floats:
    """The rows of a model version that were held out of training."""
    rows: Floats = load_file(folder / "heldout.safetensors")["rows"].astype(np.float64)
    return rows


def spread(rows: Floats, count: int) -> Floats:
    """`count` rows, evenly spread."""
    chosen: Floats = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
    return chosen


def _twin(folder: Path) -> nn.Module:
    from service.artefacts.onnx.parsing import parse_onnx
    from service.artefacts.onnx.twins import build_twin

    return build_twin(parse_onnx((folder / "model.onnx").read_bytes()), "features", "logits")


def _baselines() -> NDArray[np.float32]:
    rows: NDArray[np.float32] = load_file(LOAN / "baselines" / "training.safetensors")["rows"]
    return rows


def _search_steps(folder: Path) -> dict[str, float]:
    """Every number from one on, so that a lucky one counts too: the error does not fall steadily."""
    import torch
    from captum.attr import IntegratedGradients

    twin = _twin(folder)
    rows = torch.from_numpy(heldout(folder).astype(np.float32))
    baseline = torch.from_numpy(_baselines()).mean(dim=0, keepdim=True)

    def probabilities(x: Tensor) -> Tensor:
        return torch.softmax(twin(x), dim=1)

    with torch.no_grad():
        change = (probabilities(rows) - probabilities(baseline))[:, 1]
    explainer = IntegratedGradients(probabilities)

    def error(steps: int) -> float:
        values = explainer.attribute(rows, baseline, target=1, n_steps=steps, internal_batch_size=8192)
        relative = (values.sum(dim=1) - change).abs() / change.abs().clamp_min(FLOOR)
        return float(np.percentile(relative.detach().numpy(), PERCENTILE))

    for steps in range(1, MOST_STEPS + 1):
        if (reached := error(steps)) <= ERROR:
            return {"steps": steps, "error": reached}
    raise RuntimeError(f"{MOST_STEPS} steps do not bring the completeness error under {ERROR:.0%}")


def _midpoints(network: Callable[[Tensor], Tensor], starts: Floats, end: Floats, count: int) -> dict[str, Floats]:
    """Attributions of label 1 from each of `starts` [lines, inputs] to `end`, averaged over the lines, by space."""
    import torch

    origin = torch.from_numpy(starts)
    direction = torch.from_numpy(end) - origin
    sums = {space: torch.zeros_like(direction) for space in SPACES}
    for alphas in torch.split((torch.arange(count, dtype=torch.float64) + 0.5) / count, max(1, 8192 // len(starts))):
        points = (origin + alphas[:, None, None] * direction).flatten(0, 1).requires_grad_()
        logits = network(points)
        outputs = (logits[:, 1], torch.softmax(logits, dim=1)[:, 1])
        for space, output in zip(SPACES, outputs, strict=True):
            (gradients,) = torch.autograd.grad(output.sum(), points, retain_graph=space == SPACES[0])
            sums[space] += gradients.reshape(len(alphas), *direction.shape).sum(dim=0)
    return {space: (total * direction / count).mean(dim=0).numpy() for space, total in sums.items()}


def _paths(folder: Path) -> list[list[float]]:
    """Integrated Gradients of every held-out row from the mean baseline, in probability space."""
    twin = _twin(folder).double()
    start = _baselines().mean(axis=0, dtype=np.float64).astype(np.float32).astype(np.float64)
    return [_midpoints(twin, start[None], row, PATH_MIDPOINTS)["probability"].tolist() for row in heldout(folder)]


def _expected(rows: int, seeds: Mapping[int, int]) -> dict[str, dict[str, Any]]:
    """By space, the `truth` [rows, inputs] and, by number of points, shap's answers [seeds, rows, inputs]."""
    import shap
    import torch
    from torch import nn

    inputs, baselines = spread(heldout(LOAN), rows), _baselines()
    exact = _twin(LOAN).double()
    truths = [_midpoints(exact, baselines.astype(np.float64), row, EXPECTED_MIDPOINTS) for row in inputs]
    twin = _twin(LOAN)
    asked = torch.from_numpy(inputs.astype(np.float32))
    found: dict[str, dict[str, Any]] = {}
    for space, network in (("logit", twin), ("probability", nn.Sequential(twin, nn.Softmax(dim=1)))):
        explainer = shap.GradientExplainer(network, torch.from_numpy(baselines))

        def draw(points: int, seed: int, explainer: Any = explainer) -> list[list[float]]:
            values = explainer.shap_values(asked, nsamples=points, rseed=seed)
            return [[float(value) for value in row] for row in np.asarray(values)[..., 1]]

        found[space] = {str(points): [draw(points, seed) for seed in range(count)] for points, count in seeds.items()}
        found[space]["truth"] = [truth[space].tolist() for truth in truths]
    return found


def _pairs(given: Sequence[str]) -> dict[int, int]:
    return {int(points): int(seeds) for points, _, seeds in (pair.partition(":") for pair in given)}


def main(what: str, *arguments: str) -> None:
    """Prints one JSON line."""
    results: dict[str, Callable[[Sequence[str]], Any]] = {
        "steps": lambda given: _search_steps(Path(given[0])),
        "paths": lambda given: _paths(Path(given[0])),
        "expected": lambda given: _expected(int(given[0]), _pairs(given[1:])),
    }
    print(json.dumps(results[what](arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
