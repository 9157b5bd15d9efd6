"""The example models can be made again: the same data and the same script give the same files.

The gate makes the cheapest again, which runs the first one's script too; `make slow` the others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY_MODELS as MODELS


@pytest.mark.parametrize(
    ("model", "artefact", "baselines", "figure", "least"),
    [
        pytest.param("loan/1", "model.onnx", ("training", "approved"), "AUC", 0.75, marks=pytest.mark.slow),
        ("loan/2", "model.onnx", ("training", "approved"), "AUC", 0.75),
        pytest.param("house-price/1", "model.onnx", ("training",), "R2", 0.85, marks=pytest.mark.slow),
        pytest.param("digits/1", "model.safetensors", ("training", "blank"), "accuracy", 0.97, marks=pytest.mark.slow),
    ],
)
def test_training_again_gives_the_same_files(
    model: str, artefact: str, baselines: tuple[str, ...], figure: str, least: float, tmp_path: Path
) -> None:
    arguments = [sys.executable, str(MODELS / model / "train.py"), "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # threads that wait for a busy core wait long
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment).stdout

    files = [artefact, "heldout.safetensors", *(f"baselines/{name}.safetensors" for name in baselines)]
    for name in files:
        assert (tmp_path / name).read_bytes() == (MODELS / model / name).read_bytes(), name
    reached = re.search(rf"{figure}\s+(\d\.\d+)", printed)
    assert reached is not None
    assert float(reached[1]) >= least
