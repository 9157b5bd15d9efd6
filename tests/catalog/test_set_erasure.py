"""Rows that are removed from baseline sets: nothing of them is left in any file, and the others stay as they were."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.catalog.baseline_outputs import OUTPUTS, KeptOutputs
from service.catalog.baselines import BASELINES, KeptSet, KeptSets
from service.catalog.manifest import Manifest, read_manifest
from service.catalog.outputs.classes import Classes
from service.catalog.set_erasure import forget_rows, remove_set
from service.catalog.version_files import read_baseline_rows
from service.domain import Floats, ModelKey
from tests.conftest import MODELS

LOAN = MODELS / "loan"
HERE = {"torch": "2"}


@pytest.fixture(scope="module")
def loan() -> tuple[Manifest, ModelKey]:
    manifest, key, _ = read_manifest(LOAN / "1")
    return manifest, key


@pytest.fixture
def rows(loan: tuple[Manifest, ModelKey]) -> Floats:
    manifest, _ = loan
    return read_baseline_rows(LOAN / "1", manifest, manifest.baselines[0])[:3].astype(np.float64)


class Data:
    """A data folder with sets and what was computed over them."""

    def __init__(self, folder: Path, loan: tuple[Manifest, ModelKey]) -> None:
        self.folder = folder
        self.sets = KeptSets(folder / BASELINES)
        self.outputs = KeptOutputs(folder / OUTPUTS)
        self._manifest, self._key = loan

    def keep(self, rows: Floats, *tokens: str | None, tenant: str = "bank") -> KeptSet:
        kept = self.sets.keep(self._key, self._manifest, "mine", rows, "ours", tenant=tenant, subjects=tokens)
        answers = dict.fromkeys(Classes.spaces, np.ones((len(rows) + 1, 2)))
        self.outputs.keep(self._key, kept.sha256, HERE, answers)
        return kept

    def has_outputs(self, one: KeptSet) -> bool:
        return self.outputs.find(self._key, one.sha256, HERE) is not None

    def read(self, one: KeptSet) -> Floats:
        return read_baseline_rows(self.sets.place("loan"), self._manifest, one.listed).astype(np.float64)

    def holds(self, row: Floats) -> bool:
        content = b"".join(path.read_bytes() for path in self.folder.rglob("*") if path.is_file())
        return row.astype(np.float32).tobytes() in content

    @property
    def all(self) -> tuple[KeptSet, ...]:
        return self.sets.of("loan")


@pytest.fixture
def data(tmp_path: Path, loan: tuple[Manifest, ModelKey]) -> Data:
    return Data(tmp_path, loan)


def test_the_rows_of_one_person_go_and_the_others_stay(data: Data, rows: Floats) -> None:
    kept = data.keep(rows, "a", None, "c")
    assert data.holds(rows[0])

    forget_rows(data.folder, {"a", "unknown"})

    (left,) = data.all
    assert left == replace(kept, size=2, sha256=left.sha256, subjects=(None, "c"), erased=(kept.digest,))
    assert data.read(left).tolist() == rows[1:].astype(np.float32).tolist()
    assert not data.holds(rows[0])
    assert not data.has_outputs(kept)
    forget_rows(data.folder, {"a"})  # which changes nothing any more
    assert data.all == (left,)

    forget_rows(data.folder, {"a", "c"})
    (after,) = data.all
    assert (after.size, after.erased) == (1, (kept.digest, left.digest))
    assert [data.holds(row) for row in rows] == [False, True, False]


def test_a_set_of_which_nothing_is_left_keeps_its_name(data: Data, rows: Floats) -> None:
    kept = data.keep(rows[:1], "a")
    forget_rows(data.folder, {"a"})

    (left,) = data.all
    assert (left.size, left.description, left.erased) == (0, "", (kept.digest,))
    assert not data.holds(rows[0])
    assert data.keep(rows).version == "2"


def test_a_set_is_removed_whole(data: Data, rows: Floats) -> None:
    kept, other = data.keep(rows), data.keep(rows[1:])
    left = remove_set(data.folder, kept)

    assert data.all == (left, other)
    assert left.size == 0
    assert not data.holds(rows[0])
    assert data.has_outputs(other)
    assert len(data.read(other)) == 2


def test_the_same_rows_of_another_set_stay(data: Data, rows: Floats) -> None:
    one, same, others = data.keep(rows), data.keep(rows), data.keep(rows, tenant="broker")
    assert one.sha256 == same.sha256 != others.sha256

    remove_set(data.folder, one)
    for left in (same, others):
        assert data.read(left).tolist() == rows.astype(np.float32).tolist()
        assert data.has_outputs(left)
    remove_set(data.folder, others)
    assert data.holds(rows[0])
    remove_set(data.folder, same)
    assert not data.holds(rows[0])


def test_what_a_backup_brings_back_goes_again(data: Data, rows: Floats) -> None:
    kept = data.keep(rows, "a", "b", None)
    forget_rows(data.folder, {"a"})
    (left,) = data.all
    remove_set(data.folder, left)
    data.keep(rows, "a", "b", None)  # as the backup has them
    forget_rows(data.folder, {"a", "b"})

    assert [one.size for one in data.all] == [0, 1]
    assert [data.holds(row) for row in rows] == [False, False, True]
    assert kept.digest in data.all[1].erased


def test_a_removal_that_was_cut_short_is_ended_by_the_next(data: Data, rows: Floats) -> None:
    kept = data.keep(rows, "a", None, None)
    file = data.sets.place("loan") / kept.listed.file
    content = file.read_bytes()
    forget_rows(data.folder, {"a"})
    file.write_bytes(content)  # the description was written, and the process died
    assert data.holds(rows[0])

    forget_rows(data.folder, set())
    assert not data.holds(rows[0])


def test_rows_that_cannot_be_told_apart_all_go(data: Data, rows: Floats, caplog: pytest.LogCaptureFixture) -> None:
    kept = data.keep(rows, "a", None, None)
    (data.sets.place("loan") / kept.listed.file).write_bytes(b"spoilt")
    forget_rows(data.folder, {"a"})

    (left,) = data.all
    assert left.size == 0
    assert "mine@1 of loan is removed" in caplog.text


def test_outputs_of_an_earlier_form_go_with_the_first_that_are_dropped(data: Data, rows: Floats) -> None:
    """Their names do not say of which set they are, and they can be computed again."""
    kept = data.keep(rows, "a", None, None)
    old = data.folder / OUTPUTS / f"{hashlib.sha256(b'').hexdigest()[:32]}.safetensors"
    old.write_bytes(b"outputs")
    forget_rows(data.folder, set())
    assert old.exists()
    forget_rows(data.folder, {"a"})
    assert not old.exists()
    assert kept != data.all[0]
