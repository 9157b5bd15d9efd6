"""Doubles and whole numbers beyond 2^24: the artefact is given what the instance says, and the twin keeps up with it.

A graph that takes 1.7e9 off a time in seconds tells seconds apart; float32 holds one number in 128 there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load, save

from service.access.callers import Caller
from service.answers.explanation import answered
from service.answers.reading import personal_of, record_of
from service.answers.record import ledger_entry
from service.artefacts.loading import load_model
from service.catalog.baselines import KeptSets
from service.catalog.calibrations import Calibration
from service.catalog.inputs.instances import read_instance
from service.catalog.version_files import read_baseline_rows
from service.domain import DOUBLE, SINGLE, ChunkShapes, Context, Explanation, Floats, OutputSpace, RowType
from service.engine.kernels.kernel import Deployed, DeployedKernel
from service.engine.worker.device import put_on_device, with_baseline
from service.engine.worker.prepared_baselines import outputs_over
from service.errors import CatalogError, InvalidRequest
from service.ledger.entries import Stored
from service.ledger.ids import uuid7
from service.lifecycle.checking.trial import Trial, load_trial
from service.usecases.planning import Parameters, make_plan
from service.usecases.replaying import plan_of

CPU = torch.device("cpu")
START, SLOPE, OTHER, BIAS = 1.7e9, 2.0, 0.5, -3.0
BASELINE = np.array([[1_700_000_000.0, 0.1], [1_700_000_001.0, 0.2]])
TYPES: dict[str, int] = {"int64": TensorProto.INT64, "int32": TensorProto.INT32, "double": TensorProto.DOUBLE}


def write(folder: Path, element_type: int, *, whole: bool, ends_in: int = TensorProto.FLOAT, **changes: Any) -> Path:
    """A version folder: the logit is 2 relu(time - 1.7e9) + x / 2 - 3, the difference taken in double precision."""
    floating = TensorProto.DOUBLE if element_type == TensorProto.DOUBLE else TensorProto.FLOAT
    dtype = helper.tensor_dtype_to_np_dtype(ends_in)
    constants = {
        "start": np.array(START),
        "slope": np.array(SLOPE, dtype),
        "other": np.array(OTHER, dtype),
        "bias": np.array(BIAS, dtype),
    }
    nodes = [
        helper.make_node("Cast", ["time"], ["seconds"], to=TensorProto.DOUBLE),
        helper.make_node("Sub", ["seconds", "start"], ["since"]),
        helper.make_node("Cast", ["since"], ["rounded"], to=ends_in),
        helper.make_node("Relu", ["rounded"], ["bent"]),
        helper.make_node("Mul", ["bent", "slope"], ["weighted"]),
        helper.make_node("Cast", ["x"], ["x rounded"], to=ends_in),
        helper.make_node("Mul", ["x rounded", "other"], ["x weighted"]),
        helper.make_node("Add", ["weighted", "x weighted"], ["sum"]),
        helper.make_node("Add", ["sum", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "times",
        [
            helper.make_tensor_value_info("time", element_type, ["rows", 1]),
            helper.make_tensor_value_info("x", floating, ["rows", 1]),
        ],
        [helper.make_tensor_value_info(name, ends_in, ["rows", 1]) for name in ("logit", "probability")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content, rows = model.SerializeToString(), save({"rows": BASELINE})
    folder = folder / "times" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "rows.safetensors").write_bytes(rows)
    time = {"name": "time", "title": "Time", "range": [1.6e9, 1.8e9], "whole": whole, "tensor": "time"}
    manifest: dict[str, Any] = {
        "name": "times",
        "version": "1",
        "title": "Times",
        "artefact": {"file": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()},
        "inputs": {
            "kind": "tabular",
            "features": [time | changes, {"name": "x", "title": "X", "range": [0, 1], "tensor": "x"}],
        },
        "outputs": {
            "labels": ["no", "yes"],
            "link": "sigmoid",
            "tensors": {"logit": "logit", "probability": "probability"},
        },
        "baselines": [
            {
                "name": "training",
                "version": "1",
                "size": len(BASELINE),
                "file": "rows.safetensors",
                "sha256": hashlib.sha256(rows).hexdigest(),
            }
        ],
        "defaults": {"baseline": "training"},
        "example": {"time": 1_700_000_003, "x": 0.3},
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder


@pytest.fixture(scope="module", params=TYPES)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp(kind), TYPES[kind], whole=kind != "double")


@pytest.fixture(scope="module")
def trial(folder: Path) -> Trial:
    torch.set_num_threads(1)
    return load_trial(folder, CPU)


def in_onnx_runtime(folder: Path, kind: str, rows: Floats) -> NDArray[np.floating]:
    """What ONNX Runtime answers for the rows in the graph's own types: the probability of `yes`, [rows]."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {
        "time": rows[:, :1].astype(kind),
        "x": rows[:, 1:].astype(np.float64 if kind == "double" else np.float32),
    }
    (found,) = session.run(["probability"], feeds)
    result: NDArray[np.floating] = found[:, 0]
    return result


INSTANCES = [{"time": 1_700_000_000 + seconds, "x": 0.1 * seconds} for seconds in range(5)]


def test_seconds_are_told_apart(trial: Trial, folder: Path, kind: str) -> None:
    """Bit for bit what ONNX Runtime answers for the same input, and not all the same."""
    rows = np.array([read_instance(trial.manifest, instance) for instance in INSTANCES])
    answered = trial.deployed(rows)[OutputSpace.PROBABILITY][:, 1]
    expected = in_onnx_runtime(folder, kind, rows)
    assert answered.tolist() == expected.astype(np.float64).tolist()
    assert np.unique(answered).size == 5
    assert (answered > 0.5).tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("method", ["integrated_gradients", "expected_gradients", "saliency", "guided_ig", "idgi"])
@pytest.mark.parametrize("space", ["logit", "probability"])
def test_explanations_are_those_of_the_artefact(trial: Trial, folder: Path, kind: str, method: str, space: str) -> None:
    row = np.array(read_instance(trial.manifest, INSTANCES[3]))
    asked = Parameters(method=method, output_space=space, target="yes")
    found = trial.explained(make_plan(trial.version, tuple(row.tolist()), asked))
    probability = in_onnx_runtime(folder, kind, row[None])[0]
    assert found.output is not None
    assert found.attributions is not None
    assert found.output == pytest.approx(probability if space == "probability" else 3.15, abs=1e-6)
    assert found.converged
    if method == "saliency":
        slope = 1 if space == "logit" else probability * (1 - probability)
        assert found.attributions == pytest.approx([SLOPE * slope, OTHER * slope], rel=1e-4)
    if space == "logit" and method in ("integrated_gradients", "expected_gradients", "guided_ig"):
        assert found.attributions == pytest.approx([SLOPE * 2.5, OTHER * 0.15], abs=1e-4)


def test_the_exact_rule_works_in_the_rows_precision(trial: Trial) -> None:
    plan = make_plan(trial.version, read_instance(trial.manifest, INSTANCES[3]), Parameters())
    found = trial.explained(plan)
    assert found.rule == "exact"
    assert found.completeness_error is not None
    assert found.completeness_error < 1e-6


def test_a_row_that_came_with_the_request_is_a_baseline(trial: Trial) -> None:
    asked = Parameters(baseline=INSTANCES[1], output_space="logit", target="yes")
    found = trial.explained(make_plan(trial.version, read_instance(trial.manifest, INSTANCES[4]), asked))
    assert found.attributions == pytest.approx([SLOPE * 3, OTHER * 0.3], abs=1e-6)


def recorded(trial: Trial, instance: object) -> tuple[Explanation, Stored]:
    """An explanation, and what the ledger holds of it."""
    plan = make_plan(trial.version, read_instance(trial.manifest, instance), Parameters())
    found = trial.explained(plan)
    prediction = trial.version.manifest.outputs.prediction_item(found.outputs, plan.output_space)
    answer = answered(trial.version, plan, found, id=uuid7(), cached=False)
    entry = ledger_entry(trial.version, plan, plan.digest(), found, prediction, answer, Caller("t", "k"), Context())
    return found, Stored(**vars(entry), seq=1, leaf=b"", logged=b"", opened=entry.personal)


def test_what_is_recorded_is_replayed_bit_for_bit(trial: Trial) -> None:
    found, stored = recorded(trial, INSTANCES[3])
    personal = personal_of(stored)
    assert personal.content["input"]["time"] == 1_700_000_003
    again = plan_of(record_of(stored), personal, trial.version)
    assert again.digest() == personal.plan_digest
    assert trial.explained(again) == found


def test_neighbouring_seconds_are_two_plans(trial: Trial) -> None:
    """Their answers are cached apart."""
    digests = {make_plan(trial.version, read_instance(trial.manifest, one), Parameters()).digest() for one in INSTANCES}
    assert len(digests) == len(INSTANCES)


def test_kept_sets_hold_their_rows_exactly(trial: Trial, tmp_path: Path) -> None:
    rows = np.array([[1_700_000_003.0, 0.1], [1_700_000_004.0, 0.2]])
    sets = KeptSets(tmp_path)
    kept = sets.keep(trial.version.key, trial.manifest, "late", rows, "")
    place = sets.place(trial.version.key.name)
    read = read_baseline_rows(place, trial.manifest, kept.listed, trial.model.row_type).astype(np.float64)
    assert read.tolist() == rows.tolist()
    model = with_baseline(trial.model, "sha256:" + kept.sha256, read, None)
    outputs = model.baselines["sha256:" + kept.sha256].outputs[OutputSpace.LOGIT][:, 1]
    assert outputs == pytest.approx(SLOPE * np.array([3, 4]) + OTHER * rows[:, 1] + BIAS, abs=1e-6)


def test_a_set_that_float32_holds_is_kept_in_it(trial: Trial, tmp_path: Path) -> None:
    sets = KeptSets(tmp_path)
    kept = sets.keep(trial.version.key, trial.manifest, "early", np.array([[1_700_000_000.0, 0.5]]), "")
    content = (sets.place(trial.version.key.name) / kept.listed.file).read_bytes()
    assert load(content)["rows"].dtype == np.float32


def test_rows_that_a_model_of_float32_cannot_take_are_refused(trial: Trial, tmp_path: Path) -> None:
    sets = KeptSets(tmp_path)
    kept = sets.keep(trial.version.key, trial.manifest, "vast", np.array([[1e300, 0.5]]), "")
    place = sets.place(trial.version.key.name)
    assert read_baseline_rows(place, trial.manifest, kept.listed, DOUBLE)[0, 0] == 1e300
    with pytest.raises(CatalogError, match="finite"):
        read_baseline_rows(place, trial.manifest, kept.listed, SINGLE)


def test_outputs_in_double_precision_are_answered_in_it(tmp_path: Path) -> None:
    folder = write(tmp_path, TensorProto.DOUBLE, whole=False, ends_in=TensorProto.DOUBLE)
    trial, row = load_trial(folder, CPU), np.array([[1_700_000_001.25, 0.1]])
    answered = trial.deployed(row)[OutputSpace.PROBABILITY][0, 1]
    assert answered == in_onnx_runtime(folder, "double", row)[0]
    assert np.float32(answered) != answered
    found = trial.explained(make_plan(trial.version, tuple(row[0].tolist()), Parameters(output_space="logit")))
    assert found.completeness_error is not None
    assert found.completeness_error < 1e-12


@pytest.mark.parametrize(("name", "expected"), [("int64", DOUBLE), ("double", DOUBLE), ("small", SINGLE)])
def test_rows_are_double_only_where_they_must_be(tmp_path: Path, name: str, expected: RowType) -> None:
    """Whole numbers that float32 holds are computed with in it, as before."""
    folder = write(tmp_path, TYPES.get(name, TensorProto.INT64), whole=True)
    if name == "small":
        manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
        manifest["baselines"] = []
        manifest["inputs"]["features"][0]["range"] = [-(2**24), 2**24]
        manifest["defaults"] = {"baseline": "zeros"}
        manifest["example"]["time"] = 5
        (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    assert load_model(folder, CPU).row_type == expected


def test_a_whole_number_that_no_double_holds_is_refused(trial: Trial, kind: str) -> None:
    """Above 2^53 a double holds every other number, and then fewer; in silence it would be another one."""
    inputs = trial.manifest.inputs
    features = [feature.model_copy(update={"range": (0.0, 9e18)}) for feature in inputs.features]  # type: ignore[union-attr]
    manifest = trial.manifest.model_copy(update={"inputs": inputs.model_copy(update={"features": tuple(features)})})
    assert read_instance(manifest, {"time": 2**53, "x": 0})[0] == 2**53
    assert read_instance(manifest, {"time": 2**53 + 2, "x": 0})[0] == 2**53 + 2
    if kind == "double":
        assert read_instance(manifest, {"time": 2**53 + 1, "x": 0})[0] == float(np.float64(2**53 + 1))
        return
    with pytest.raises(InvalidRequest, match=r"time is 9007199254740993.* nearest .* 9007199254740992"):
        read_instance(manifest, {"time": 2**53 + 1, "x": 0})


def test_a_number_outside_its_range_is_said_in_all_its_digits(trial: Trial) -> None:
    with pytest.raises(InvalidRequest, match=r"time is 1800000001, outside its range from 1\.6e\+09 to 1\.8e\+09$"):
        read_instance(trial.manifest, {"time": 1_800_000_001, "x": 0})


def test_a_range_beyond_the_graphs_type_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, TensorProto.INT32, whole=True, range=[1.6e9, 3e9])
    with pytest.raises(CatalogError, match=r"'time' is int32, .* the range of time goes beyond"):
        load_model(folder, CPU)


def test_alone_and_amid_others_every_bit_is_the_same(folder: Path) -> None:
    model = put_on_device(folder, CPU, {}, Calibration(ChunkShapes(8, 16)))
    (kernel,) = model.kernels[Deployed]
    assert isinstance(kernel, DeployedKernel)
    rows = np.array([[1_700_000_000.0 + seconds, 0.1] for seconds in range(40)])
    together = outputs_over(kernel, rows)[OutputSpace.LOGIT]
    alone = np.concatenate([outputs_over(kernel, row[None])[OutputSpace.LOGIT] for row in rows])
    assert together.tolist() == alone.tolist()


def test_images_of_doubles_are_explained(tmp_path: Path) -> None:
    """Whose twin takes the graph's own input, with no cast before it."""
    weights = np.array([[0.5, -1.0], [2.0, 0.1], [-0.3, 0.7], [1.0, 1.0]])
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "image",
        [helper.make_tensor_value_info("image", TensorProto.DOUBLE, ["rows", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.DOUBLE, ["rows", 2])],
        [numpy_helper.from_array(weights, "weights")],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    folder = tmp_path / "image" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    manifest = {
        "name": "image",
        "version": "1",
        "title": "Image",
        "artefact": {"file": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()},
        "inputs": {"kind": "image", "tensor": "image", "shape": [1, 2, 2], "range": [0, 1]},
        "outputs": {"labels": ["no", "yes"], "link": "softmax", "tensors": {"logit": "logits"}},
        "defaults": {"baseline": "zeros"},
        "example": [[0.1, 0.2], [0.3, 0.7]],
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    trial, row = load_trial(folder, CPU), np.array([0.1, 0.2, 0.3, 0.7])
    assert trial.deployed(row[None])[OutputSpace.LOGIT][0] == pytest.approx(row @ weights, abs=1e-15)
    asked = Parameters(target="yes", output_space="logit")
    found = trial.explained(make_plan(trial.version, tuple(row.tolist()), asked))
    assert found.attributions == pytest.approx(row * weights[:, 1], abs=1e-15)
