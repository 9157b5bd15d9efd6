"""Copies of the loan model that a test may spoil."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

LOAN = Path(__file__).parents[2] / "models" / "loan" / "1"


@dataclass(frozen=True, slots=True)
class Version:
    """A version folder, to be spoiled."""

    folder: Path

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Changes the manifest."""
        path = self.folder / "manifest.yaml"
        manifest = yaml.safe_load(path.read_text())
        change(manifest)
        path.write_text(yaml.safe_dump(manifest))

    def sign(self) -> None:
        """Makes the manifest's digests those of the files as they are now."""

        def signed(manifest: dict[str, Any]) -> None:
            for named in (manifest["artefact"], *manifest["baselines"]):
                content = (self.folder / named["file"]).read_bytes()
                named["sha256"] = hashlib.sha256(content).hexdigest()

        self.edit(signed)


@pytest.fixture
def version(tmp_path: Path) -> Version:
    """A copy of the loan model."""
    folder = tmp_path / "models" / "loan" / "1"
    shutil.copytree(LOAN, folder)
    return Version(folder)
