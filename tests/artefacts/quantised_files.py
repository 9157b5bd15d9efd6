"""Networks exported to ONNX and quantised by ONNX Runtime's own tools, in every form that these write."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
from torch import Tensor, nn

FORMS = ("qdq", "qdq-per-channel", "qoperator", "dynamic")


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.out(self.layer(rows)[0][:, -1])
        return logits


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (
        lambda: nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)),
        (6,),
    ),
    "tanh": (lambda: nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3)), (6,)),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.LeakyReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        (1, 8, 8),
    ),
    "recurrent": (_Recurrent, (5, 4)),
}
"""Each with the shape of a row."""


def network(name: str) -> tuple[nn.Module, Tensor]:
    """One of them, and rows that it could have been trained on. Logits are some units apart, as trained ones are."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    made = make().eval()
    rows = torch.randn(64, *shape)
    with torch.no_grad():
        last = [module for module in made.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.mul_(3 / made(rows).std())
    return made, rows


def exported(made: nn.Module, rows: Tensor, opset: int = 17) -> onnx.ModelProto:
    """The network as torch exports it."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            made,
            (rows[:2],),
            content,
            input_names=["rows"],
            output_names=["logits"],
            dynamic_axes={"rows": {0: "count"}, "logits": {0: "count"}},
            opset_version=opset,
            dynamo=False,
        )
    return onnx.load_from_string(content.getvalue())


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, rows: NDArray[Any]) -> None:
        self._rows: Iterator[dict[str, NDArray[Any]]] = iter([{"rows": row[None]} for row in rows])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._rows, None)


def quantised(model: onnx.ModelProto, rows: Tensor, form: str, folder: Path) -> onnx.ModelProto:
    """The file quantised to 8 bits."""
    source, result = folder / "float.onnx", folder / f"{form}.onnx"
    onnx.save(model, source)
    if form == "dynamic":
        has_convolutions = any(node.op_type == "Conv" for node in model.graph.node)
        weights = QuantType.QUInt8 if has_convolutions else QuantType.QInt8
        quantization.quantize_dynamic(source, result, weight_type=weights)
    else:
        per_channel = form == "qdq-per-channel"
        quantization.quantize_static(
            source,
            result,
            _Calibration(rows.numpy()),
            quant_format=QuantFormat.QOperator if form == "qoperator" else QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QInt8 if per_channel else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return onnx.load(result)


def answers(model: onnx.ModelProto, rows: NDArray[Any]) -> NDArray[Any]:
    """What ONNX Runtime answers for each row by itself, with products of integers that do not overflow."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], {"rows": row[None]})[0] for row in rows])
