"""Which column of a file is which feature, and what is written of its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.catalog.assessments import Assessments
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.manifest import Manifest, read_manifest
from service.cli.baselines import rows_for
from service.errors import CatalogError
from service.lifecycle.adding.adding import AddOptions, add_model
from service.lifecycle.adding.rows import names_of
from service.lifecycle.adding.tables import range_around
from tests.lifecycle.adding.conftest import IRIS_OF_ONNXRUNTIME


def test_a_header_that_is_a_name_keeps_it() -> None:
    assert names_of(["a b", "a_b"], 2) == ("a_b_1", "a_b")
    assert names_of(["a_b", "a b", "a-b"], 3) == ("a_b", "a_b_2", "a_b_3")
    assert names_of(["a b", "a_b", "a_b_1"], 3) == ("a_b_1_1", "a_b", "a_b_1")
    assert names_of(["1st", ""], 2) == ("feature_1st", "feature_2")


def added(tmp_path: Path, content: str, **options: Any) -> Manifest:
    (tmp_path / "rows.csv").write_text(content)
    asked = AddOptions(IRIS_OF_ONNXRUNTIME, tmp_path / "rows.csv", name="iris", **options)
    done = add_model(asked, tmp_path / "models", lambda _, usual: usual, 2, Assessments(tmp_path / "assessments"))
    return read_manifest(done.folder)[0]


def test_baselines_are_built_by_the_headers_that_the_model_was_added_with(tmp_path: Path) -> None:
    manifest = added(tmp_path, "a b,a_b\n1,20\n2,30\n3,40\n")
    assert isinstance(manifest.inputs, TabularInputs)
    assert [(feature.name, feature.title) for feature in manifest.inputs.features] == [("a_b_1", "a b"), ("a_b", "a_b")]
    for name, content in {"same": "a b,a_b\n1,20\n", "other": "a_b,a b\n20,1\n", "names": "a_b,a_b_1\n20,1\n"}.items():
        (tmp_path / f"{name}.csv").write_text(content)
        assert rows_for(manifest, tmp_path / f"{name}.csv").tolist() == [[1, 20]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a b,c\n1,2\n", "column 'c', and the model has no such input.*--drop"),
        ("a_b,a_b\n1,2\n", "column 'a_b' twice"),
        ("a b,a-b\n1,2\n", "'a-b' and 'a b' may both be a_b_1|'a-b' may|no such input"),
        ("a b\n1\n", "no column 'a_b'"),
    ],
)
def test_columns_that_are_ambiguous_twice_there_or_unknown_are_refused(
    content: str, sentence: str, tmp_path: Path
) -> None:
    manifest = added(tmp_path, "a b,a_b\n1,20\n2,30\n3,40\n")
    (tmp_path / "set.csv").write_text(content)
    with pytest.raises(CatalogError, match=sentence):
        rows_for(manifest, tmp_path / "set.csv")


def test_a_header_that_is_the_name_of_one_feature_and_the_title_of_another_is_refused(tmp_path: Path) -> None:
    given = added(tmp_path, "x,y\n1,20\n2,30\n3,40\n").model_dump()
    given["inputs"]["features"][1]["title"] = "x"
    (tmp_path / "set.csv").write_text("x,y\n1,2\n")
    with pytest.raises(CatalogError, match="'x' may be x or y"):
        rows_for(Manifest.model_validate(given), tmp_path / "set.csv")


def test_the_features_that_are_named_are_found_in_the_file_by_their_headers(tmp_path: Path) -> None:
    manifest = added(tmp_path, "y,x\n20,1\n30,2\n40,3\n", features=("x", "y"))
    assert isinstance(manifest.inputs, TabularInputs)
    assert manifest.inputs.names == ("x", "y")
    assert manifest.inputs.features[0].range[1] < 10 < manifest.inputs.features[1].range[1]


def test_names_that_are_none_of_the_headers_are_given_to_the_columns_in_their_order(tmp_path: Path) -> None:
    manifest = added(tmp_path, "y,x\n20,1\n30,2\n40,3\n", features=("first", "second"))
    assert isinstance(manifest.inputs, TabularInputs)
    assert manifest.inputs.features[1].range[1] < 10 < manifest.inputs.features[0].range[1]


@pytest.mark.parametrize(
    "values",
    [
        [1.7e9, 1.7e9 + 1000],
        [1_699_999_999.0, 1_700_000_123.0],
        [-1.23456e-7, 4.56789e-7],
        [123456.0, 123456.0],
        [-5.0, -5.0],
        [-1e-300, 1e-300],
        [0.0, 1e30],
        [0.1, 0.7],
    ],
)
def test_ranges_are_rounded_outwards(values: list[float]) -> None:
    """They hold what was seen and as much again to either side, or end at zero, and little more."""
    low, high = range_around(np.array(values))
    spread = (max(values) - min(values)) or abs(max(values))

    assert (
        high >= min(1.0, max(values) + spread)
        if max(values) <= 1 and min(values) >= 0
        else high >= max(values) + spread
    )
    assert low <= (0.0 if min(values) >= 0 else min(values) - spread)
    assert (low, high) == (0, 1) or high <= max(values) + 1.02 * spread
