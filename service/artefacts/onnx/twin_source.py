"""The part of an ONNX graph that a twin is made of, and the twin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, fx, nn
from torch.nn import functional

from service.artefacts.onnx.disagreement import worst_operator
from service.artefacts.onnx.graph_input_slices import ROW
from service.artefacts.onnx.session_inputs import SessionInputs
from service.artefacts.onnx.twins import build_twin
from service.catalog.inputs.encodings import Encoding
from service.catalog.manifest import Manifest


@dataclass(frozen=True, slots=True)
class TwinSource:
    """What a twin is made of: the part of `model` from the tensor `start` on, whose rows have the `shape`.

    Where the graph was rewritten (`start` is `ROW`), `start` is its only input and takes encoded rows.
    """

    model: ModelProto
    start: str
    shape: tuple[int, ...] | None
    encoding: Encoding | None

    def worst_operator(self, logit: str, session_inputs: SessionInputs, rows: NDArray[np.floating]) -> str:
        """The operator whose counterpart differs most for these rows."""
        if self.start == ROW:
            rows_of_network = (
                rows if self.encoding is None else self.encoding(rows.astype(np.float64)).astype(rows.dtype)
            )
            width = () if self.encoding is None else self.encoding.shape
            return worst_operator(
                self.model, ROW, logit, self.shape, rows_of_network.reshape(len(rows), *(width or (-1,)))
            )
        (rows_of_network,) = session_inputs(rows).values()
        return worst_operator(self.model, self.start, logit, self.shape, rows_of_network)


def twin_of(source: TwinSource, manifest: Manifest) -> fx.GraphModule:
    """The twin. Raises CatalogError where there is none."""
    twin = build_twin(source.model, source.start, manifest.outputs.network_tensor, source.shape)
    if len(manifest.outputs.network_shape) > 1:
        return fx.symbolic_trace(_Flat(twin))
    return fx.symbolic_trace(_TwoLogits(twin)) if manifest.outputs.has_one_logit else twin


class _Flat(nn.Module):
    """A network whose answers have several axes, as one that answers [rows, outputs]."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> Tensor:
        return torch.flatten(self.network(rows), 1)


class _TwoLogits(nn.Module):
    """A network with one logit, the second label's, as one with two and the same probabilities: the first is zero.

    The two are not the labels' log-odds: `Problem.logit_readout` says how those are read out of them.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> Tensor:
        return functional.pad(self.network(rows).reshape(-1, 1), (1, 0))
