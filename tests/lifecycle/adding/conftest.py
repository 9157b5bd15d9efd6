"""ONNX files as scikit-learn's and torch's exporters write them, with what the original model answers."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

IRIS_OF_ONNXRUNTIME = Path(onnxruntime.__file__).parent / "datasets" / "logreg_iris.onnx"


@dataclass(frozen=True, slots=True)
class Original:
    """A file, some rows, and the original's probabilities for them."""

    model: onnx.ModelProto
    rows: NDArray[Any]
    probabilities: NDArray[Any]
    labels: tuple[str, ...]

    def save(self, path: Path) -> Path:
        onnx.save(self.model, path)
        return path


def _learnt(data: Any, names: bool, *steps: Any, **options: Any) -> Original:
    target = data.target_names[data.target] if names else data.target
    pipeline = make_pipeline(*steps).fit(data.data, target)
    rows = data.data[::5].astype(np.float32)
    settings = {id(pipeline.steps[-1][1]): options} if options else None
    model = to_onnx(pipeline, rows[:1], options=settings)
    return Original(model, rows, pipeline.predict_proba(rows), tuple(map(str, pipeline.classes_)))


def _exported(network: nn.Module, softmax: bool) -> Original:
    rows = torch.randn(20, 4)
    whole = nn.Sequential(network, nn.Softmax(dim=1)) if softmax else network
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(whole, (rows,), content, dynamo=False, dynamic_axes={"rows": {0: "n"}}, input_names=["rows"])
    probabilities = torch.softmax(network(rows), dim=1).detach().numpy()
    return Original(onnx.load_from_string(content.getvalue()), rows.numpy(), probabilities, ())


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


MAKERS: dict[str, Callable[[], Original]] = {
    "logistic regression of two": lambda: _learnt(
        load_breast_cancer(), False, StandardScaler(), LogisticRegression(max_iter=300)
    ),
    "logistic regression of three": lambda: _learnt(load_iris(), True, StandardScaler(), LogisticRegression()),
    "perceptron of two": lambda: _learnt(
        load_breast_cancer(), True, SimpleImputer(), StandardScaler(), MLPClassifier((8,), max_iter=40, tol=1)
    ),
    "perceptron of three": lambda: _learnt(
        load_iris(), True, StandardScaler(), MLPClassifier((8,), max_iter=40, tol=1)
    ),
    "without a zipmap": lambda: _learnt(load_iris(), True, StandardScaler(), LogisticRegression(), zipmap=False),
    "torch, logits": lambda: _exported(_network(), softmax=False),
    "torch, softmax": lambda: _exported(_network(), softmax=True),
}


@pytest.fixture(scope="session")
def original() -> Callable[[str], Original]:
    """Makes an original by its name in `MAKERS`."""
    made: dict[str, Original] = {}

    def make(name: str) -> Original:
        if name not in made:
            torch.set_num_threads(1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[name] = MAKERS[name]()
        return made[name]

    return make
