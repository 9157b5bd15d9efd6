"""How ONNX graphs and networks of transformers take each kind of input, by the word that manifests have for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from service.artefacts.inputs.kind import OnnxInputs
from service.artefacts.inputs.network_prompts import NetworkPrompts
from service.artefacts.inputs.network_tokens import NetworkTokens, Read
from service.artefacts.inputs.tabular import OnnxTable
from service.artefacts.inputs.tensor import OnnxTensor
from service.artefacts.inputs.tokens import OnnxTokens
from service.artefacts.onnx.session_inputs import GraphInput
from service.catalog.inputs.kind import Inputs
from service.catalog.outputs.kind import OutputKind

KINDS: Mapping[str, Callable[[Any, Mapping[str, GraphInput]], OnnxInputs]] = {
    "tabular": OnnxTable,
    "image": OnnxTensor,
    "series": OnnxTensor,
    "tokens": OnnxTokens,
}
"""Prompts are not among them: they are continued by networks of transformers."""

OF_NETWORKS: Mapping[str, Callable[[Any, Any, Read | None], NetworkTokens]] = {"tokens": NetworkTokens}
OF_CAUSAL_NETWORKS: Mapping[str, Callable[[Any, Any, Any], NetworkPrompts]] = {"prompt": NetworkPrompts}


def network_inputs(inputs: Inputs, network: Any, read: Read | None = None) -> NetworkTokens:
    """The inputs as this network of transformers takes them, and `read` what of its answer is taken, its logits
    otherwise. Raises CatalogError where it takes others."""
    return OF_NETWORKS[inputs.kind](inputs, network, read)


def causal_inputs(inputs: Inputs, outputs: OutputKind, network: Any) -> NetworkPrompts:
    """The inputs, and what follows them, as this causal network takes them. Raises CatalogError where it takes
    others."""
    return OF_CAUSAL_NETWORKS[inputs.kind](inputs, outputs, network)


def onnx_inputs(inputs: Inputs, graph_inputs: Mapping[str, GraphInput]) -> OnnxInputs:
    """The inputs as the graph with these `graph_inputs` takes them."""
    return KINDS[inputs.kind](inputs, graph_inputs)
