"""Of scikit-learn's classifiers is served what their own files answer, and they themselves; or they are refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from skl2onnx import to_onnx
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
)
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Perceptron,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import ComplementNB, GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC

from service.catalog.assessments import Assessments
from service.domain import OutputSpace
from service.errors import CatalogError
from service.lifecycle.adding.adding import AddOptions, add_model
from service.lifecycle.adding.graphs import LOGITS, PROBABILITIES
from service.lifecycle.checking.trial import load_trial

SERVED: dict[str, tuple[int, Callable[[], Any]]] = {
    "logistic regression": (2, LogisticRegression),
    "logistic regression of three": (3, lambda: make_pipeline(StandardScaler(), LogisticRegression())),
    "one against the rest": (3, lambda: OneVsRestClassifier(LogisticRegression())),
    "one against the rest of two": (2, lambda: OneVsRestClassifier(LogisticRegression())),
    "gaussian bayes": (3, GaussianNB),
    "gaussian bayes of two": (2, GaussianNB),
    "multinomial bayes": (3, lambda: make_pipeline(MinMaxScaler(clip=True), MultinomialNB())),
    "complement bayes": (3, lambda: make_pipeline(MinMaxScaler(clip=True), ComplementNB())),
    "linear discriminant": (3, LinearDiscriminantAnalysis),
    "quadratic discriminant": (3, QuadraticDiscriminantAnalysis),
    "quadratic discriminant of two": (2, QuadraticDiscriminantAnalysis),
    "calibrated": (2, lambda: CalibratedClassifierCV(LogisticRegression(), cv=2)),
    "calibrated of three": (3, lambda: CalibratedClassifierCV(LinearSVC(), cv=2)),
    "stochastic descent": (3, lambda: SGDClassifier(loss="log_loss", random_state=0)),
    "stochastic descent of two": (2, lambda: SGDClassifier(loss="log_loss", random_state=0)),
    "modified huber": (3, lambda: SGDClassifier(loss="modified_huber", random_state=0)),
    "perceptron of layers": (3, lambda: MLPClassifier((4,), max_iter=20, tol=1, random_state=0)),
    "bagged": (3, lambda: BaggingClassifier(LogisticRegression(), n_estimators=2, random_state=0)),
    "stacked": (3, lambda: StackingClassifier([("a", LogisticRegression()), ("b", GaussianNB())], cv=2)),
    "principal components": (3, lambda: make_pipeline(PCA(2), LogisticRegression())),
    "the best columns": (3, lambda: make_pipeline(SelectKBest(k=2), LogisticRegression())),
    "polynomials": (2, lambda: make_pipeline(PolynomialFeatures(2), StandardScaler(), LogisticRegression())),
    "normalised rows": (3, lambda: make_pipeline(Normalizer(), LogisticRegression())),
}
REFUSED: dict[str, tuple[int, Callable[[], Any], str]] = {
    "neighbours": (3, KNeighborsClassifier, "cannot be differentiated"),
    "trees": (3, lambda: RandomForestClassifier(2, random_state=0), "without a slope"),
    "boosted": (3, lambda: AdaBoostClassifier(LogisticRegression(), n_estimators=2), "cannot be differentiated"),
    "isotonic": (3, lambda: CalibratedClassifierCV(LinearSVC(), method="isotonic", cv=2), "cannot be differentiated"),
    "bins": (
        3,
        lambda: make_pipeline(KBinsDiscretizer(3, encode="ordinal"), LogisticRegression()),
        "cannot be differentiated",
    ),
    "quantiles": (3, lambda: make_pipeline(QuantileTransformer(n_quantiles=5), LogisticRegression()), "no gradient"),
    "powers": (3, lambda: make_pipeline(PowerTransformer(), LogisticRegression()), "gradient is no number"),
    "margins": (3, lambda: SGDClassifier(random_state=0), "--logits"),
    "perceptron": (3, Perceptron, "--logits"),
    "ridge": (3, RidgeClassifier, "--logits"),
    "votes": (3, lambda: OneVsOneClassifier(LogisticRegression()), "--logits"),
    "support vectors": (3, SVC, "--logits"),
    "regression trees": (2, RandomForestRegressor, "cannot be differentiated: an ensemble of trees"),
    "regression neighbours": (2, KNeighborsRegressor, "cannot be differentiated|no counterpart"),
    "several answers": (0, lambda: MultiOutputClassifier(LogisticRegression()), "3 answers"),
}


def learnt(labels: int, make: Callable[[], Any]) -> tuple[Any, onnx.ModelProto, Any]:
    """A fitted model, its file, and rows: 60 of four columns, of so many labels; of 0, three that are yes or no."""
    rows, target = make_classification(
        60, 4, n_informative=3, n_redundant=0, n_classes=max(labels, 2), n_clusters_per_class=1, random_state=3
    )
    rows = rows.astype(np.float32)
    several = np.stack([rows[:, at] > 0 for at in range(3)], axis=1).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make().fit(rows, several if labels == 0 else target)
        return model, to_onnx(model, rows[:1], options=None), rows


def add(model: onnx.ModelProto, rows: Any, folder: Path, **options: Any) -> Any:
    onnx.save(model, folder / "model.onnx")
    np.save(folder / "rows.npy", rows)
    asked = AddOptions(folder / "model.onnx", folder / "rows.npy", **options)
    return add_model(asked, folder / "models", lambda _, usual: usual, 2, Assessments(folder / "assessments"))


def answers(model: onnx.ModelProto, outputs: list[str], rows: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(outputs, {model.graph.input[0].name: rows})
    return found


SEVERAL: dict[str, Callable[[], Any]] = {
    "one against the rest": lambda: OneVsRestClassifier(LogisticRegression()),
    "by layers": lambda: MLPClassifier((4,), max_iter=20, tol=1),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_labels_at_once_each_has_its_own_probability(name: str, tmp_path: Path) -> None:
    learner, model, rows = learnt(0, SEVERAL[name])
    added = add(model, rows, tmp_path, labels=("x", "y", "z"))
    outputs = added.trial.manifest.outputs
    (probabilities,) = answers(onnx.load(added.folder / "model.onnx"), [PROBABILITIES], rows)
    expected = learner.predict_proba(rows)

    assert (outputs.kind, outputs.names) == ("labels", ("x", "y", "z"))
    assert probabilities == pytest.approx(expected, abs=1e-5)
    predicted = [sorted(outputs.labels_of(row.tolist(), OutputSpace.PROBABILITY)) for row in probabilities]
    assert predicted == [[label for label, yes in zip("xyz", row, strict=True) if yes] for row in learner.predict(rows)]
    (explained,) = added.trial.answers(rows[:1].astype(np.float64)).explanations
    assert explained.outputs == pytest.approx(expected[0], abs=1e-5)
    assert explained.converged


REGRESSORS: dict[str, tuple[Callable[[], Any], int]] = {
    "linear": (LinearRegression, 1),
    "linear, scaled": (lambda: make_pipeline(StandardScaler(), Ridge()), 1),
    "linear, of two values": (LinearRegression, 2),
    "layers": (lambda: MLPRegressor(hidden_layer_sizes=(6,), max_iter=60, tol=1e9, random_state=0), 1),
}


@pytest.mark.parametrize("name", REGRESSORS)
def test_what_a_regressor_answers_are_values(name: str, tmp_path: Path) -> None:
    make, count = REGRESSORS[name]
    rows = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32) * (1, 10, 100) + 5
    target = 1e4 * (rows @ [[2, 1], [0.3, -1], [0.01, 0.5]])[:, :count] + 1e5
    learner = make().fit(rows, target.ravel() if count == 1 else target)
    rows = rows.astype(np.float32)
    names, units = ("price", "rent")[:count], ("USD", "USD a month")[:count]
    added = add(to_onnx(learner, rows[:1]), rows, tmp_path, values=names if count > 1 else None, units=units)
    expected = learner.predict(rows).reshape(80, count)

    outputs = added.trial.manifest.outputs
    assert (outputs.kind, len(outputs.names)) == ("values", count)
    assert [value.unit for value in outputs.described().values or ()] == list(units)
    answered = added.trial.deployed(rows)[OutputSpace.VALUE]
    assert answered == pytest.approx(expected, rel=1e-5, abs=1e-5 * np.abs(expected).max())
    explanation = added.explanation
    assert explanation.converged
    assert added.explanation.rule == "exact"


def test_a_linear_regression_is_explained_in_closed_form(tmp_path: Path) -> None:
    """w (x - mean of the baselines), in the value's own unit."""
    rows = np.random.default_rng(0).normal(size=(80, 3)) * (1, 10, 100) + 5
    learner = LinearRegression().fit(rows, rows @ [20_000, 300, -4] + 1e5)
    rows = rows.astype(np.float32)
    added = add(to_onnx(learner, rows[:1]), rows, tmp_path, values=("price",), units=("USD",), adverse="below 90000")
    x = rows[7].astype(np.float64)
    trial = load_trial(added.folder, torch.device("cpu"))
    (explanation,) = trial.answers(x[None]).explanations

    moved = learner.coef_ * (x - trial.baseline_rows().mean(axis=0))
    assert explanation.attributions == pytest.approx(moved, rel=1e-4, abs=1e-4 * np.abs(moved).max())
    assert explanation.output == pytest.approx(float(learner.predict(x[None])[0]), rel=1e-5)
    assert trial.manifest.outputs.adverse_sign(0) == -1


def test_a_file_that_answers_two_values_in_one_column_is_refused(tmp_path: Path) -> None:
    """As scikit-learn's exporter writes networks of several values."""
    rows = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    learner = MLPRegressor(hidden_layer_sizes=(6,), max_iter=60, tol=1e9, random_state=0).fit(rows, rows[:, :2])
    with pytest.raises(CatalogError, match=r"the shape \[64, 1\] for 32 rows"):
        add(to_onnx(learner, rows[:1]), rows, tmp_path)


@pytest.mark.parametrize("adverse", ["beyond 3", "low", "price"])
def test_a_bound_that_says_nothing_of_a_value_is_refused(adverse: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    model = to_onnx(LinearRegression().fit(rows, rows[:, 0]), rows[:1])
    with pytest.raises(CatalogError, match=r"says nothing of a value; bad news is said as in 'above 0\.5'"):
        add(model, rows, tmp_path, adverse=adverse)


@pytest.mark.parametrize("name", SERVED)
def test_what_is_served_are_the_files_own_probabilities_and_scikit_learns(name: str, tmp_path: Path) -> None:
    learner, model, rows = learnt(*SERVED[name])
    added = add(model, rows, tmp_path)
    served = onnx.load(added.folder / "model.onnx")
    (probabilities,) = answers(served, [PROBABILITIES], rows)
    (own,) = answers(model, [model.graph.output[1].name], rows)

    assert probabilities == pytest.approx(np.array([[*row.values()] for row in own]), abs=1e-5)
    assert probabilities == pytest.approx(learner.predict_proba(rows), abs=1e-5)
    (explained,) = added.trial.answers(rows[:1].astype(np.float64)).explanations
    assert explained.outputs == pytest.approx(learner.predict_proba(rows[:1])[0], abs=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    labels, make, sentence = REFUSED[name]
    _, model, rows = learnt(labels, make)
    with pytest.raises(CatalogError, match=sentence):
        add(model, rows, tmp_path)
    assert not list(tmp_path.rglob("manifest.yaml"))


def test_margins_are_logits_when_that_is_said(tmp_path: Path) -> None:
    learner, model, rows = learnt(3, lambda: SGDClassifier(random_state=0))
    added = add(model, rows, tmp_path, is_logit=True)
    (logits,) = answers(onnx.load(added.folder / "model.onnx"), [LOGITS], rows)

    assert logits == pytest.approx(learner.decision_function(rows), rel=1e-4, abs=1e-4)


def test_sigmoids_of_several_labels_are_no_logits_of_one(tmp_path: Path) -> None:
    """Their scores, named as the advice for a hidden softmax has it, are held against what the file itself answers."""
    _, model, rows = learnt(0, lambda: MLPClassifier((4,), max_iter=20, tol=1))
    (sigmoid,) = (node for node in model.graph.node if node.op_type == "Sigmoid")
    with pytest.raises(CatalogError, match="answers other probabilities"):
        add(model, rows, tmp_path, output=sigmoid.input[0], is_logit=True)
