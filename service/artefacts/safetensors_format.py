"""Weights in a safetensors file: the network is one of the allow-list's, so that nothing in the file is code."""

from __future__ import annotations

import torch
from torch import fx

from service.artefacts.deployed import Opened, TorchOutputs, opened
from service.artefacts.networks import read_network
from service.catalog.manifest import Manifest


def open_safetensors(content: bytes, manifest: Manifest, device: torch.device) -> Opened:
    """The network, in torch, and its trace. Raises CatalogError when the file is not what the architecture asks for."""
    architecture, encoding = manifest.artefact.architecture, manifest.inputs.encoding
    shape = manifest.inputs.shape if encoding is None else encoding.shape
    assert architecture is not None
    network = read_network(content, architecture, shape, len(manifest.outputs.names)).to(device)
    return opened(TorchOutputs(network, device, shape, manifest.outputs), fx.symbolic_trace(network), encoding)
