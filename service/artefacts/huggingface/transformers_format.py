"""Hugging Face folders: the network in torch predicts, and a trace of it behind its embeddings is differentiated."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import fx
from torch.export import Dim

from service.artefacts.aten import in_plain_torch
from service.artefacts.deployed import Opened, TorchOutputs
from service.artefacts.huggingface.causal_format import open_causal
from service.artefacts.huggingface.configs import is_causal, read_config
from service.artefacts.huggingface.networks import EXAMPLES, example_rows, read_network
from service.artefacts.huggingface.pooling import pooled
from service.artefacts.huggingface.sentence_modules import MODULES, read_modules
from service.artefacts.inputs.network_tokens import NetworkTokens
from service.artefacts.inputs.registry import network_inputs
from service.artefacts.reported import reported
from service.catalog.inputs.kind import Inputs
from service.catalog.manifest import Manifest
from service.errors import CatalogError


def open_transformers(contents: Mapping[str, bytes], manifest: Manifest, device: torch.device) -> Opened:
    """The network and its twin; both take rows of any length up to the manifest's.

    Raises CatalogError where the files are not those of a network of transformers that classifies or embeds texts, the
    manifest declares other inputs, or the network cannot be traced behind its embeddings.
    """
    sentences = read_modules(contents) if MODULES in contents else None
    network = read_network(contents, manifest.artefact.file, is_encoder=sentences is not None).to(device)
    if sentences is None:
        continues = is_causal(read_config(contents[manifest.artefact.file], manifest.artefact.file))
        if continues != manifest.inputs.are_prompts:
            kind, does = ("prompt", "continues") if continues else ("tokens", "classifies")
            raise CatalogError(f"the network {does} texts: its inputs are of kind {kind}, not {manifest.inputs.kind}")
        if continues:
            return open_causal(network, manifest, device)
    taken = network_inputs(manifest.inputs, network, None if sentences is None else pooled(sentences.pooling))
    deployed = TorchOutputs(taken.of_rows, device, manifest.inputs.shape, manifest.outputs)
    with example_rows(manifest) as rows:
        deployed.outputs(rows)
    traced = _trace(taken, device)

    def opened(inputs: Inputs) -> Opened:
        encoding = taken.encoding_of(inputs)
        twin = fx.GraphModule(traced, deepcopy(traced.graph))  # with the same weights
        return Opened(
            TorchOutputs(taken.of_rows, device, inputs.shape, manifest.outputs),
            twin,
            encoding,
            TorchOutputs(twin, device, encoding.shape, manifest.outputs),
            cut_to=opened,
        )

    return opened(manifest.inputs)


def _trace(taken: NetworkTokens, device: torch.device) -> fx.GraphModule:
    """The network behind its embedding layer."""
    length, width = taken.encoding.shape
    rows = torch.zeros(EXAMPLES, length, width, device=device)
    rows[..., -1] = 1.0
    try:
        with warnings.catch_warnings(), taken.embeddings_given():
            warnings.simplefilter("ignore")
            shapes = ({0: Dim("rows"), 1: Dim("length", max=length)},)
            program = torch.export.export(taken.of_encoded, (rows,), dynamic_shapes=shapes, strict=False)
            twin = in_plain_torch(fx.symbolic_trace(program.module(check_guards=False)))
        takes_gradient = twin(rows.requires_grad_()).requires_grad
    except Exception as error:  # torch's errors share no base class, and the network's code raises its own
        raise CatalogError(f"the network cannot be traced behind its word embeddings: {reported(error)}") from error
    if not takes_gradient:
        raise CatalogError("no gradient reaches the word embeddings: on every way to the logits its values are cut off")
    return twin.requires_grad_(requires_grad=False)
