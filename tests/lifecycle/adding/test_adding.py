"""A model added from a file and rows: what is written, and what is said when it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from service.catalog.assessments import Assessments
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.manifest import Manifest, read_manifest
from service.cli.baselines import rows_for
from service.errors import CatalogError
from service.lifecycle.adding.adding import Added, AddOptions, add_model
from service.lifecycle.adding.inputs import SingleInput
from service.lifecycle.adding.pictures import AddedPictures
from service.lifecycle.adding.rows import read_rows
from tests.lifecycle.adding.conftest import IRIS_OF_ONNXRUNTIME, Original

ROWS = 12
TF2ONNX = Path(__file__).parents[2] / "artefacts" / "tf2onnx"


def add(asked: AddOptions, models: Path, answers: dict[str, str] | None = None) -> Added:
    """Adds it; a question whose first words are in `answers` gets that, any other what is usual."""

    def ask(question: str, usual: str) -> str:
        return next((answer for words, answer in (answers or {}).items() if question.startswith(words)), usual)

    return add_model(asked, models, ask, ROWS, Assessments(models.parent / "assessments"))


def test_a_pipeline_with_its_data(original: Callable[[str], Original], tmp_path: Path) -> None:
    given = original("perceptron of two")
    folder = tmp_path / "mine"
    folder.mkdir()
    given.save(folder / "My Model.onnx")
    columns = [f"mean {at}" for at in range(30)]
    lines = [",".join([*columns, "outcome"])]
    lines += [
        ",".join([*("" if (row, at) == (3, 2) else f"{value}" for at, value in enumerate(values)), "x"])
        for row, values in enumerate(given.rows)
    ]
    (folder / "rows.csv").write_text("\n".join(lines))
    added = add(AddOptions(folder, dropped=("outcome",), adverse="malignant"), tmp_path / "models")

    assert added.folder == tmp_path / "models" / "my-model" / "1"
    manifest, _, _ = read_manifest(added.folder)
    assert isinstance(manifest.inputs, TabularInputs)
    assert manifest.inputs.names[:2] == ("mean_0", "mean_1")
    assert manifest.outputs.names == ("benign", "malignant")
    third = manifest.inputs.features[2]
    assert third.missing == pytest.approx(float(np.mean(given.rows[:, 2])), rel=0.2)  # the imputer's
    assert all(f.range[0] <= v <= f.range[1] for f, v in zip(manifest.inputs.features, given.rows[0], strict=True))
    assert added.explanation.converged
    assert added.assessment is not None
    assert (added.folder / "check.json").exists()
    assert not list((tmp_path / "models").glob(".adding-*"))

    again = add(AddOptions(folder, dropped=("outcome",)), tmp_path / "models")
    assert again.folder.name == "2"
    assert again.assessment is not None
    assert again.assessment.against == "my-model@1"
    with pytest.raises(CatalogError, match="already"):
        add(AddOptions(folder, version="2", dropped=("outcome",)), tmp_path / "models")


@pytest.mark.parametrize("count", [1, 3])
def test_the_example_of_an_image_model_is_nobodys_image(count: int) -> None:
    rows = np.random.default_rng(0).uniform(size=(count, 12))
    given = SingleInput("image", (3, 2, 2), None, is_integer=False)
    example = np.array(AddedPictures(given).example(rows, rows, {})).reshape(12)

    assert rows.min() <= example.min() <= example.max() <= rows.max()
    assert np.abs(rows - example).max(axis=1).min() > 0.1


def test_what_is_asked_is_taken(tmp_path: Path) -> None:
    answers = {"name of": "iris", "names of the 2 features": "width, 2nd width", "the 3 labels": "a,b,c"}
    added = add(AddOptions(IRIS_OF_ONNXRUNTIME), tmp_path, answers)
    manifest, key, _ = read_manifest(added.folder)

    assert str(key) == "iris@1"
    assert isinstance(manifest.inputs, TabularInputs)
    assert manifest.inputs.names == ("width", "feature_2nd_width")
    assert manifest.outputs.names == ("a", "b", "c")
    assert "zeros" in manifest.baselines[0].description


@pytest.mark.parametrize(("name", "kind"), [("perceptron", "tabular"), ("convolutional", "image")])
def test_what_keras_exports(name: str, kind: str, tmp_path: Path) -> None:
    added = add(AddOptions(TF2ONNX / f"{name}.onnx"), tmp_path)
    manifest, _, _ = read_manifest(added.folder)

    assert manifest.inputs.kind == kind
    assert added.explanation.converged
    assert added.report.failed == []


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"source": Path("nothing.onnx")}, "there is no nothing.onnx"),
        ({"name": "No Name"}, "--name"),
        ({"labels": ("a", "b")}, "answers for 3 labels, 2 are named"),
        ({"features": ("a", "b", "c")}, "takes 2 features, 3 are named"),
        ({"adverse": "denied"}, "not among the labels 0, 1, 2"),
        ({"output": "nothing"}, "no tensor 'nothing'"),
    ],
)
def test_what_cannot_be_added_says_what_to_do(tmp_path: Path, change: dict[str, object], advice: str) -> None:
    asked = replace(AddOptions(IRIS_OF_ONNXRUNTIME), **change)  # type: ignore[arg-type]
    with pytest.raises(CatalogError, match=advice):
        add(asked, tmp_path / "models")
    assert not list(tmp_path.rglob("manifest.yaml"))


def test_a_folder_with_more_than_one_file(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"0 ONNX files \(none\)"):
        add(AddOptions(tmp_path), tmp_path / "models")
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CatalogError, match=r"a\.onnx, b\.onnx"):
        add(AddOptions(tmp_path), tmp_path / "models")
    (tmp_path / "b.onnx").unlink()
    with pytest.raises(CatalogError, match="not a valid ONNX model"):
        add(AddOptions(tmp_path), tmp_path / "models")


def test_rows_in_every_format(tmp_path: Path) -> None:
    values = np.array([[1.5, 2.0], [3.0, -4.0], [5.0, 6.0]])
    np.save(tmp_path / "rows.npy", values)
    np.savez(tmp_path / "rows.npz", rows=values, more=values[:1])
    save_file({"anything": values.astype(np.float32)}, tmp_path / "rows.safetensors")
    (tmp_path / "rows.csv").write_text("\ufeffa,b\n1.5,2\n3,-4\n\n5,6\n")
    for suffix in ("npy", "npz", "safetensors", "csv"):
        assert read_rows(tmp_path / f"rows.{suffix}", (2,), ()).values.tolist() == values.tolist()
    assert read_rows(tmp_path / "rows.csv", (2,), ()).names == ("a", "b")


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("a,b,c\n1,2,3\n", "--drop"),
        ("a,b\n1,red\n", "'red' in column 'b' is no number"),
        ("a,b\n1\n", "there is no column 'b'"),
        ("a,b\n1,inf\n", "infinite"),
        ("a,b\n", "no rows"),
        ("", "no rows"),
    ],
)
def test_rows_that_cannot_be_read_say_what_to_do(tmp_path: Path, content: str, advice: str) -> None:
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(CatalogError, match=advice):
        read_rows(tmp_path / "rows.csv", (2,), ())


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    (tmp_path / "rows.pkl").write_bytes(b"")
    for name in ("rows.npy", "rows.pkl"):
        with pytest.raises(CatalogError):
            read_rows(tmp_path / name, (1,), ())


def with_categories() -> Manifest:
    """A model of an age, a purpose, and one of the regions 5, 3 and 8."""
    features = [
        {"name": "age", "title": "Age", "range": [18, 99]},
        {"name": "purpose", "title": "Purpose", "categories": ["buy", "none"], "missing": "buy"},
        {"name": "region", "title": "Region", "categories": [5, 3, 8]},
    ]
    return Manifest.model_validate(
        {
            "name": "model",
            "version": "1",
            "title": "Model",
            "artefact": {"file": "model.onnx", "sha256": "0" * 64},
            "inputs": {"kind": "tabular", "tensor": "rows", "features": features},
            "outputs": {"labels": ["no", "yes"], "link": "sigmoid", "tensors": {"logit": "logit"}},
            "defaults": {"baseline": "training"},
            "baselines": [
                {"name": "training", "version": "1", "size": 1, "file": "rows.safetensors", "sha256": "0" * 64}
            ],
            "example": {"age": 40, "purpose": "buy", "region": 3},
        }
    )


def test_a_csv_calls_categories_as_they_are_called_and_an_array_has_their_places(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("region,age,purpose\n3,40,none\n8,41,\n")
    np.save(tmp_path / "rows.npy", np.array([[40.0, 1.0, 1.0], [41.0, np.nan, 2.0]]))
    expected = [[40.0, 1.0, 1.0], [41.0, 0.0, 2.0]]

    assert rows_for(with_categories(), tmp_path / "rows.csv").tolist() == expected
    assert rows_for(with_categories(), tmp_path / "rows.npy").tolist() == expected


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("rows.csv", "region,age,purpose\n4,40,buy\n", "line 2: '4' in column 'region' is none of 5, 3, 8"),
        ("rows.csv", "region,age,purpose\n,40,buy\n", "row 1: region is null; it must be one of 5, 3, 8"),
        ("rows.csv", "40,1,3\n", "row 1: region is 3; its categories have the places 0 to 2"),
        ("rows.csv", "40,0.5,1\n", "row 1: purpose is 0.5; its categories have the places 0 to 1"),
    ],
)
def test_what_is_no_category_is_refused(tmp_path: Path, name: str, content: str, advice: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CatalogError, match=advice):
        rows_for(with_categories(), tmp_path / name)
