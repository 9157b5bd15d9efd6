"""Files that are quantised, in half precision or in double are added as they are: predictions by the file, explanations
by its twin, and how far they differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from service.catalog.assessments import Assessments
from service.catalog.manifest import read_manifest
from service.domain import OutputSpace
from service.errors import CatalogError
from service.lifecycle.adding.adding import Added, AddOptions, add_model
from service.usecases.planning import Parameters, make_plan
from tests.artefacts.quantised_files import FORMS, answers, exported, network, quantised


def add(model: onnx.ModelProto, folder: Path, rows: np.ndarray, **options: object) -> Added:
    onnx.save(model, folder / "model.onnx")
    np.save(folder / "rows.npy", rows)
    asked = AddOptions(folder / "model.onnx", folder / "rows.npy", is_logit=True, **options)  # type: ignore[arg-type]
    return add_model(asked, folder / "models", lambda _, usual: usual, 4, Assessments(folder / "assessments"))


@pytest.mark.parametrize("form", FORMS)
def test_a_quantised_file_is_served_explained_and_says_how_far_its_twin_may_be(form: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    made, rows = network("relu")
    model = quantised(exported(made, rows), rows, form, tmp_path)
    added = add(model, tmp_path, rows.numpy())

    trial, expected = added.trial, answers(model, rows.numpy())
    found = trial.deployed(rows.numpy().astype(np.float64))[OutputSpace.LOGIT]
    assert found == pytest.approx(expected, abs=1e-5)  # each row as it is answered alone
    manifest = read_manifest(added.folder)[0]
    assert trial.model.parity <= manifest.parity <= max(1e-4, 2.5 * trial.model.parity)
    # The rows are noise: which of them are compared with matters, and a change may be as small as the rounding.
    assert {*added.report.failed} <= {"stability", "completeness"}
    assert manifest.defaults.tolerance == 0.05

    plan = make_plan(trial.version, tuple(rows[0].tolist()), Parameters(output_space="logit", max_evaluations=512))
    explained = trial.explained(plan)
    assert explained.rule == "exact"
    assert explained.attributions is not None
    assert explained.output is not None
    assert explained.baseline_output is not None
    assert explained.completeness_error is not None
    off = abs(sum(explained.attributions) - (explained.output - explained.baseline_output))
    assert off > 0
    assert explained.completeness_error == pytest.approx(
        off / max(1e-12, abs(explained.output - explained.baseline_output)), rel=0.5
    )


def test_a_tolerance_below_the_rounding_is_not_reached_and_that_is_said(tmp_path: Path) -> None:
    """What the artefact's rounding leaves is part of the stated error, and no evaluations are spent on it."""
    torch.set_num_threads(1)
    made, rows = network("tanh")
    added = add(quantised(exported(made, rows), rows, "qdq", tmp_path), tmp_path, rows.numpy())
    for of in ("attribution", "completeness"):
        asked = Parameters(output_space="logit", tolerance=1e-3, max_evaluations=4096, tolerance_of=of)
        found = added.trial.explained(make_plan(added.trial.version, tuple(rows[1].tolist()), asked))
        assert (found.converged, found.reason) == (False, "precision")
        assert found.completeness_error is not None
        assert found.attribution_error is not None
        assert found.attributions is not None
        assert found.output is not None
        assert found.baseline_output is not None
        missed = abs(sum(found.attributions) - (found.output - found.baseline_output))
        assert missed > 1e-3
        assert found.attribution_error * sum(map(abs, found.attributions)) > 0.9 * missed
        assert found.evaluations < 200


def test_a_softmax_inside_of_the_file_is_found_behind_its_rounding(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    made, rows = network("tanh")
    whole = nn.Sequential(made, nn.Softmax(1)).eval()
    model = quantised(exported(whole, rows), rows, "qdq", tmp_path)
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "rows.npy", rows.numpy())
    asked = AddOptions(tmp_path / "model.onnx", tmp_path / "rows.npy")
    added = add_model(asked, tmp_path / "models", lambda _, usual: usual, 4, Assessments(tmp_path / "assessments"))

    found = added.trial.deployed(rows.numpy().astype(np.float64))[OutputSpace.PROBABILITY]
    assert np.abs(found - answers(model, rows.numpy())).max() < 0.01
    assert np.abs(added.trial.deployed(rows.numpy())[OutputSpace.LOGIT]).max() < 20  # and no logarithms of zero


def of_type(model: onnx.ModelProto, element_type: int) -> onnx.ModelProto:
    """The same file with all numbers of this type, inputs and outputs too."""
    dtype = helper.tensor_dtype_to_np_dtype(element_type)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = element_type
    return model


@pytest.mark.parametrize(
    ("name", "element_type", "parity"),
    [
        ("relu", TensorProto.FLOAT16, 0.02),
        ("convolution", TensorProto.FLOAT16, 0.005),
        ("relu", TensorProto.DOUBLE, 1e-6),
    ],
    ids=["float16", "float16 image", "float64"],
)
def test_a_file_of_another_precision_is_given_what_it_takes(
    name: str, element_type: int, parity: float, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    made, rows = network(name)
    added = add(of_type(exported(made, rows), element_type), tmp_path, rows.numpy())

    found = added.trial.deployed(rows.flatten(1).numpy().astype(np.float64))[OutputSpace.LOGIT]
    with torch.no_grad():
        assert found == pytest.approx(made(rows).numpy(), abs=0.05 if element_type == TensorProto.FLOAT16 else 1e-5)
    assert added.trial.model.parity <= parity
    asked = Parameters(output_space="logit", tolerance=0.02)
    explained = added.trial.explained(make_plan(added.trial.version, tuple(rows[0].flatten().tolist()), asked))
    assert explained.converged


def test_a_file_of_bfloat16_that_onnx_runtime_cannot_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Its products are for other devices than processors."""
    made, rows = network("relu")
    with pytest.raises(CatalogError, match="ONNX Runtime cannot run the file"):
        add(of_type(exported(made, rows), TensorProto.BFLOAT16), tmp_path, rows.numpy())
