"""The loan model can be made again: the same data and the same script give the same files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LOAN = Path(__file__).parents[2] / "models" / "loan" / "1"
FILES = ("model.onnx", "heldout.safetensors", "baselines/training.safetensors", "baselines/approved.safetensors")


def test_training_again_gives_the_same_files(tmp_path: Path) -> None:
    arguments = [sys.executable, str(LOAN / "train.py"), "--out", str(tmp_path)]
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout

    for name in FILES:
        assert (tmp_path / name).read_bytes() == (LOAN / name).read_bytes(), name
    auc = re.search(r"AUC\s+(\d\.\d+)", printed)
    assert auc is not None
    assert float(auc[1]) >= 0.75
