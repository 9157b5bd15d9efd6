"""Copies of versions: what is in them, and that the folder of models may change meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.catalog.staging import drop, stage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "loan" / "1"
    (folder / "baselines").mkdir(parents=True)
    (folder / "manifest.yaml").write_text("first")
    (folder / "baselines" / "training.safetensors").write_bytes(b"rows")
    return folder


def files(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_a_copy_is_by_the_manifest_and_stays(folder: Path, tmp_path: Path) -> None:
    first = stage(folder, "sha256:1", tmp_path / "copies")
    assert files(first) == files(folder)
    assert (first.parent.name, first.name) == ("loan", "1")

    (folder / "manifest.yaml").write_text("second")
    assert stage(folder, "sha256:1", tmp_path / "copies") == first
    second = stage(folder, "sha256:2", tmp_path / "copies")
    assert (files(first)["manifest.yaml"], files(second)["manifest.yaml"]) == (b"first", b"second")
    drop(first)
    assert files(stage(folder, "sha256:1", tmp_path / "copies"))["manifest.yaml"] == b"second"
    assert not list((tmp_path / "copies").rglob(".part-*"))


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("secret")
    (folder / "file").symlink_to(tmp_path / "secret" / "file")
    (folder / "more").symlink_to(tmp_path / "secret")

    assert sorted(files(stage(folder, "sha256:1", tmp_path / "copies"))) == [
        "baselines/training.safetensors",
        "manifest.yaml",
    ]
