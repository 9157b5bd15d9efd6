"""Files that were exported for one row at a time: the file itself predicts, row by row, and its twin takes several."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from service.artefacts.loading import load_model
from service.artefacts.onnx.open_rows import fixed_rows, with_open_rows
from service.errors import CatalogError
from tests.artefacts.test_refused_files import write

CPU = torch.device("cpu")
LABELS = 3


class Attending(nn.Module):
    """A class token before the steps, and attention with its heads folded into the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 6, 8))
        self.mixed = nn.Linear(8, 24)
        self.last = nn.Linear(8, LABELS)

    def forward(self, rows: Tensor) -> Tensor:
        count = int(rows.shape[0])
        steps = torch.cat([self.token.expand(count, 1, 8), rows], 1) + self.places
        parts = self.mixed(steps).reshape(count, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        query, key, value = (part.reshape(count * 2, 6, 4) for part in parts)
        mixed = torch.softmax(torch.bmm(query, key.transpose(1, 2)), -1) @ value
        steps = steps + mixed.reshape(count, 2, 6, 4).transpose(1, 2).reshape(count, 6, 8)
        answer: Tensor = self.last(steps[:, 0])
        return answer


class Recurrent(nn.Module):
    """Its first state is zero, for each row."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.cell = kind(8, 5, batch_first=True)
        self.last = nn.Linear(5, LABELS)

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.last(self.cell(rows)[0][:, -1])
        return answer


class Convolving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(5, 4, 3, padding=1)
        self.last = nn.Linear(32, LABELS)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = torch.relu(self.convolution(rows))
        answer: Tensor = self.last(hidden.view(1, 32) if rows.shape[0] == 1 else hidden.flatten(1))
        return answer


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "attention": Attending,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "convolution": Convolving,
}


def exported(network: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names: dict[str, Any] = {"input_names": ["rows"], "output_names": ["logits"]}
        torch.onnx.export(network.eval(), (torch.randn(1, *shape),), content, dynamo=False, **names)
    return onnx.load_from_string(content.getvalue())


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_for_one_row_predicts_row_by_row_and_its_twin_takes_several(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network = MAKERS[name]()
    model = exported(network, (5, 8))
    assert fixed_rows(model) == 1
    features = [{"name": f"f{at}", "title": "F", "range": [-1, 1]} for at in range(8)]
    inputs = {"kind": "series", "tensor": "rows", "steps": 5, "features": features, "example": [[0.5] * 8] * 5}
    loaded = load_model(write(tmp_path, model.SerializeToString(), inputs), CPU)
    assert loaded.alone
    rows = torch.rand(7, 5, 8)
    expected = network(rows).detach()
    (own,) = (values for space, values in loaded.deployed.outputs(rows.flatten(1).numpy()).items() if space == "logit")
    torch.testing.assert_close(torch.from_numpy(own), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded.twin(rows), expected, rtol=1e-4, atol=1e-5)


class Flattened(nn.Module):
    """Takes the only row there is."""

    def forward(self, rows: Tensor) -> Tensor:
        return torch.cumsum(rows[0], 0)[None, -1, :LABELS]


def test_a_graph_that_takes_its_only_row_apart_is_refused(tmp_path: Path) -> None:
    model = exported(Flattened(), (5, 8))
    features = [{"name": f"f{at}", "title": "F", "range": [-1, 1]} for at in range(8)]
    inputs = {"kind": "series", "tensor": "rows", "steps": 5, "features": features, "example": [[0.5] * 8] * 5}
    with pytest.raises(CatalogError, match=r"rows|first dimension"):
        load_model(write(tmp_path, model.SerializeToString(), inputs), CPU)


def test_what_takes_several_rows_or_any_number_stays_as_it_is() -> None:
    for count in (0, 3):
        model = exported(Convolving(), (5, 8))
        sizes = model.graph.input[0].type.tensor_type.shape.dim
        sizes[0].Clear()
        if count:
            sizes[0].dim_value = count
        assert with_open_rows(model) is model
