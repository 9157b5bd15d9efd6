"""Tables with categories, several inputs and groups: the artefact takes what an instance says, and units are explained.

The models are scikit-learn's, exported by skl2onnx as people do it: an input for each column, encoders in the graph.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import pandas as pd
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.numpy import save
from sklearn.compose import ColumnTransformer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from service.access.callers import Caller
from service.answers.encoding import encode
from service.answers.explanation import answered
from service.answers.record import ledger_entry
from service.artefacts.loading import load_model
from service.catalog.inputs.instances import read_instance
from service.domain import Context, Explanation, Floats, OutputSpace
from service.errors import CatalogError, InvalidRequest
from service.ledger.ids import uuid7
from service.lifecycle.checking.trial import Trial, load_trial
from service.usecases.planning import Parameters, make_plan

skl2onnx = pytest.importorskip("skl2onnx")
types = pytest.importorskip("skl2onnx.common.data_types")

CPU = torch.device("cpu")
PURPOSES, REGIONS = ["build", "buy", "refinance"], [1, 2, 5, 7]
ROWS = 60
Edit = Callable[[dict[str, Any]], object]


def data() -> pd.DataFrame:
    draws = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": draws.integers(20, 70, ROWS),
            "income": draws.uniform(10, 90, ROWS).astype(np.float32),
            "purpose": draws.choice(PURPOSES, ROWS),
            "region": draws.choice(REGIONS, ROWS),
        }
    )


def labels(rows: pd.DataFrame) -> NDArray[np.int64]:
    score = rows.income / 40 - rows.age / 50 + (rows.purpose == "buy") - 1.5 * (rows.region == 5)
    found: NDArray[np.int64] = (score > score.median()).to_numpy().astype(np.int64)
    return found


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    rows = data()
    encoded = ColumnTransformer(
        [("numbers", StandardScaler(), ["age", "income"]), ("categories", OneHotEncoder(), ["purpose", "region"])]
    )
    steps = [("encoded", encoded), ("network", MLPClassifier((8,), max_iter=60, random_state=0))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Pipeline(steps).fit(rows, labels(rows))


FEATURES: list[dict[str, Any]] = [
    {"name": "age", "title": "Age", "range": [18, 99], "whole": True, "tensor": "age"},
    {"name": "income", "title": "Income", "range": [0, 100], "tensor": "income"},
    {"name": "purpose", "title": "Purpose", "categories": PURPOSES, "tensor": "purpose", "missing": "buy"},
    {"name": "region", "title": "Region", "categories": REGIONS, "tensor": "region", "protected": True},
]
EXAMPLE = {"age": 40, "income": 30.5, "purpose": "refinance", "region": 5}


def write(folder: Path, model: onnx.ModelProto, baselines: Floats, **changes: Any) -> Path:
    """A version folder; the logit is what goes into the last sigmoid."""
    folder = folder / "model" / "1"
    folder.mkdir(parents=True)
    content, rows = model.SerializeToString(), save({"rows": baselines.astype(np.float32)})
    (folder / "model.onnx").write_bytes(content)
    (folder / "rows.safetensors").write_bytes(rows)
    sigmoid = [node for node in model.graph.node if node.op_type == "Sigmoid"][-1]
    manifest = {
        "name": "model",
        "version": "1",
        "title": "Model",
        "artefact": {"file": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()},
        "inputs": {"kind": "tabular", "features": FEATURES},
        "outputs": {
            "labels": ["no", "yes"],
            "link": "sigmoid",
            "tensors": {"logit": sigmoid.input[0], "probability": "probabilities"},
        },
        "baselines": [
            {
                "name": "training",
                "version": "1",
                "size": len(baselines),
                "file": "rows.safetensors",
                "sha256": hashlib.sha256(rows).hexdigest(),
            }
        ],
        "defaults": {"baseline": "training"},
        "review": {"protected_share": 0.1},
        "example": EXAMPLE,
    } | changes
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder


def places(rows: pd.DataFrame) -> Floats:
    """The rows as a baseline set has them: of a category its place."""
    purpose = [PURPOSES.index(value) for value in rows.purpose]
    region = [REGIONS.index(value) for value in rows.region]
    return np.stack([rows.age, rows.income, purpose, region], axis=1).astype(np.float64)


@pytest.fixture(scope="module")
def folder(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = [
        ("age", types.Int64TensorType([None, 1])),
        ("income", types.FloatTensorType([None, 1])),
        ("purpose", types.StringTensorType([None, 1])),
        ("region", types.Int64TensorType([None, 1])),
    ]
    model = skl2onnx.convert_sklearn(pipeline, initial_types=given, options={id(pipeline): {"zipmap": False}})
    return write(tmp_path_factory.mktemp("models"), model, places(data().iloc[:16]))


@pytest.fixture(scope="module")
def trial(folder: Path) -> Trial:
    torch.set_num_threads(1)
    return load_trial(folder, CPU)


def edited(folder: Path, target: Path, change: Edit) -> Path:
    copy = target / "model" / "1"
    copy.mkdir(parents=True)
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    manifest = yaml.safe_load((copy / "manifest.yaml").read_text())
    change(manifest)
    (copy / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return copy


def columns(pipeline: Pipeline, rows: Floats) -> Floats:
    """What the network is given, of rows in places: scaled numbers, then the categories' columns."""
    scaler = pipeline[0].named_transformers_["numbers"]
    numbers = (rows[:, :2] - scaler.mean_) / scaler.scale_
    return np.concatenate([numbers, np.eye(3)[rows[:, 2].astype(int)], np.eye(4)[rows[:, 3].astype(int)]], axis=1)


def logit(pipeline: Pipeline, given: Floats) -> tuple[Floats, Floats]:
    """The network in float64: its logit [n] and the gradient of it [n, columns]."""
    (first, second), (bias, other) = pipeline[-1].coefs_, pipeline[-1].intercepts_
    hidden = given @ first + bias
    value: Floats = (np.maximum(hidden, 0) @ second + other)[:, 0]
    gradient: Floats = ((hidden > 0) * second[:, 0]) @ first.T
    return value, gradient


def expected(pipeline: Pipeline, row: Floats, center: Floats, steps: int = 20_000) -> Floats:
    """Integrated gradients of the probability of `yes`, summed to the four features; a dense midpoint rule."""
    alphas = (np.arange(steps) + 0.5)[:, None] / steps
    value, gradient = logit(pipeline, center + alphas * (row - center))
    probability = 1 / (1 + np.exp(-value))
    slopes = (probability * (1 - probability))[:, None] * gradient
    each = (row - center) * slopes.mean(axis=0)
    return np.array([each[0], each[1], each[2:5].sum(), each[5:].sum()])


def told(explanation: Explanation) -> Floats:
    assert explanation.attributions is not None
    return np.array(explanation.attributions)


def test_the_artefact_is_given_what_the_instance_says(pipeline: Pipeline, folder: Path) -> None:
    """Text and whole numbers included, of which there are none in a row."""
    model, rows = load_model(folder, CPU), data()
    outputs = model.deployed.outputs(places(rows).astype(np.float32))[OutputSpace.PROBABILITY]
    np.testing.assert_allclose(outputs, pipeline.predict_proba(rows), atol=1e-5)
    assert model.shape == (2 + 3 + 4,)
    assert model.columns == (0, 1, 2, 2, 2, 3, 3, 3, 3)


def test_attributions_are_the_features_own(pipeline: Pipeline, trial: Trial) -> None:
    row = np.array(read_instance(trial.manifest, EXAMPLE))
    assert row.tolist() == [40, 30.5, 2, 2]
    (explanation,) = trial.answers(row[None]).explanations
    at = columns(pipeline, row[None])[0]
    center = columns(pipeline, places(data().iloc[:16])).mean(axis=0)
    wanted = expected(pipeline, at, center)

    assert explanation.converged
    assert explanation.rule == "exact"
    assert explanation.target == int(logit(pipeline, at[None])[0].item() > 0)
    sign = 1 if explanation.target == 1 else -1
    np.testing.assert_allclose(told(explanation), sign * wanted, atol=2e-5)


@pytest.mark.parametrize(
    "method", ["expected_gradients", "integrated_hessians", "directional_ig", "saliency", "guided_ig"]
)
def test_every_figure_speaks_of_features(trial: Trial, method: str) -> None:
    options = {"smooth": "softplus"} if method == "integrated_hessians" else {}
    if method == "directional_ig":
        options = {"groups": [["age", "purpose"]]}  # type: ignore[dict-item]
    row = read_instance(trial.manifest, EXAMPLE)
    plan = make_plan(trial.version, row, Parameters(method=method, options=options))
    explanation = trial.explained(plan)
    body = orjson.loads(encode(answered(trial.version, plan, explanation, id="1", cached=False)))
    names = [feature["name"] for feature in FEATURES]
    assert list(body["attributions"]) == names
    if method == "expected_gradients":
        assert list(body["standard_error"]) == names
        assert body["flags"] == ["protected_share"]
    if method == "integrated_hessians":
        assert np.array(body["interactions"]).shape == (4, 4)
        np.testing.assert_allclose(np.sum(body["interactions"], axis=1), list(body["attributions"].values()))
    if method == "directional_ig":
        assert body["groups"][0]["features"] == ["age", "purpose"]


def test_the_record_has_the_instance_as_it_came(trial: Trial) -> None:
    plan = make_plan(trial.version, read_instance(trial.manifest, {**EXAMPLE, "purpose": None}), Parameters())
    explanation = trial.explained(plan)
    prediction = trial.version.manifest.outputs.prediction_item(explanation.outputs, plan.output_space)
    answer = answered(trial.version, plan, explanation, id=uuid7(), cached=False)
    whom = Caller("t", "k"), Context()
    entry = ledger_entry(trial.version, plan, plan.digest(), explanation, prediction, answer, *whom)
    assert orjson.loads(entry.personal)["input"] == {**EXAMPLE, "purpose": "buy"}
    assert set(orjson.loads(entry.personal)["answer"]["attributions"]) == set(EXAMPLE)


def test_a_variance_over_noisy_copies_is_that_of_the_feature(pipeline: Pipeline, trial: Trial) -> None:
    """Not the sum of its columns' variances, which move together."""
    row, copies, seed = read_instance(trial.manifest, EXAMPLE), 8, 3
    noise = {"kind": "vargrad", "samples": copies, "scale": 0.15}
    asked = Parameters(method="input_x_gradient", noise=noise, seed=seed, target="yes", output_space="logit")
    found = told(trial.explained(make_plan(trial.version, row, asked)))

    generator = np.random.default_rng(seed)
    generator.integers(2**63, size=copies)
    whole = np.concatenate([row[:2], np.eye(3)[2], np.eye(4)[2]])
    extent = np.array([81, 100, *[1] * 7])
    drawn = whole + 0.15 * extent * generator.standard_normal((copies, 9))
    scaler = pipeline[0].named_transformers_["numbers"]
    center, scale = np.append(scaler.mean_, [0] * 7), np.append(scaler.scale_, [1] * 7)
    each = drawn * logit(pipeline, (drawn - center) / scale)[1] / scale
    of_features = np.stack([each[:, 0], each[:, 1], each[:, 2:5].sum(1), each[:, 5:].sum(1)], axis=1)
    np.testing.assert_allclose(found, of_features.var(axis=0), rtol=1e-4)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown category": (
        {"purpose": "sell"},
        r"purpose is 'sell'; it must be one of build, buy, refinance, or null$",
    ),
    "a slip": (
        {"purpose": "refinace"},
        r"'refinace'; it must be one of build, buy, refinance, or null; did you mean ref",
    ),
    "a long one": ({"purpose": "buy" * 100_000}, r"purpose is 'buybuy[a-z.]{1,40}'; it must be one of [a-z, ]*$"),
    "a category of another type": ({"region": "5"}, r"region is '5'; it must be one of 1, 2, 5, 7$"),
    "a place": ({"purpose": 1}, "purpose is 1; it must be one of"),
    "truth": ({"region": True}, "region is True; it must be one of"),
    "nothing where nothing is known": ({"region": None}, "region is null; it must be one of"),
    "a fraction": ({"age": 40.5}, "age is 40.5; it must be a whole number"),
    "a list": ({"purpose": ["buy"]}, r"purpose is \['buy'\]; it must be one of"),
}


@pytest.mark.parametrize(("change", "detail"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_category_is_refused(trial: Trial, change: dict[str, Any], detail: str) -> None:
    with pytest.raises(InvalidRequest, match=detail):
        read_instance(trial.manifest, EXAMPLE | change)


def test_zeros_are_no_baseline_of_categories(trial: Trial) -> None:
    with pytest.raises(InvalidRequest, match=r"the baselines are training@1$"):
        make_plan(trial.version, read_instance(trial.manifest, EXAMPLE), Parameters(baseline="zeros"))


def test_an_instance_is_a_baseline(pipeline: Pipeline, trial: Trial) -> None:
    other = {"age": 25, "income": 70, "purpose": "build", "region": 1}
    row = read_instance(trial.manifest, EXAMPLE)
    plan = make_plan(trial.version, row, Parameters(baseline=other, target="yes"))
    explanation = trial.explained(plan)
    start = columns(pipeline, np.array([read_instance(trial.manifest, other)]))[0]
    wanted = expected(pipeline, columns(pipeline, np.array([row]))[0], start)
    np.testing.assert_allclose(told(explanation), wanted, atol=2e-5)


WRONG: dict[str, tuple[Edit, str]] = {
    "an input nobody fills": (lambda m: m["inputs"]["features"][0].update(tensor="income"), "the graph's input 'age'"),
    "an input that is not there": (lambda m: m["inputs"]["features"][0].update(tensor="ages"), "no input 'ages'"),
    "fractions in whole numbers": (lambda m: m["inputs"]["features"][0].update(whole=False), "whole: true"),
    "a number in text": (
        lambda m: m["inputs"]["features"].__setitem__(2, {**FEATURES[0], "name": "purpose", "tensor": "purpose"}),
        "categories",
    ),
    "categories in another order": (
        lambda m: m["inputs"]["features"][3].update(categories=[1, 2, 5]),
        "below 3 for region",
    ),
    "two categories of one name": (lambda m: m["inputs"]["features"][2].update(categories=["a", "a"]), "twice"),
    "a range of categories": (lambda m: m["inputs"]["features"][2].update(range=[0, 9]), "no range"),
    "a missing value that is none": (lambda m: m["inputs"]["features"][2].update(missing="rent"), "not among"),
    "a group of nobody": (
        lambda m: m["inputs"].update(groups=[{"name": "g", "title": "G", "members": ["nobody"]}]),
        "is no feature",
    ),
    "a feature in two groups": (
        lambda m: m["inputs"].update(
            groups=[{"name": name, "title": "G", "members": ["age"]} for name in ("one", "other")]
        ),
        "one group at most",
    ),
    "a group of a feature's name": (
        lambda m: m["inputs"].update(groups=[{"name": "income", "title": "G", "members": ["age"]}]),
        "the name of a feature",
    ),
}


@pytest.mark.parametrize(("change", "detail"), WRONG.values(), ids=WRONG.keys())
def test_a_manifest_that_does_not_fit_the_graph_is_refused(
    folder: Path, tmp_path: Path, change: Edit, detail: str
) -> None:
    with pytest.raises(CatalogError, match=detail):
        load_model(edited(folder, tmp_path, change), CPU)


def test_a_group_is_explained_as_one(folder: Path, trial: Trial, tmp_path: Path) -> None:
    group = {"name": "person", "title": "Who asks", "members": ["age", "region"]}
    grouped = load_trial(edited(folder, tmp_path, lambda m: m["inputs"].update(groups=[group])), CPU)
    assert grouped.features == ("person", "income", "purpose")
    assert [component.protected for component in grouped.manifest.inputs.components] == [True, False, False]
    row = np.array([read_instance(trial.manifest, EXAMPLE)])
    apart, together = trial.answers(row).attributions[0], grouped.answers(row).attributions[0]
    np.testing.assert_allclose(together, [apart[0] + apart[3], apart[1], apart[2]], atol=1e-6)


def test_columns_that_the_model_takes_itself(pipeline: Pipeline, trial: Trial, tmp_path: Path) -> None:
    """The network alone, whose first reference category has no column: the service makes the columns."""
    inner = MLPClassifier((8,), max_iter=60, random_state=0)
    rows = data()
    encoder = OneHotEncoder(drop="first", sparse_output=False).fit(rows[["purpose", "region"]])
    given = np.concatenate([rows[["age", "income"]].to_numpy(), encoder.transform(rows[["purpose", "region"]])], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner.fit(given, labels(rows))
    model = skl2onnx.convert_sklearn(
        inner, initial_types=[("rows", types.FloatTensorType([None, 7]))], options={id(inner): {"zipmap": False}}
    )
    features = [{**feature, "tensor": "rows"} for feature in FEATURES]
    features[2]["reference"], features[3]["reference"] = "build", 1
    inputs = {"kind": "tabular", "features": features}
    folder = write(tmp_path, model, places(rows.iloc[:16]), inputs=inputs)
    loaded = load_model(folder, CPU)
    assert loaded.columns == (0, 1, 2, 2, 3, 3, 3)
    probability = loaded.deployed.outputs(places(rows).astype(np.float32))[OutputSpace.PROBABILITY]
    np.testing.assert_allclose(probability, inner.predict_proba(given), atol=1e-5)
    assert loaded.forwards is not loaded.deployed
    of_columns = loaded.forwards.outputs(given.astype(np.float32))[OutputSpace.PROBABILITY]
    np.testing.assert_allclose(of_columns, inner.predict_proba(given), atol=1e-5)
    assert len(load_trial(folder, CPU).answers(places(rows.iloc[:2])).attributions[0]) == 4
