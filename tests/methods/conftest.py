"""The loan model on a device, its GELU sibling, a scheduler in this process, and slow independent float64 references.

The references read the network from `model.onnx` themselves. Nothing in them is shared with the service.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file
from torch import Tensor, nn

from service.catalog.loading import DeployedArtefact, baseline_digest
from service.domain import BaselineChoice, ChunkShapes, Explanation, Floats, Indices, OutputSpace, Plan, Priority
from service.engine.device import DEPLOYED_ROWS, DeviceModel, prepare_baseline, put_on_device
from service.engine.explanation import explain
from service.engine.gradient import GradientKernel
from service.engine.kernels import Deployed, DeployedKernel, Kernels
from service.engine.messages import Done
from service.engine.scheduler import Live, Scheduler
from service.methods.oracle import (
    Attribution,
    Breakpoints,
    DeadlinePassed,
    Evaluated,
    Method,
    Pieces,
    Points,
    Problem,
    Readout,
)

FOLDER = Path(__file__).parents[2] / "models" / "loan" / "1"
SHAPES = ChunkShapes(128, 512)

Run = Callable[[DeviceModel, Sequence[Plan]], list[Explanation]]
Attributions = dict[OutputSpace, Floats]


def run_in_process(model: DeviceModel, plans: Sequence[Plan]) -> list[Explanation]:
    """The explanations of `plans`, all of them under way at once."""
    scheduler = Scheduler()
    for task, plan in enumerate(plans):
        steps = explain(plan, model)
        live = Live(task, steps, model.kernels, str(model.key), Priority.INTERACTIVE, None, time.monotonic())
        scheduler.add(live)
    results: dict[int, Explanation] = {}
    while scheduler:
        scheduler.step()
        for outcome in scheduler.outcomes():
            assert isinstance(outcome, Done), outcome
            assert isinstance(outcome.result, Explanation)
            results[outcome.task] = outcome.result
    return [results[task] for task in range(len(plans))]


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs plans on a model through the real scheduler."""
    return run_in_process


@pytest.fixture(scope="session")
def model() -> DeviceModel:
    """The loan model, on one thread as in a worker."""
    torch.set_num_threads(1)
    return put_on_device(FOLDER, torch.device("cpu"), {}, SHAPES)


@pytest.fixture(scope="session")
def model_file() -> str:
    """The artefact in production."""
    return str(FOLDER / "model.onnx")


@pytest.fixture(scope="session")
def heldout() -> Floats:
    """The 389 rows that were held out of training."""
    rows: Floats = load_file(FOLDER / "heldout.safetensors")["rows"].astype(np.float64)
    return rows


@pytest.fixture(scope="session")
def training_baselines() -> NDArray[np.float32]:
    """The 128 rows of the baseline set `training`."""
    (rows,) = load_file(FOLDER / "baselines" / "training.safetensors").values()
    result: NDArray[np.float32] = rows
    return result


PlanMaker = Callable[..., list[Plan]]


@pytest.fixture(scope="session")
def plans(model: DeviceModel) -> PlanMaker:
    """Makes one plan a row against the baseline set `training`; keywords replace fields of the plan."""
    (chosen,) = [baseline for baseline in model.manifest.baselines if baseline.name == "training"]
    baseline = BaselineChoice(chosen.name, chosen.version, baseline_digest(chosen), chosen.size)

    def make(rows: Floats, method: str = "integrated_gradients", rule: str = "auto", **fields: object) -> list[Plan]:
        options = (("rule", rule),) if method == "integrated_gradients" else ()
        plan = Plan(model.key, method, options, (), 1, OutputSpace.PROBABILITY, baseline, 0.01, 4096, 0, None)
        return [replace(plan, input=tuple(row.tolist()), **fields) for row in rows]  # type: ignore[arg-type]

    return make


class _SameNetwork(DeployedArtefact):
    """Deployed ends from a torch network, where there is no artefact."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def outputs(self, rows: NDArray[np.float32]) -> Mapping[OutputSpace, NDArray[np.float32]]:
        with torch.no_grad():
            logits = self._network(torch.from_numpy(rows))
        return {OutputSpace.LOGIT: logits.numpy(), OutputSpace.PROBABILITY: torch.softmax(logits, dim=1).numpy()}


@pytest.fixture(scope="session")
def gelu_model(model: DeviceModel) -> DeviceModel:
    """The loan network with GELU in the place of ReLU: smooth, but for the clipping of outlying inputs."""
    gradient = model.kernels[Points][0]
    assert isinstance(gradient, GradientKernel)
    twin = copy.deepcopy(gradient._twin)
    for name, module in list(twin.named_children()):
        if isinstance(module, nn.ReLU):
            setattr(twin, name, nn.GELU())
    deployed = DeployedKernel(_SameNetwork(twin), DEPLOYED_ROWS)
    gradients = [GradientKernel(twin, torch.device("cpu"), rows, 2) for rows in (SHAPES.brief, SHAPES.long)]
    kernels = Kernels({Deployed: [deployed], Points: gradients})
    baselines = {digest: prepare_baseline(known.rows, deployed, None) for digest, known in model.baselines.items()}
    return replace(model, kernels=kernels, baselines=baselines, obstacle="GELU")


@dataclass(frozen=True, slots=True)
class Reference:
    """The loan network in float64, with path integrals taken by other means than the service's.

    Attributions are of label 1, in both output spaces, for each line from `starts` to `ends` [lines, inputs].
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    deviation: Tensor
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def logits(self, rows: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        values = (torch.minimum(torch.maximum(rows, self.low), self.high) - self.mean) / self.deviation
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            values = activation(values @ weight.T + bias)
        return values @ self.weights[-1].T + self.biases[-1]

    def walked(self, starts: Floats, ends: Floats) -> Attributions:
        """The ReLU network's exact integrals: each line is walked from kink to kink.

        At a point just behind a kink every unit's value and slope along the line are known, so the next kink is the
        nearest of their zeros.
        """
        start, direction = torch.from_numpy(starts), torch.from_numpy(ends - starts)
        logit, probability = torch.zeros_like(start), torch.zeros_like(start)
        alpha, live = torch.zeros(len(start), dtype=torch.float64), torch.arange(len(start))
        while len(live):
            for chunk in torch.tensor_split(live, len(live) // 4096 + 1):
                self._walk_one_piece(start[chunk], direction[chunk], chunk, alpha, logit, probability)
            live = live[alpha[live] < 1]
        return {OutputSpace.LOGIT: logit.numpy(), OutputSpace.PROBABILITY: probability.numpy()}

    def _walk_one_piece(
        self, start: Tensor, direction: Tensor, at: Tensor, alpha: Tensor, logit: Tensor, probability: Tensor
    ) -> None:
        from_alpha = alpha[at]
        behind = from_alpha + 1e-10
        point = start + behind[:, None] * direction
        value, slope = point, direction
        until = torch.ones_like(behind)
        gates = []
        for threshold in (self.low, self.high):
            until = torch.minimum(until, _next_zero(behind, point - threshold, direction))
        inside = (point > self.low) & (point < self.high)
        gates.append(inside / self.deviation)
        value = (torch.minimum(torch.maximum(point, self.low), self.high) - self.mean) / self.deviation
        slope = direction * gates[0]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            value, slope = value @ weight.T + bias, slope @ weight.T
            until = torch.minimum(until, _next_zero(behind, value, slope))
            gates.append((value > 0).double())
            value, slope = value * gates[-1], slope * gates[-1]
        margin_weight = self.weights[-1][1] - self.weights[-1][0]
        margin = value @ margin_weight + self.biases[-1][1] - self.biases[-1][0]
        margin_slope = slope @ margin_weight
        length = until - from_alpha
        # Sixteen Gauss nodes for sigmoid' over the piece.
        nodes, node_weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(16))
        shares = (nodes + 1) / 2
        steps = (from_alpha - behind)[:, None] + length[:, None] * shares
        sigmoid = torch.sigmoid(margin[:, None] + margin_slope[:, None] * steps)
        bend = length * ((sigmoid * (1 - sigmoid)) @ node_weights) / 2
        logit[at] += length[:, None] * direction * self._gradient(self.weights[-1][1], gates)
        probability[at] += bend[:, None] * direction * self._gradient(margin_weight, gates)
        alpha[at] = until

    def _gradient(self, cotangent: Tensor, gates: list[Tensor]) -> Tensor:
        gradient = cotangent.expand(len(gates[0]), -1)
        for weight, gate in zip(reversed(self.weights[:-1]), reversed(gates[1:]), strict=True):
            gradient = (gradient * gate) @ weight
        return gradient * gates[0]

    def midpoints(self, starts: Floats, ends: Floats, nodes: int) -> Attributions:
        """The ReLU network's integrals by `nodes` midpoints on each line, gradients by autograd."""
        alphas = (np.arange(nodes) + 0.5) / nodes
        line = np.full((len(starts), nodes), alphas)
        return self._sums(starts, ends, line, np.full_like(line, 1 / nodes), torch.relu)

    def gelu(self, starts: Floats, ends: Floats, nodes: int) -> Attributions:
        """The GELU network's integrals: `nodes` Gauss nodes between any two bends of the clipping."""
        direction = ends - starts
        with np.errstate(divide="ignore", invalid="ignore"):
            bends = np.concatenate([(limit.numpy() - starts) / direction for limit in (self.low, self.high)], axis=1)
        bends = np.sort(np.where((bends > 0) & (bends < 1), bends, 1.0), axis=1)
        bends = bends[:, : int((bends < 1).sum(axis=1).max()) + 1]
        edges = np.concatenate([np.zeros((len(starts), 1)), bends, np.ones((len(starts), 1))], axis=1)
        lengths = np.diff(edges, axis=1)[..., None]
        at, weights = np.polynomial.legendre.leggauss(nodes)
        alphas = edges[:, :-1, None] + lengths * (at + 1) / 2
        return self._sums(
            starts,
            ends,
            alphas.reshape(len(starts), -1),
            (lengths * weights / 2).reshape(len(starts), -1),
            nn.functional.gelu,
        )

    def _sums(
        self, starts: Floats, ends: Floats, alphas: Floats, weights: Floats, activation: Callable[[Tensor], Tensor]
    ) -> Attributions:
        logit, probability = np.empty_like(starts), np.empty_like(starts)
        for k in range(len(starts)):
            used = weights[k] > 0
            at, weight = torch.from_numpy(alphas[k, used]), torch.from_numpy(weights[k, used])
            direction = torch.from_numpy(ends[k] - starts[k])
            points = torch.from_numpy(starts[k]) + at[:, None] * direction
            points.requires_grad_()
            logits = self.logits(points, activation)
            chance = torch.softmax(logits, dim=1)[:, 1]
            (of_logit,) = torch.autograd.grad(logits[:, 1] @ weight, points, retain_graph=True)
            (of_probability,) = torch.autograd.grad(chance @ weight, points)
            logit[k] = (direction * of_logit.sum(dim=0)).numpy()
            probability[k] = (direction * of_probability.sum(dim=0)).numpy()
        return {OutputSpace.LOGIT: logit, OutputSpace.PROBABILITY: probability}


def _next_zero(behind: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """Where, after `behind`, the first of value + slope * step becomes zero; infinite where none does."""
    zero = behind[:, None] - value / slope
    return torch.where(value * slope < 0, zero, torch.inf).amin(dim=1)


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The loan network as written in `model.onnx`, in float64."""
    graph = onnx.load(FOLDER / "model.onnx").graph
    constants = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float64)) for tensor in graph.initializer
    }
    weights = tuple(constants[f"weight_{k}"] for k in (1, 2, 3))
    biases = tuple(constants[f"bias_{k}"] for k in (1, 2, 3))
    return Reference(constants["low"], constants["high"], constants["mean"], constants["deviation"], weights, biases)


Network = Callable[[Tensor], Tensor]
Pose = Callable[..., Problem]
Drive = Callable[..., Attribution]


@pytest.fixture(scope="session")
def pose() -> Pose:
    """Poses a problem about label 1 of a float64 network; keywords replace its fields."""

    def make(
        network: Network,
        x: Floats,
        baselines: Floats,
        space: OutputSpace = OutputSpace.PROBABILITY,
        rule: str = "auto",
        **fields: object,
    ) -> Problem:
        center = baselines.mean(axis=0)
        logits = network(torch.from_numpy(np.concatenate([x[None], center[None], baselines])))
        outputs = logits[:, 1] if space is OutputSpace.LOGIT else torch.softmax(logits, dim=1)[:, 1]
        problem = Problem(
            input=x,
            output=float(outputs[0]),
            baselines=baselines,
            baseline_outputs=outputs[2:].numpy(),
            center=center,
            center_output=float(outputs[1]),
            target=1,
            labels=logits.shape[1],
            output_space=space,
            tolerance=0.01,
            floor=0.01,
            max_evaluations=100_000,
            seed=0,
            options={"rule": rule},
            is_piecewise_linear=False,
            has_kinks=True,
        )
        return replace(problem, **fields)  # type: ignore[arg-type]

    return make


@dataclass(frozen=True, slots=True)
class _KnownPoints:
    """Outputs and contributions in plain arrays; see `service.methods.oracle.Evaluated`."""

    outputs: Floats
    contributions: Floats

    @property
    def derivatives(self) -> Floats:
        result: Floats = self.contributions.sum(axis=1)
        return result

    def weighted_sum(self, weights: Floats) -> Floats:
        result: Floats = weights @ self.contributions
        return result

    def group_sums(self, weights: Floats, group: Indices, groups: int) -> Floats:
        sums = np.zeros((groups, self.contributions.shape[1]))
        np.add.at(sums, group, weights[:, None] * self.contributions)
        return sums

    def joined(self, later: Evaluated) -> _KnownPoints:
        assert isinstance(later, _KnownPoints)
        return _KnownPoints(
            np.concatenate([self.outputs, later.outputs]), np.concatenate([self.contributions, later.contributions])
        )


def _gradients(network: Network, points: Points) -> _KnownPoints:
    starts = points.starts[points.line]
    rows = torch.from_numpy(starts + points.alphas[:, None] * (points.end - starts)).requires_grad_()
    logits = network(rows)
    at_target = logits[:, points.target]
    match points.readout:
        case Readout.LOGIT:
            outputs = at_target
        case Readout.PROBABILITY:
            outputs = torch.softmax(logits, dim=1)[:, points.target]
        case Readout.MARGIN:
            outputs = at_target - logits[:, 1 - points.target]
    (gradients,) = torch.autograd.grad(outputs.sum(), rows)
    return _KnownPoints(outputs.detach().numpy(), gradients.numpy() * (points.end - starts))


def _scanned_pieces(network: Network, line: Breakpoints, most: int | None) -> Pieces:
    """Bends found by comparing gradients at 1,001 points and halving the intervals over which they differ."""

    def slopes(alphas: Floats) -> Floats:
        columns = []
        for label in range(network(torch.from_numpy(line.start[None])).shape[1]):
            one_line = np.zeros(len(alphas), dtype=np.intp)
            points = Points(line.start[None], line.end, one_line, alphas, Readout.LOGIT, label)
            columns.append(_gradients(network, points).derivatives)
        return np.stack(columns, axis=1)

    scan = np.linspace(0, 1, 1001)
    at = slopes(scan)
    bends = []
    for k in np.flatnonzero(np.abs(np.diff(at, axis=0)).max(axis=1) > 1e-9):
        low, high = scan[k], scan[k + 1]
        for _ in range(40):
            middle = (low + high) / 2
            unchanged = np.allclose(slopes(np.array([middle])), at[k], rtol=0, atol=1e-9)
            low, high = (middle, high) if unchanged else (low, middle)
        bends.append(high)
    alphas = np.array([0.0, *bends, 1.0])
    if most is not None and len(alphas) - 1 > most:
        return Pieces(None, None)
    rows = line.start + alphas[:, None] * (line.end - line.start)
    return Pieces(alphas, network(torch.from_numpy(rows)).numpy())


@pytest.fixture(scope="session")
def drive() -> Drive:
    """Drives a method on a float64 network; its deadline passes after `answers` answers."""

    def to_the_end(
        method: Method, network: Network, answers: int | None = None, most_pieces: int | None = None
    ) -> Attribution:
        given = 0
        question = next(method)
        try:
            while given != answers:
                if isinstance(question, Points):
                    question = method.send(_gradients(network, question))
                else:
                    question = method.send(_scanned_pieces(network, question, most_pieces))
                given += 1
            method.throw(DeadlinePassed())
        except StopIteration as stop:
            attribution: Attribution = stop.value
            return attribution
        raise AssertionError("the method went on after its deadline")

    return to_the_end
