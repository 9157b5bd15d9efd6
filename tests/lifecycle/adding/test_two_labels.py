"""A classifier of two labels from scikit-learn: either label is explained, the first by the negative of the second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from service.catalog.assessments import Assessments
from service.catalog.manifest import read_manifest
from service.domain import Floats, OutputSpace
from service.lifecycle.adding.adding import AddOptions, add_model
from service.lifecycle.checking.trial import Trial, load_trial
from service.usecases.planning import Parameters, make_plan

LABELS = ("benign", "malignant")


def added(pipeline: object, rows: Floats, folder: Path) -> Trial:
    """The pipeline as `models add` takes it."""
    onnx.save(to_onnx(pipeline, rows[:1].astype(np.float32)), folder / "two.onnx")
    np.save(folder / "rows.npy", rows)
    asked = AddOptions(folder / "two.onnx", data=folder / "rows.npy", labels=LABELS)
    found = add_model(asked, folder / "models", lambda _, usual: usual, 4, Assessments(folder / "kept"))
    return load_trial(found.folder, torch.device("cpu"))


def test_a_logistic_regression_is_its_weights(tmp_path: Path) -> None:
    """Of the logit: w (x - x'), and for the first label its negative, in the units of the columns."""
    data = load_breast_cancer()
    rows = data.data[:, :5].astype(np.float32).astype(np.float64)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(rows, data.target)
    trial = added(pipeline, rows, tmp_path)
    assert read_manifest(trial.version.folder)[0].outputs.has_one_logit
    weights = pipeline[-1].coef_[0] / pipeline[0].scale_
    center = trial.baseline_rows().mean(axis=0)
    row = rows[0]
    for target, sign in (("benign", -1), ("malignant", 1)):
        for method in ("integrated_gradients", "expected_gradients"):
            asked = Parameters(method=method, target=target, output_space="logit", tolerance=1e-4)
            found = trial.explained(make_plan(trial.version, tuple(row.tolist()), asked))
            assert found.converged
            assert found.attributions == pytest.approx(sign * weights * (row - center), rel=1e-4, abs=1e-4)
            assert found.output == pytest.approx(sign * pipeline.decision_function([row])[0], rel=1e-4)


def test_what_is_served_is_the_originals(tmp_path: Path) -> None:
    data = load_breast_cancer()
    rows = data.data[:, :4].astype(np.float32).astype(np.float64)
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((6,), max_iter=40, tol=1, random_state=0))
    pipeline.fit(rows, data.target)
    trial = added(pipeline, rows, tmp_path)
    answered = trial.deployed(rows[:50])
    expected = pipeline.predict_proba(rows[:50])
    assert answered[OutputSpace.PROBABILITY] == pytest.approx(expected, abs=1e-5)
    odds = np.log(expected / expected[:, ::-1])
    assert answered[OutputSpace.LOGIT] == pytest.approx(odds, abs=1e-3)
