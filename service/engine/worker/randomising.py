"""Models whose weights are replaced by random numbers, layer by layer: does an explanation notice?

Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, "Sanity checks for saliency maps", NeurIPS 2018, section 3. A layer
is a node of the network's graph with weights of its own, and layers are counted from the output. Weights are drawn from
a normal distribution with the mean and the deviation of those that they replace, so that numbers keep their size
whatever the network was initialised with, which no artefact says; running means and variances of batch norms stay.

Embeddings of tokens and encodings of categories lie before what methods see, and stay too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from service.artefacts.deployed import TorchOutputs
from service.catalog.outputs.kind import OutputKind
from service.domain import OutputSpace
from service.engine.kernels.gradient import GradientKernel
from service.engine.kernels.kernel import DeployedKernel
from service.engine.kernels.network import Network
from service.engine.worker.device import DeviceModel
from service.engine.worker.model_kernels import kernels_of
from service.engine.worker.prepared_baselines import prepare_baseline
from service.methods.questions import Points

LEAST_WEIGHTS = 2
"""A tensor of fewer numbers is a constant of the graph, such as an epsilon."""


@dataclass(frozen=True, slots=True)
class _Randomised:
    """A random network in the artefact's place, which takes the artefact's rows."""

    model: DeviceModel
    outputs_at: TorchOutputs

    def outputs(self, rows: NDArray[np.floating]) -> Mapping[OutputSpace, NDArray[np.floating]]:
        """The outputs [n, outputs] in every output space, for rows [n, columns], flat."""
        seen = self.model.seen(rows.astype(np.float64))
        return self.outputs_at.outputs(seen.astype(rows.dtype))


def layers_of(model: DeviceModel) -> list[str]:
    """The names of the layers with weights, from the output to the input."""
    return [name for name, _ in _layers(_network(model).twin)][::-1]


def randomised(model: DeviceModel, layers: Collection[str], seed: int) -> DeviceModel:
    """The model with other weights in these layers; its baselines have the outputs of the new network."""
    network = _network(model)
    twin = deepcopy(network.twin)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensors in _layers(twin):
            for tensor in tensors:  # each layer has the numbers that it has whichever others are drawn
                drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                if name in layers:
                    spread = tensor.double().std() if tensor.numel() > 1 else tensor.new_zeros((), dtype=torch.float64)
                    tensor.copy_((tensor.double().mean() + spread * drawn.to(tensor.device)).to(tensor.dtype))
    outputs = model.manifest.outputs
    kernel = model.kernels[Points][0]
    rows = DeployedKernel(_Randomised(model, _in_its_place(twin, network, outputs)), kernel.capacity, model.row_type)
    forwards = DeployedKernel(_in_its_place(twin, network, outputs), kernel.capacity, model.row_type)
    kernels = kernels_of(twin, network.device, model.shapes, model.traits, rows, forwards)
    baselines = {
        digest: prepare_baseline(known.artefact_rows, rows, None, model.seen, forwards, outputs.spaces)
        for digest, known in model.baselines.items()
    }
    return replace(model, kernels=kernels, kernels_at=lambda _: kernels, baselines=baselines, cut=())


def _in_its_place(twin: fx.GraphModule, network: Network, outputs: OutputKind) -> TorchOutputs:
    return TorchOutputs(twin, network.device, network.shape, outputs)


def _network(model: DeviceModel) -> Network:
    kernel = model.kernels[Points][0]
    assert isinstance(kernel, GradientKernel)
    return kernel.network


def _layers(twin: fx.GraphModule) -> Sequence[tuple[str, list[Tensor]]]:
    """The layers with weights in the order of the graph, each with its tensors; a tensor used twice counts once."""
    known: set[int] = set()
    layers: list[tuple[str, list[Tensor]]] = []
    for node in twin.graph.nodes:
        tensors = [tensor for tensor in _weights(twin, node) if tensor.data_ptr() not in known]
        known.update(tensor.data_ptr() for tensor in tensors)
        if tensors:
            layers.append((node.name, tensors))
    return layers


def _weights(twin: fx.GraphModule, node: fx.Node) -> list[Tensor]:
    if node.op == "call_module":
        return [*twin.get_submodule(str(node.target)).parameters()]
    if node.op != "get_attr":
        return []
    *path, name = str(node.target).split(".")
    value = getattr(twin.get_submodule(".".join(path)), name)
    is_weight = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
    return [value] if is_weight and value.numel() >= LEAST_WEIGHTS else []
