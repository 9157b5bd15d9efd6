"""A torch network behind the service's own kernels, and explanations of it in this process."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from service.artefacts.deployed import DeployedArtefact, TorchOutputs
from service.catalog.inputs.image import ImageInputs
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.inputs.tokens import TokenInputs
from service.catalog.outputs.classes import Classes
from service.catalog.outputs.kind import OutputKind
from service.domain import (
    BaselineChoice,
    ChunkShapes,
    Explanation,
    Floats,
    ModelKey,
    OptionValue,
    OutputSpace,
    Plan,
)
from service.engine.graph.traits import traits_of
from service.engine.kernels.gradient import GradientKernel
from service.engine.kernels.kernel import DeployedKernel, Segment, slots_of
from service.engine.worker.device import DeviceModel
from service.engine.worker.explanation import explain
from service.engine.worker.model_kernels import DEPLOYED_ROWS, kernels_of
from service.engine.worker.prepared_baselines import prepare_baseline
from service.methods.questions import Points, Question
from service.methods.registry import BY_NAME
from service.numerics.links import SOFTMAX

KEY = ModelKey("network", "1", "sha256:network")
SET = "sha256:own"
CPU = torch.device("cpu")
SHAPES = ChunkShapes(4, 64)


class DeployedNetwork(DeployedArtefact):
    """Deployed outputs from a torch network, where there is no artefact."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        self._network, self._shape = network, shape

    def outputs(self, rows: NDArray[np.float32]) -> Mapping[OutputSpace, NDArray[np.float32]]:
        with torch.inference_mode():
            logits = self._network(torch.from_numpy(rows).reshape(-1, *self._shape))
            return {
                OutputSpace.LOGIT: logits.numpy(),
                OutputSpace.PROBABILITY: torch.softmax(logits, dim=1).numpy(),
            }


def device_model(
    network: nn.Module,
    baselines: Floats,
    shapes: ChunkShapes = SHAPES,
    lowest: float = -1.0,
    outputs: OutputKind | None = None,
) -> DeviceModel:
    """`network` from rows [n, ...shape] to logits, as a model on the CPU with one baseline set [K, ...shape].

    It is traced by `torch.fx`, and its own answers stand in for a deployed artefact's. Inputs range from `lowest` to 1.
    Its `outputs` are classes unless it is said what they are.
    """
    network = network.float().eval().requires_grad_(requires_grad=False)
    twin, shape = fx.symbolic_trace(network), baselines.shape[1:]
    axes = {1: TabularInputs.axes, 2: TokenInputs.axes, 3: ImageInputs.axes}[len(shape)]
    with torch.no_grad():
        labels = network(torch.zeros(1, *shape)).shape[1]
    link = SOFTMAX if outputs is None else outputs.network_link
    traits = replace(traits_of(twin, axes, shape, labels), link=link)
    own = DeployedNetwork(network, shape) if outputs is None else TorchOutputs(twin, CPU, shape, outputs)
    deployed = DeployedKernel(own, DEPLOYED_ROWS)
    kernels = kernels_of(twin, CPU, shapes, traits, deployed)
    prepared = prepare_baseline(baselines.reshape(len(baselines), -1), deployed, None)
    low, high = np.full(prepared.rows.shape[1], lowest), np.ones(prepared.rows.shape[1])
    kind = outputs or Classes(labels=tuple(f"label {n}" for n in range(max(2, labels))), link="softmax")
    inputs = TabularInputs.model_construct(kind="tabular", features=())
    manifest = cast(Any, SimpleNamespace(inputs=inputs, outputs=kind))  # all that is read of one
    return DeviceModel(KEY, manifest, kernels, lambda _: kernels, {SET: prepared}, traits, low, high, 0.0)


def with_gelu(model: DeviceModel, shapes: ChunkShapes = SHAPES) -> DeviceModel:
    """A table's model with GELU in the place of ReLU: smooth, but for the clipping of outlying inputs."""
    gradient = model.kernels[Points][0]
    assert isinstance(gradient, GradientKernel)
    twin = copy.deepcopy(gradient.network.twin)
    for name, module in list(twin.named_children()):
        if isinstance(module, nn.ReLU):
            setattr(twin, name, nn.GELU())
    twin.recompile()
    deployed = DeployedKernel(DeployedNetwork(twin, model.traits.shape), DEPLOYED_ROWS)
    traits = traits_of(twin, TabularInputs.axes, model.traits.shape, model.traits.labels)
    kernels = kernels_of(twin, CPU, shapes, traits, deployed)
    baselines = {digest: prepare_baseline(known.rows, deployed, None) for digest, known in model.baselines.items()}
    return replace(model, kernels=kernels, baselines=baselines, traits=traits)


def explained(
    model: DeviceModel,
    row: Floats,
    method: str,
    space: OutputSpace,
    tolerance: float,
    options: dict[str, OptionValue] | None = None,
    max_evaluations: int = 65_536,
    target: int | None = None,
    questions: list[Question] | None = None,
) -> Explanation:
    """The explanation of `target`, or of the predicted label, at `row`; `questions` takes what the method asked."""
    plan = Plan(
        model=KEY,
        method=method,
        options=tuple(sorted({**BY_NAME[method].defaults(), **(options or {})}.items())),
        input=tuple(row.ravel().tolist()),
        target=target,
        output_space=space,
        baseline=BaselineChoice("own", "1", SET, len(model.baselines[SET].rows)),
        tolerance=tolerance,
        max_evaluations=max_evaluations,
        seed=0,
        floor=1e-9,
    )
    steps = explain(plan, model)
    question = next(steps)
    while True:
        if questions is not None:
            questions.append(cast(Question, question))
        kernel = model.kernels.of(question)
        bounds = range(0, slots_of(question), kernel.capacity)
        parts = [kernel.run([Segment(question, at, min(at + kernel.capacity, slots_of(question)))])[0] for at in bounds]
        try:
            question = steps.send(kernel.join(parts))
        except StopIteration as stop:
            explanation: Explanation = stop.value
            return explanation
