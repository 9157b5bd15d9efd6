"""Tokens as an ONNX graph takes them: whole numbers, which the graph embeds, and its other inputs, such as the mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from service.artefacts.inputs.embeddings import check_token_embedding, find_token_embedding
from service.artefacts.inputs.kind import OnnxInputs
from service.artefacts.onnx.graph_input_slices import ROW, with_tokens_embedded
from service.artefacts.onnx.session_inputs import Array, GraphInput, SessionInputs, compare_names
from service.artefacts.onnx.twin_source import TwinSource
from service.catalog.inputs.encodings import TokenEncoding
from service.catalog.inputs.pairs import is_second
from service.catalog.inputs.tokens import SideInput, TokenInputs
from service.errors import CatalogError


class OnnxTokens(OnnxInputs):
    """Tokens of a graph; see `OnnxInputs`."""

    inputs: TokenInputs

    def __init__(self, inputs: TokenInputs, graph_inputs: Mapping[str, GraphInput]) -> None:
        self.inputs = inputs
        self.graph_inputs = graph_inputs
        self._embedding: tuple[str, NDArray[np.float32]] | None = None

    def session_inputs(self) -> SessionInputs:
        """The tokens, and the graph's other inputs."""
        inputs, graph_inputs = self.inputs, self.graph_inputs
        compare_names([inputs.tensor, *inputs.side], graph_inputs)
        for name, graph_input in graph_inputs.items():
            (length,) = graph_input.shape[-1:] or (None,)
            if length not in (None, inputs.length):
                raise CatalogError(
                    f"the graph's input {name!r} takes {length} tokens, the manifest says {inputs.length}"
                )
        dtype = graph_inputs[inputs.tensor].dtype

        def session_inputs(rows: Array) -> dict[str, Array]:
            tokens = rows.astype(dtype)
            sides = {
                name: _side_input(kind, tokens, inputs).astype(graph_inputs[name].dtype)
                for name, kind in inputs.side.items()
            }
            return {inputs.tensor: tokens, **sides}

        return session_inputs

    def source(self, graph: ModelProto, session_inputs: SessionInputs, end: str) -> TwinSource:
        """What follows the embedding of the tokens. Raises CatalogError where there is none."""
        inputs = self.inputs
        if self._embedding is None:
            tensor, table = find_token_embedding(graph, inputs.tensor)
            check_token_embedding(graph, inputs, session_inputs, tensor, table)
            self._embedding = tensor, table
        tensor, table = self._embedding
        if not inputs.side:
            return TwinSource(graph, tensor, inputs.shape, TokenEncoding(table, inputs.length))
        side = {name: (kind, self.graph_inputs[name].element_type) for name, kind in inputs.side.items()}
        whole = with_tokens_embedded(graph, tensor, inputs.length, table.shape[1], side)
        separator = inputs.separator if inputs.has_parts else None
        return TwinSource(whole, ROW, None, TokenEncoding(table, inputs.length, inputs.padding, separator))


def _side_input(kind: SideInput, tokens: NDArray[Any], inputs: TokenInputs) -> NDArray[Any]:
    """An input of the graph beside the tokens: [rows, length]."""
    is_token: NDArray[np.bool_] = tokens != inputs.padding
    match kind:
        case "mask":
            return is_token
        case "zeros":
            return np.zeros_like(is_token)
        case "parts":
            assert inputs.separator is not None
            return is_token & is_second(tokens, inputs.separator)
    return np.tile(np.arange(is_token.shape[1]), (len(is_token), 1))
