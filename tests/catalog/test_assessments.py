"""Assessments: which of them is of a version, and that those of the shipped models are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from service.catalog.assessments import FILE, Assessment, Assessments, Profile, keep_beside, newest_before
from service.catalog.manifest import read_manifest
from service.domain import ModelKey
from tests.conftest import MODELS

KEY = ModelKey("loan", "2", "sha256:artefact")
PROFILE = Profile("integrated_gradients", "probability", "denied", "sha256:set", 3, {"second": 0.5, "first": 0.25})
FILES = ("sha256:earlier", "sha256:its manifest")
OLD = Assessment("loan", "2", KEY.digest, "sha256:manifest", "loan@1", (), ({"check": "digest"},), {}, PROFILE)


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    kept = Assessments(tmp_path / "data")
    kept.keep(OLD)

    found = kept.find(tmp_path, KEY, "sha256:manifest")
    assert found == OLD
    assert found.profile is not None
    assert list(found.profile.importance) == ["second", "first"]
    assert found.passed
    assert kept.find(tmp_path, KEY, "sha256:manifest", FILES) is None  # it says nothing of a comparison with these
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


def test_of_those_that_compared_it_with_what_is_asked_the_latest_counts(tmp_path: Path) -> None:
    kept = Assessments(tmp_path / "data")
    kept.keep(replace(OLD, against_files=FILES))
    keep_beside(tmp_path, replace(OLD, failed=("flips",), against_files=None, checked=OLD.checked + 1))

    found = kept.find(tmp_path, KEY, "sha256:manifest", FILES)
    assert found == replace(OLD, against_files=FILES)


def test_the_newest_version_before_that_has_not_failed(tmp_path: Path) -> None:
    folders = []
    for number in ("1", "2", "3"):
        shutil.copytree(MODELS / "loan" / "1", tmp_path / "loan" / number)
        path = tmp_path / "loan" / number / "manifest.yaml"
        path.write_text(path.read_text().replace('version: "1"', f'version: "{number}"', 1))
        folders.append(path.parent)
    kept = Assessments(tmp_path / "data")
    assert newest_before(folders, folders[2], kept) == folders[1]
    _, key, manifest = read_manifest(folders[1])
    kept.keep(replace(OLD, digest=key.digest, manifest=manifest, failed=("flips",)))

    assert newest_before(folders, folders[2], kept) == folders[0]
    assert newest_before(folders, folders[0], kept) is None


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
    if found.against is not None:
        _, before, its_manifest = read_manifest(MODELS / found.against.replace("@", "/"))
        assert found.against_files == (before.digest, its_manifest)
