"""Assessments: which of them is of a version, and that those of the shipped models are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from service.catalog.assessments import FILE, Assessment, Assessments, Profile, keep_beside
from service.catalog.manifest import read_manifest
from service.domain import ModelKey

KEY = ModelKey("loan", "2", "sha256:artefact")
PROFILE = Profile("integrated_gradients", "probability", "denied", "sha256:set", 3, {"second": 0.5, "first": 0.25})
OLD = Assessment("loan", "2", KEY.digest, "sha256:manifest", "loan@1", (), ({"check": "digest"},), {}, PROFILE)
MODELS = Path(__file__).parents[2] / "models"


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    kept = Assessments(tmp_path / "data")
    kept.keep(OLD)

    found = kept.find(tmp_path, KEY, "sha256:manifest")
    assert found == OLD
    assert found.profile is not None
    assert list(found.profile.importance) == ["second", "first"]
    assert found.passed
    assert kept.find(tmp_path, KEY, "sha256:other") is None
    assert kept.find(tmp_path, replace(KEY, digest="sha256:other"), "sha256:manifest") is None


def test_the_later_of_both_places_counts(tmp_path: Path) -> None:
    kept = Assessments(tmp_path / "data")
    later = replace(OLD, failed=("flips",), profile=None, checked=OLD.checked + 1)
    for here, beside in ((OLD, later), (later, OLD)):
        kept.keep(here)
        keep_beside(tmp_path, beside)
        assert kept.find(tmp_path, KEY, "sha256:manifest") == later
    assert not later.passed


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"format": 1}'])
def test_what_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)

    assert Assessments(tmp_path / "data").find(tmp_path, KEY, "sha256:manifest") is None


def test_another_format_is_none(tmp_path: Path) -> None:
    keep_beside(tmp_path, OLD)
    whole = orjson.loads((tmp_path / FILE).read_bytes())
    (tmp_path / FILE).write_bytes(orjson.dumps({**whole, "format": 0}))

    assert Assessments(tmp_path / "data").find(tmp_path, KEY, "sha256:manifest") is None


@pytest.mark.parametrize("version", ["digits/1", "loan/1", "loan/2"])
def test_every_shipped_version_has_passed_its_check(version: str, tmp_path: Path) -> None:
    """After a change of a model or its manifest: `answerable models check NAME@VERSION --beside`."""
    folder = MODELS / version
    _, key, manifest = read_manifest(folder)
    found = Assessments(tmp_path).find(folder, key, manifest)

    assert found is not None
    assert found.passed
    assert found.profile is not None
