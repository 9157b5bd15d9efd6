"""The loan model on a device, its GELU sibling, a scheduler in this process, and slow independent float64 references.

The references read the network from `model.onnx` themselves. Nothing in them is shared with the service.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from torch import Tensor, nn

from service.artefacts.loading import baseline_digest
from service.catalog.calibrations import Calibration
from service.catalog.inputs.image import ImageInputs
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.inputs.tokens import TokenInputs
from service.catalog.outputs.kind import OutputKind
from service.catalog.traits import Traits
from service.domain import (
    BaselineChoice,
    ChunkShapes,
    Explanation,
    Floats,
    Indices,
    OptionValue,
    OutputSpace,
    Plan,
    Priority,
    Target,
)
from service.engine.messages import Done
from service.engine.worker.device import DeviceModel, put_on_device
from service.engine.worker.explanation import explain
from service.engine.worker.packing import Live
from service.engine.worker.scheduler import Scheduler
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import (
    Answer,
    Breakpoints,
    Curvatures,
    DeadlinePassed,
    Evaluated,
    Forwards,
    HessianRows,
    Pieces,
    Points,
    Question,
    Readout,
    Rows,
)
from service.methods.registry import BY_NAME
from service.numerics.cells import Grouping, LocalErrors, Stencils
from service.numerics.panels import PanelErrors, Panels, vector_errors
from tests.accuracy.engine import device_model, with_gelu
from tests.conftest import MODELS

torch.set_num_threads(1)  # as in a worker; two that wait for each other compute for longer, and more of it

FOLDER = MODELS / "loan" / "1"
SHAPES = ChunkShapes(128, 512)
SMALL = ChunkShapes(16, 64)

Run = Callable[[DeviceModel, Sequence[Plan]], list[Explanation]]
Attributions = dict[OutputSpace, Floats]


def run_in_process(model: DeviceModel, plans: Sequence[Plan]) -> list[Explanation]:
    """The explanations of `plans`, all of them under way at once."""
    scheduler = Scheduler()
    for task, plan in enumerate(plans):
        own = model.for_plan(plan)
        live = Live(task, explain(plan, own), own.kernels, str(model.key), Priority.INTERACTIVE, None, time.monotonic())
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
    """The loan model."""
    return put_on_device(FOLDER, torch.device("cpu"), {}, Calibration(SHAPES))


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


@pytest.fixture(scope="session")
def gelu_model(model: DeviceModel) -> DeviceModel:
    """The loan network with GELU in the place of ReLU: smooth, but for the clipping of outlying inputs."""
    return with_gelu(model, SHAPES)


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

PLAIN = Traits(
    axes=TabularInputs.axes,
    shape=(0,),
    labels=0,
    obstacle="not looked for",
    kinks=("not looked for",),
    has_relu=True,
    has_convolution=False,
    biases_obstacle="not looked for",
)


@pytest.fixture(scope="session")
def pose() -> Pose:
    """Poses a problem about a float64 network; keywords replace its fields, and `traits` fields of its traits.

    `x` [...shape] and `baselines` [K, ...shape] have the shape that the network takes; the problem's are flat.
    """

    def make(
        network: Network,
        x: Floats,
        baselines: Floats,
        space: OutputSpace = OutputSpace.PROBABILITY,
        rule: str = "auto",
        target: int = 1,
        traits: Mapping[str, object] | None = None,
        **fields: object,
    ) -> Problem:
        center = baselines.mean(axis=0)
        logits = network(torch.from_numpy(np.concatenate([x[None], center[None], baselines])))
        outputs = (logits if space is OutputSpace.LOGIT else torch.softmax(logits, dim=1))[:, target].detach()
        axes = {1: TabularInputs.axes, 2: TokenInputs.axes, 3: ImageInputs.axes}[x.ndim]
        known = {"axes": axes, "shape": x.shape, "labels": logits.shape[1], **(traits or {})}
        problem = Problem(
            input=x.ravel(),
            output=float(outputs[0]),
            baselines=baselines.reshape(len(baselines), -1),
            baseline_outputs=outputs[2:].numpy(),
            center=center.ravel(),
            center_output=float(outputs[1]),
            low=np.zeros(x.size),
            high=np.ones(x.size),
            target=target,
            output_space=space,
            tolerance=0.01,
            floor=0.01,
            max_evaluations=100_000,
            seed=0,
            options={"rule": rule},
            traits=replace(PLAIN, **known),  # type: ignore[arg-type]
        )
        return replace(problem, **fields)  # type: ignore[arg-type]

    return make


@dataclass(frozen=True, slots=True)
class _KnownPoints:
    """Outputs and contributions in plain arrays; see `service.methods.questions.Evaluated`."""

    outputs: Floats
    contributions: Floats

    @property
    def derivatives(self) -> Floats:
        result: Floats = self.contributions.sum(axis=1)
        return result

    def weighted_sum(self, weights: Floats) -> Floats:
        result: Floats = weights @ self.contributions
        return result

    def run_sums(self, lengths: Indices, weights: Floats | None = None) -> Floats:
        weighted = self.contributions if weights is None else weights[:, None] * self.contributions
        return np.stack([run.sum(axis=0) for run in np.split(weighted, np.cumsum(lengths)[:-1])])

    def squares(self) -> Floats:
        result: Floats = (self.contributions**2).sum(axis=0)
        return result

    def vector_errors(self, stencil: Stencils | Panels, grouping: Grouping) -> LocalErrors | PanelErrors:
        return vector_errors(self.contributions, stencil, grouping)

    def joined(self, later: Evaluated) -> _KnownPoints:
        assert isinstance(later, _KnownPoints)
        return _KnownPoints(
            np.concatenate([self.outputs, later.outputs]), np.concatenate([self.contributions, later.contributions])
        )


def index_of(target: Target) -> int:
    """The number of the one output that is explained."""
    assert isinstance(target, int)
    return target


@dataclass(frozen=True, slots=True)
class Plain:
    """Answers questions about a float64 network by plain automatic differentiation.

    The network takes rows of `shape`; None: flat ones.
    """

    network: Network
    shape: tuple[int, ...] | None

    def logits(self, rows: Tensor) -> Tensor:
        """Of flat rows [n, inputs]."""
        return self.network(rows if self.shape is None else rows.reshape(-1, *self.shape))

    def output(self, rows: Tensor, readout: Readout, targets: Indices | int) -> Tensor:
        """The explained output at flat rows [n, inputs]: [n]."""
        logits = self.logits(rows)
        wanted = torch.as_tensor(targets).expand(len(rows))[:, None]
        at_target = logits.gather(1, wanted)[:, 0]
        match readout:
            case Readout.LOGIT:
                return at_target
            case Readout.PROBABILITY:
                return torch.softmax(logits, dim=1).gather(1, wanted)[:, 0]
            case Readout.MARGIN:
                return at_target - logits.gather(1, 1 - wanted)[:, 0]

    def gradients(self, rows: Floats, readout: Readout, targets: Indices | int) -> tuple[Floats, Floats]:
        """Outputs [n] and gradients [n, inputs]."""
        at = torch.from_numpy(rows).requires_grad_()
        outputs = self.output(at, readout, targets)
        (gradients,) = torch.autograd.grad(outputs.sum(), at)
        return outputs.detach().numpy(), gradients.numpy()

    def points(self, points: Points) -> _KnownPoints:
        """The answer to `points`."""
        starts = points.starts[points.line]
        rows = starts + points.alphas[:, None] * (points.end - starts)
        outputs, gradients = self.gradients(rows, points.readout, index_of(points.target))
        return _KnownPoints(outputs, gradients * (points.end - starts))

    def curvatures(self, asked: HessianRows) -> Curvatures:
        """The answer to `asked`; the network is taken as it is, kinks and all."""

        def output(rows: Tensor) -> Tensor:
            return self.output(rows, asked.readout, index_of(asked.target)).sum()

        outputs, gradients = self.gradients(asked.rows, asked.readout, index_of(asked.target))
        pair = torch.from_numpy(asked.rows), torch.from_numpy(asked.vectors)
        _, products = torch.autograd.functional.hvp(output, *pair)  # type: ignore[no-untyped-call]
        return Curvatures(outputs, gradients, products.numpy())

    def forwards(self, asked: Forwards) -> dict[OutputSpace, Floats]:
        """The answer to `asked`."""
        logits = self.logits(torch.from_numpy(asked.rows)).detach()
        return {OutputSpace.LOGIT: logits.numpy(), OutputSpace.PROBABILITY: torch.softmax(logits, dim=1).numpy()}


def _scanned_pieces(plain: Plain, line: Breakpoints, most: int | None) -> Pieces:
    """Bends found by comparing gradients at 1,001 points and halving the intervals over which they differ."""

    def slopes(alphas: Floats) -> Floats:
        columns = []
        for label in range(plain.logits(torch.from_numpy(line.start[None])).shape[1]):
            one_line = np.zeros(len(alphas), dtype=np.intp)
            points = Points(line.start[None], line.end, one_line, alphas, Readout.LOGIT, label)
            columns.append(plain.points(points).derivatives)
        return np.stack(columns, axis=1)

    scan = np.linspace(0, 1, 1001)
    at = slopes(scan)
    (changes,) = np.nonzero(np.abs(np.diff(at, axis=0)).max(axis=1) > 1e-9)
    low, bends = scan[changes], scan[changes + 1]
    for _ in range(40 if len(changes) else 0):
        middle = (low + bends) / 2
        unchanged = np.isclose(slopes(middle), at[changes], rtol=0, atol=1e-9).all(axis=1)
        low, bends = np.where(unchanged, middle, low), np.where(unchanged, bends, middle)
    alphas = np.array([0.0, *bends, 1.0])
    if most is not None and len(alphas) - 1 > most:
        return Pieces(None, None)
    rows = line.start + alphas[:, None] * (line.end - line.start)
    return Pieces(alphas, plain.forwards(Forwards(rows))[OutputSpace.LOGIT])


@pytest.fixture(scope="session")
def drive() -> Drive:
    """Drives a method on a float64 network that takes rows of `shape`; its deadline passes after `answers` answers."""

    def to_the_end(
        method: Method,
        network: Network,
        answers: int | None = None,
        most_pieces: int | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Attribution:
        plain = Plain(network, shape)
        given = 0
        question = next(method)
        try:
            while given != answers:
                question = method.send(_answer(plain, question, most_pieces))
                given += 1
            method.throw(DeadlinePassed())
        except StopIteration as stop:
            attribution: Attribution = stop.value
            return attribution
        raise AssertionError("the method went on after its deadline")

    return to_the_end


def _answer(plain: Plain, question: Question, most_pieces: int | None) -> Answer:
    match question:
        case Points():
            return plain.points(question)
        case Rows():
            return _KnownPoints(*plain.gradients(question.rows, question.readout, question.targets))
        case HessianRows():
            return plain.curvatures(question)
        case Forwards():
            return plain.forwards(question)
        case Breakpoints():
            return _scanned_pieces(plain, question, most_pieces)
    raise AssertionError(f"{type(question).__name__} needs the engine: use `model_of`")


ModelOf = Callable[..., DeviceModel]
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def model_of(model: DeviceModel) -> ModelOf:
    """Puts a torch network behind the real kernels: `model_of(network, baselines)`, baselines [K, ...shape].

    See `tests.accuracy.engine`. Explain with `run(model, [plan_for(model, x, method, ...)])`.
    """

    def make(
        network: nn.Module, baselines: Floats, shapes: ChunkShapes = SMALL, outputs: OutputKind | None = None
    ) -> DeviceModel:
        manifest = model.manifest if outputs is None else model.manifest.model_copy(update={"outputs": outputs})
        return replace(device_model(network, baselines, shapes, 0.0, outputs), key=model.key, manifest=manifest)

    return make


PlanFor = Callable[..., Plan]


@pytest.fixture(scope="session")
def plan_for() -> PlanFor:
    """Makes a plan for a model of `model_of`: `plan_for(model, x, "saliency", target=2, options={...})`.

    Options that are not named have their defaults; other keywords replace fields of the plan.
    """

    def make(
        model: DeviceModel, x: Floats, method: str, options: Mapping[str, OptionValue] | None = None, **fields: object
    ) -> Plan:
        size = len(model.baselines["sha256:own"].rows)
        plan = Plan(
            model=model.key,
            method=method,
            options=tuple(sorted({**BY_NAME[method].defaults(), **(options or {})}.items())),
            input=tuple(x.ravel().tolist()),
            target=1,
            output_space=OutputSpace.LOGIT,
            baseline=BaselineChoice("own", "1", "sha256:own", size),
            tolerance=0.01,
            max_evaluations=65_536,
            seed=0,
            floor=None,
        )
        return replace(plan, **fields)  # type: ignore[arg-type]

    return make


TOKENS = 6
VOCABULARY = 20


@pytest.fixture(scope="session")
def token_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version folder of a small model over tokens: embedding, positions, a tanh layer for each, mean, two labels."""
    draws = np.random.default_rng(5)
    sizes = {"table": (VOCABULARY, 4), "places": (TOKENS, 4), "inner": (4, 8), "outer": (8, 2)}
    constants = {name: draws.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["embedded"], axis=0),
        helper.make_node("Add", ["embedded", "places"], ["placed"]),
        helper.make_node("MatMul", ["placed", "inner"], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["bent"]),
        helper.make_node("ReduceMean", ["bent"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "outer"], ["logit"]),
        helper.make_node("Softmax", ["logit"], ["probability"], axis=1),
    ]
    given = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["rows", TOKENS])
    answers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in ("logit", "probability")]
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tokens", [given], answers, stored)
    content = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    folder = tmp_path_factory.mktemp("models") / "words" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    manifest = {
        "name": "words",
        "version": "1",
        "title": "Words",
        "artefact": {"file": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()},
        "inputs": {
            "kind": "tokens",
            "tensor": "tokens",
            "length": TOKENS,
            "vocabulary": VOCABULARY,
            "padding": 0,
            "mask": 1,
            "special": [2, 3],
        },
        "outputs": {
            "labels": ["no", "yes"],
            "link": "softmax",
            "tensors": {"logit": "logit", "probability": "probability"},
        },
        "defaults": {"baseline": "mask"},
        "example": [2, 7, 9, 12, 3],
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder


@pytest.fixture(scope="session")
def token_model(token_folder: Path) -> DeviceModel:
    """The model of `token_folder`."""
    return put_on_device(token_folder, torch.device("cpu"), {}, Calibration(SMALL))
