"""Copies of both loan versions that a test may spoil."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import MODELS

LOAN = MODELS / "loan"


@pytest.fixture
def loan_folder(tmp_path: Path) -> Path:
    """The folder of a copy of `loan`, with versions 1 and 2."""
    torch.set_num_threads(1)
    shutil.copytree(LOAN, tmp_path / "models" / "loan")
    return tmp_path / "models" / "loan"


Edit = Callable[[Path, Callable[[dict[str, Any]], object]], None]


@pytest.fixture
def edit() -> Edit:
    """Changes the manifest of a version folder, then makes its artefact's digest that of the file as it is now."""

    def change(folder: Path, by: Callable[[dict[str, Any]], object]) -> None:
        path = folder / "manifest.yaml"
        manifest = yaml.safe_load(path.read_text())
        by(manifest)
        content = (folder / manifest["artefact"]["file"]).read_bytes()
        manifest["artefact"]["sha256"] = hashlib.sha256(content).hexdigest()
        path.write_text(yaml.safe_dump(manifest))

    return change
