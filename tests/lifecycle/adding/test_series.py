"""Series are added with the features where the graph has them: recurrent networks take steps first, convolutions
features first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.errors import CatalogError
from tests.lifecycle.adding.test_exports import add, export, layers, served

STEPS, FEATURES = 9, 3


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(FEATURES, 6, batch_first=True)
        self.out = nn.Linear(6, 2)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.softmax(self.out(self.layer(rows * 2)[0][:, -1]), dim=1)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(FEATURES, 6, 3, padding=1),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.MaxPool1d(3),
        nn.Flatten(),
        layers(6 * (STEPS // 3), 2),
        nn.Softmax(1),
    )


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "Conv1d"])
def test_a_series_is_explained_by_step_and_feature(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    is_first = kind == "Conv1d"
    network = convolutional() if is_first else Recurrent(kind)
    shape = (FEATURES, STEPS) if is_first else (STEPS, FEATURES)
    rows = torch.randn(40, *shape).cumsum(2 if is_first else 1)
    added = add(export(network, 5, *shape), tmp_path, rows.numpy(), features=("pulse", "oxygen", "pressure"))

    inputs: Any = added.trial.manifest.inputs
    assert (inputs.kind, inputs.steps, inputs.shape) == ("series", STEPS, shape)
    assert [feature.name for feature in inputs.features] == ["pulse", "oxygen", "pressure"]
    by_feature = rows.numpy() if is_first else rows.numpy().transpose(0, 2, 1)
    for feature, values in zip(inputs.features, by_feature.transpose(1, 0, 2), strict=True):
        assert feature.range[0] <= values.min() <= values.max() <= feature.range[1]
    assert served(added, rows.numpy()) == pytest.approx(network(rows).detach().numpy(), abs=1e-5)
    assert added.report.failed == []
    example = np.array(added.trial.manifest.example)
    assert example.shape == (STEPS, FEATURES)
    assert example == pytest.approx(np.median(by_feature, axis=0).T, abs=1e-6)
    explanation = added.explanation
    assert explanation.attributions is not None
    assert len(explanation.attributions) == STEPS * FEATURES
    assert explanation.output is not None
    assert explanation.baseline_output is not None
    change = explanation.output - explanation.baseline_output
    assert sum(explanation.attributions) == pytest.approx(change, abs=0.01 * sum(map(abs, explanation.attributions)))


def test_what_the_graph_does_not_say_is_asked(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), layers(STEPS * FEATURES, 2), nn.Softmax(1))
    model, rows = export(network, 5, STEPS, FEATURES), torch.randn(20, STEPS, FEATURES).numpy()
    questions: list[str] = []

    def says_last(question: str, default: str) -> str:
        questions.append(question)
        return "last" if "a series" in question else default

    added = add(model, tmp_path, rows, says_last)
    assert any("a row of 9 x 3 a series" in question for question in questions)
    inputs: Any = added.trial.manifest.inputs
    assert (inputs.steps, inputs.order) == (STEPS, "steps first")
    added = add(model, tmp_path, rows.transpose(0, 1, 2), channels="first")
    inputs = added.trial.manifest.inputs
    assert (inputs.steps, inputs.order) == (FEATURES, "features first")


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    model = export(Recurrent("GRU"), 5, STEPS, FEATURES)
    for rows in (np.zeros((4, FEATURES, STEPS)), np.zeros((4, STEPS * FEATURES)), np.zeros((0, STEPS, FEATURES))):
        with pytest.raises(CatalogError, match=r"rows are \[rows, 9, 3\]|no rows"):
            add(model, tmp_path, rows)
