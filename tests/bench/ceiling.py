"""The ceiling: the bare gradient loop on the same device, in a process of its own.

`python -m tests.bench.ceiling SECONDS THREADS CHUNK FOLDER...` prints one JSON line: for every model version folder its
`chunk` and the gradient points a second there. The loop is the twin's forward pass and `torch.autograd.grad` to its
rows, which are prepared beforehand: no packing, no reduction, no answer. With CHUNK 0 the best chunk of 32 to 4,096
rows is looked for first. MKL is held to the same instructions as in the service's workers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.rounds import ROOT, Run

if TYPE_CHECKING:
    from torch import nn

CHUNKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Peak:
    """A model's best chunk in rows, and the gradient points a second there."""

    folder: Path
    chunk: int
    points: float

    def again(self, seconds: float, threads: int) -> Run:
        """Another run at this chunk."""
        (peak,) = ceilings([self.folder], seconds, threads, self.chunk)
        return Run(rate=0.0, points=peak.points)


def ceilings(folders: Sequence[Path], seconds: float, threads: int = 1, chunk: int = 0) -> list[Peak]:
    """The peak of each model version; `chunk` 0 looks for the best one."""
    command = [sys.executable, "-m", "tests.bench.ceiling", str(seconds), str(threads), str(chunk), *map(str, folders)]
    environment = {**os.environ, "MKL_CBWR": "AVX2,STRICT"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE)
    return [Peak(folder, *peak) for folder, peak in zip(folders, json.loads(done.stdout), strict=True)]


def _points_per_second(twin: nn.Module, inputs: int, chunk: int, seconds: float) -> float:
    import torch

    rows = torch.randn(chunk, inputs).requires_grad_()
    cotangents = torch.zeros(chunk, 2)
    cotangents[:, 1] = 1.0
    for _ in range(3):
        torch.autograd.grad(twin(rows), rows, cotangents)
    done, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < seconds:
        torch.autograd.grad(twin(rows), rows, cotangents)
        done += chunk
    return done / took


def _peak(folder: Path, seconds: float, chunk: int) -> tuple[int, float]:
    from safetensors import safe_open

    from service.artefacts.onnx.parsing import parse_onnx
    from service.artefacts.onnx.twins import build_twin

    twin = build_twin(parse_onnx((folder / "model.onnx").read_bytes()), "features", "logits")
    with safe_open(folder / "heldout.safetensors", "numpy") as file:
        inputs = file.get_slice("rows").get_shape()[1]
    if not chunk:
        chunk = max(CHUNKS, key=lambda rows: _points_per_second(twin, inputs, rows, min(0.2, seconds)))
    return chunk, _points_per_second(twin, inputs, chunk, seconds)


def main(seconds: str, threads: str, chunk: str, *folders: str) -> None:
    """Measures one model after the other."""
    import torch

    torch.set_num_threads(int(threads))
    print(json.dumps([_peak(Path(folder), float(seconds), int(chunk)) for folder in folders]))


if __name__ == "__main__":
    main(*sys.argv[1:])
