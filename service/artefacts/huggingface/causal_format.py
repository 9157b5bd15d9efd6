"""Causal language models of Hugging Face folders: the network in torch predicts, and a trace of it is differentiated.

What is traced is the network between its embeddings and its logits, for any number of rows, places, and positions that
are read. What is around it, which differs by length, is traced for each length.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from service.artefacts.aten import in_plain_torch
from service.artefacts.deployed import Opened, TorchOutputs
from service.artefacts.huggingface.networks import EXAMPLES, example_rows
from service.artefacts.inputs.network_prompts import NetworkPrompts
from service.artefacts.inputs.registry import causal_inputs
from service.artefacts.reported import reported
from service.catalog.manifest import Manifest
from service.errors import CatalogError


def open_causal(network: nn.Module, manifest: Manifest, device: torch.device) -> Opened:
    """The network and its twin; both take rows of any length up to the manifest's.

    Raises CatalogError where the manifest declares other inputs, or the network cannot be traced.
    """
    taken = causal_inputs(manifest.inputs, manifest.outputs, network)
    body = _trace(taken, manifest, device)

    def opened(inputs: Any) -> Opened:
        encoding = taken.encoding_of(inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = fx.symbolic_trace(taken.around(body, inputs, device))
        twin.requires_grad_(requires_grad=False)
        return Opened(
            TorchOutputs(taken.of_rows, device, inputs.shape, manifest.outputs),
            twin,
            encoding,
            TorchOutputs(twin, device, encoding.shape, manifest.outputs),
            cut_to=opened,
        )

    whole = opened(manifest.inputs)
    with example_rows(manifest) as rows:
        whole.deployed.outputs(rows)
        encoded = torch.from_numpy(whole.encoding(rows.astype("float64")).astype("float32"))  # type: ignore[misc]
        given: Tensor = encoded.reshape(EXAMPLES, *whole.encoding.shape).to(device).requires_grad_()  # type: ignore[union-attr]
        takes_gradient = whole.twin(given).requires_grad
    if not takes_gradient:
        raise CatalogError("no gradient reaches the word embeddings: on every way to the logits its values are cut off")
    return whole


def _trace(taken: NetworkPrompts, manifest: Manifest, device: torch.device) -> fx.GraphModule:
    """The network between its embeddings and its logits."""
    (most,) = manifest.inputs.shape
    rows, length, positions = Dim("rows"), Dim("length", max=most), Dim("positions", max=most)
    embedded, pairs = {0: rows, 1: length}, {0: rows, 2: length, 3: length}
    shapes = (embedded, pairs, embedded, {0: rows, 1: positions, 2: length})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(taken.body, taken.examples(device), dynamic_shapes=shapes, strict=False)
            return in_plain_torch(fx.symbolic_trace(program.module(check_guards=False)))
    except Exception as error:  # torch's errors share no base class, and the network's code raises its own
        raise CatalogError(f"the network cannot be traced behind its word embeddings: {reported(error)}") from error
