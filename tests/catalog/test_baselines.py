"""Baseline sets that are kept beside the models: versions, digests, and for which model each is."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.catalog import baselines
from service.catalog.baselines import MAX_ROWS, KeptSets
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.manifest import Manifest, read_manifest
from service.catalog.version_files import read_baseline_rows
from service.domain import ModelKey
from service.errors import InvalidRequest
from tests.conftest import MODELS

LOAN = MODELS / "loan"


@pytest.fixture
def loan() -> tuple[Manifest, ModelKey]:
    manifest, key, _ = read_manifest(LOAN / "1")
    return manifest, key


def test_versions_follow_those_of_the_manifest_and_never_change(
    tmp_path: Path, loan: tuple[Manifest, ModelKey]
) -> None:
    (manifest, key), sets = loan, KeptSets(tmp_path)
    rows = np.arange(76, dtype=np.float32).reshape(2, 38)
    first = sets.keep(key, manifest, "training", rows, "two")
    second = sets.keep(key, manifest, "training", rows + 1, "")
    other = sets.keep(key, manifest, "mine", rows, "")

    assert [(one.name, one.version, one.size) for one in (first, second, other)] == [
        ("training", "2", 2),
        ("training", "3", 2),
        ("mine", "1", 2),
    ]
    assert sets.of("loan") == (first, second, other)
    assert KeptSets(tmp_path).of("loan") == sets.of("loan")
    assert sets.of("other") == ()
    assert read_baseline_rows(sets.place("loan"), manifest, first.listed).tolist() == rows.tolist()
    assert first.sha256 == other.sha256


def test_at_the_same_time(tmp_path: Path, loan: tuple[Manifest, ModelKey]) -> None:
    manifest, key = loan

    def keep(number: int) -> str:
        return KeptSets(tmp_path).keep(key, manifest, "mine", np.full((1, 38), number, np.float32), "").version

    with ThreadPoolExecutor(8) as threads:
        versions = list(threads.map(keep, range(40)))
    assert sorted(versions, key=int) == [str(number) for number in range(1, 41)]
    assert len(KeptSets(tmp_path).of("loan")) == 40


def test_for_another_artefact_or_other_inputs_it_is_stale(tmp_path: Path, loan: tuple[Manifest, ModelKey]) -> None:
    manifest, key = loan
    kept = KeptSets(tmp_path).keep(key, manifest, "mine", np.zeros((1, 38), np.float32), "")
    assert isinstance(manifest.inputs, TabularInputs)
    given = manifest.inputs.model_dump()
    turned = TabularInputs.model_validate({**given, "features": given["features"][::-1]})

    assert kept.stale_for(key, manifest) is None
    assert "not for this artefact" in str(kept.stale_for(replace(key, digest="sha256:other"), manifest))
    assert "another order" in str(kept.stale_for(key, manifest.model_copy(update={"inputs": turned})))


@pytest.mark.parametrize("name", ["zeros", "mask", "inline", "Mine", "../mine", "", "a" * 65])
def test_names_that_mean_something_else(tmp_path: Path, loan: tuple[Manifest, ModelKey], name: str) -> None:
    with pytest.raises(InvalidRequest):
        KeptSets(tmp_path).keep(loan[1], loan[0], name, np.zeros((1, 38), np.float32), "")
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("rows", [0, MAX_ROWS + 1])
def test_sizes(tmp_path: Path, loan: tuple[Manifest, ModelKey], rows: int) -> None:
    with pytest.raises(InvalidRequest, match="rows"):
        KeptSets(tmp_path).keep(loan[1], loan[0], "mine", np.zeros((rows, 38), np.float32), "")


def test_a_tenant_has_so_many_and_no_more(
    tmp_path: Path, loan: tuple[Manifest, ModelKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "MAX_SETS", 2)
    (manifest, key), sets, rows = loan, KeptSets(tmp_path), np.zeros((1, 38), np.float32)
    first, _ = (sets.keep(key, manifest, name, rows, "", tenant="bank") for name in ("one", "two"))
    with pytest.raises(InvalidRequest, match="remove one first"):
        sets.keep(key, manifest, "three", rows, "", tenant="bank")
    assert sets.keep(key, manifest, "three", rows, "", tenant="broker").version == "1"
    sets.leave(first, rows[:0], ())
    assert sets.keep(key, manifest, "three", rows, "", tenant="bank").version == "1"


def test_versions_are_counted_by_what_the_tenant_sees(tmp_path: Path, loan: tuple[Manifest, ModelKey]) -> None:
    (manifest, key), sets, rows = loan, KeptSets(tmp_path), np.zeros((1, 38), np.float32)
    kept = [sets.keep(key, manifest, "mine", rows, "", tenant=tenant) for tenant in ("a", "b", "a", None, "b", "c")]

    assert [one.version for one in kept] == ["1", "1", "2", "3", "4", "4"]
    assert [one.tenant for one in sets.of("loan") if one.is_seen_by("a")] == ["a", "a", None]
    assert [one.tenant for one in sets.of("loan") if one.is_seen_by(None)] == [None]


def test_a_set_from_before_tenants_had_their_own_is_the_operators(
    tmp_path: Path, loan: tuple[Manifest, ModelKey]
) -> None:
    (manifest, key), sets = loan, KeptSets(tmp_path)
    kept = sets.keep(key, manifest, "mine", np.zeros((1, 38), np.float32), "")
    path = sets.place("loan") / "mine@1.json"
    since = ("tenant", "subjects", "erased")
    path.write_text(json.dumps({name: it for name, it in json.loads(path.read_text()).items() if name not in since}))

    assert sets.of("loan") == (kept,)
    assert (kept.is_seen_by("default"), kept.is_seen_by("bank")) == (True, False)


def test_a_description_that_was_spoilt_is_left_out(
    tmp_path: Path, loan: tuple[Manifest, ModelKey], caplog: pytest.LogCaptureFixture
) -> None:
    sets = KeptSets(tmp_path)
    sets.keep(loan[1], loan[0], "mine", np.zeros((1, 38), np.float32), "")
    (sets.place("loan") / "mine@1.json").write_text("{")
    other = sets.keep(loan[1], loan[0], "mine", np.ones((1, 38), np.float32), "")

    assert other.version == "2"
    assert sets.of("loan") == (other,)
    assert "mine@1.json of loan" in caplog.text
