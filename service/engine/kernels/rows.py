"""Kernels for what differs from the plain gradient: rules of backward passes, feature maps, biases, Hessians.

They take rows one by one, at one fixed shape each, and are built when a request first needs them. The rows of all
requests share their chunks, whatever their targets, readouts and options.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from service.artefacts.sizes import no_rows
from service.domain import Floats
from service.engine.graph.operators import operator_of
from service.engine.graph.traits import adding_nodes, is_relu, last_feature_maps, space_of, varying_nodes
from service.engine.kernels.evaluated import EvaluatedPoints, joined
from service.engine.kernels.kernel import Kernel, Segment, filled_up, question_of
from service.engine.kernels.network import Network
from service.engine.kernels.readouts import Linked, linked_of, read_out, readout_coefficients, seeded
from service.methods.questions import (
    BackwardRule,
    BackwardRuleRows,
    BiasMaps,
    Curvatures,
    FeatureMaps,
    HessianRows,
    RowsOfOneTarget,
)

ReadOut = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From the network's numbers for all rows of a chunk to what each explains, and its gradient; see `read_out`."""
SOFTPLUS_BETA = 10.0
MIN_RANGE = 1e-6


class RowsKernel(Kernel):
    """A computation for explicit rows; each subclass says in `_computed` what it computes."""

    name: str

    def __init__(self, network: Network, capacity: int) -> None:
        self.network = network
        self.capacity = capacity

    def run(self, segments: Sequence[Segment]) -> list[object]:
        questions = [question_of(segment, RowsOfOneTarget) for segment in segments]
        counts = [len(segment) for segment in segments]
        rows = self._padded([question.rows[s.start : s.stop] for question, s in zip(questions, segments, strict=True)])
        coefficients, probability = (
            torch.from_numpy(self._repeated(values, counts)).to(self.network.device)
            for values in readout_coefficients(questions, self.network.labels)
        )
        has_contrasts = linked_of(questions) is Linked.CONTRASTS
        linked = Linked.CONTRASTS if has_contrasts else Linked.PROBABILITIES  # never less, as for all other rows
        link = self.network.tensor_link

        def of_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
            return read_out(logits, coefficients, probability, link, linked)

        arrays = self._computed(rows.requires_grad_(), of_logits, segments)
        ends = np.cumsum(counts)
        return [
            self._answer(*(array[end - count : end] for array in arrays))
            for count, end in zip(counts, ends.tolist(), strict=True)
        ]

    def join(self, parts: Sequence[object]) -> object:
        if len(parts) == 1:
            return parts[0]
        fields = [tuple(getattr(part, name) for name in type(part).__slots__) for part in parts]  # type: ignore[attr-defined]
        return type(parts[0])(*(np.concatenate(values) for values in zip(*fields, strict=True)))

    @abstractmethod
    def _computed(self, rows: Tensor, of_logits: ReadOut, segments: Sequence[Segment], /) -> tuple[Any, ...]:
        """The fields of the answer for all rows of the chunk."""

    @abstractmethod
    def _answer(self, *fields: Any) -> object:
        """The answer to a segment from its part of the fields."""

    def _padded(self, parts: Sequence[Floats]) -> Tensor:
        """The rows of all parts, filled up to the chunk: [capacity, ...input]."""
        chunk = filled_up(np.concatenate(parts).astype(self.network.row_type), self.capacity)
        return torch.from_numpy(chunk.reshape(-1, *self.network.shape)).to(self.network.device)

    def _repeated(self, values: Any, counts: Sequence[int]) -> Any:
        """Each segment's entry of `values`, repeated for its rows; the first entry for the padding."""
        number = np.zeros(self.capacity, dtype=np.int64)
        number[: sum(counts)] = np.repeat(np.arange(len(counts)), counts)
        return values[number]


class _BackwardRules(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces the gradient of every ReLU, however it is written, by each row's own backward rule; see `BackwardRule`.

    `rule` and `percentile` are [rows].
    """

    def __init__(self, rule: Tensor, percentile: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rule = rule
        self._percentile = percentile
        self._has_rectified = bool((rule == BackwardRule.RECTIFIED).any())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.threshold_backward.default:
            return self._passed(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _passed(self, gradient: Tensor, output: Tensor) -> Tensor:
        by_row = gradient.reshape(len(self._rule), -1), output.reshape(len(self._rule), -1)
        return self._passed_by_row(*by_row).reshape(gradient.shape)

    def _passed_by_row(self, gradient: Tensor, output: Tensor) -> Tensor:
        rule = self._rule[:, None]
        passed = torch.where((rule == BackwardRule.DECONVNET) | (output > 0), gradient.clamp_min(0), 0)
        if not self._has_rectified:
            return passed
        importance = output * gradient
        threshold = _percentiles(importance, self._percentile)[:, None]
        return torch.where(rule == BackwardRule.RECTIFIED, torch.where(importance > threshold, gradient, 0), passed)


def _percentiles(values: Tensor, percentile: Tensor) -> Tensor:
    """Each row's own `percentile` [rows] of `values` [rows, n], by linear interpolation between neighbours."""
    ascending = values.sort(dim=1).values
    place = percentile / 100 * (values.shape[1] - 1)
    below = place.floor().clamp(0, values.shape[1] - 1).long()[:, None]
    above = (below + 1).clamp_max(values.shape[1] - 1)
    share = (place[:, None] - below).to(values.dtype)
    return torch.lerp(ascending.gather(1, below), ascending.gather(1, above), share)[:, 0]


class BackwardRuleKernel(RowsKernel):
    """Gradients with another backward rule at every ReLU: Deconvnet, Guided Backprop, RectGrad."""

    name = "rule"

    def _computed(self, rows: Tensor, of_logits: ReadOut, segments: Sequence[Segment]) -> tuple[Any, ...]:
        questions = [question_of(segment, BackwardRuleRows) for segment in segments]
        counts = [len(segment) for segment in segments]
        rule = self._repeated(np.array([int(question.rule) for question in questions]), counts)
        percentile = self._repeated(np.array([question.percentile for question in questions]), counts)
        logits = self.network.twin(rows)
        outputs, cotangents = of_logits(logits.detach().double())
        with _BackwardRules(torch.from_numpy(rule).to(rows.device), torch.from_numpy(percentile).to(rows.device)):
            (gradients,) = torch.autograd.grad(seeded(logits, cotangents), rows)
        return _host(outputs), _host(gradients.flatten(1).sum(dim=1, dtype=torch.float64)), gradients

    def _answer(self, *fields: Any) -> object:
        outputs, derivatives, gradients = fields
        return EvaluatedPoints(outputs, derivatives, (gradients,))

    def join(self, parts: Sequence[object]) -> object:
        return joined(parts)


class _Watched(fx.Interpreter):
    """Runs a network and keeps the values of the `watched` nodes; later nodes get copies, which they may change in
    place."""

    def __init__(self, network: fx.GraphModule, watched: Sequence[fx.Node]) -> None:
        super().__init__(network, garbage_collect_values=True)
        self._watched = set(watched)
        self.seen: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n not in self._watched:
            return value
        self.seen[n] = value
        return value.clone() if isinstance(value, Tensor) else value


class LayerKernel(RowsKernel):
    """The last convolution's feature maps, and the gradients of the output with respect to them."""

    name = "feature_maps"

    def __init__(self, network: Network, capacity: int) -> None:
        super().__init__(network, capacity)
        node = last_feature_maps(network.twin, network.shape)
        assert node is not None, "no request for this method comes to a network without a convolution"
        self._node: fx.Node = node

    def _computed(self, rows: Tensor, of_logits: ReadOut, _segments: Sequence[Segment]) -> tuple[Any, ...]:
        watched = _Watched(self.network.twin, [self._node])
        logits = watched.run(rows)
        outputs, cotangents = of_logits(logits.detach().double())
        maps = watched.seen[self._node]
        (gradients,) = torch.autograd.grad(seeded(logits, cotangents), maps)
        return _host(outputs), _host(maps.detach().double()), _host(gradients.double())

    def _answer(self, *fields: Any) -> object:
        return FeatureMaps(*fields)


class BiasKernel(RowsKernel):
    """What every bias adds to the output, by FullGrad's decomposition.

    A bias is the output of an affine operator for zeros: the bias of a linear layer or a convolution, the implicit one
    of a batch norm, an added constant. Its product with the gradient at that output is the paper's bias gradient.
    """

    name = "bias_gradients"

    def __init__(self, network: Network, capacity: int) -> None:
        super().__init__(network, capacity)
        self._biases = _biases(network)

    def _computed(self, rows: Tensor, of_logits: ReadOut, _segments: Sequence[Segment]) -> tuple[Any, ...]:
        watched = _Watched(self.network.twin, list(self._biases))
        logits = watched.run(rows)
        outputs, cotangents = of_logits(logits.detach().double())
        values = [watched.seen[node] for node in self._biases]
        gradients, *at_biases = torch.autograd.grad(seeded(logits, cotangents), [rows, *values], materialize_grads=True)
        space = space_of(self.network.shape)
        totals = rows.new_zeros(len(rows), dtype=torch.float64)
        maps = rows.new_zeros(len(rows), *space)
        for gradient, bias in zip(at_biases, self._biases.values(), strict=True):
            added = gradient * bias
            totals += added.flatten(1).sum(dim=1, dtype=torch.float64)
            if added.dim() == 2 + len(space):
                maps += _enlarged(_between_zero_and_one(added.abs()), space).sum(dim=1)
        return (
            _host(outputs),
            _host(gradients.flatten(1).double()),
            _host(totals),
            _host(maps.flatten(1).double()),
        )

    def _answer(self, *fields: Any) -> object:
        return BiasMaps(*fields)


def _biases(network: Network) -> dict[fx.Node, Tensor]:
    """By operator, its output for zeros, [1, ...output]; operators whose bias is zero are left out."""
    nodes, varying = adding_nodes(network.twin), varying_nodes(network.twin)
    watched = _Watched(network.twin, [used for node in nodes for used in node.all_input_nodes])
    biases = {}
    with torch.no_grad():
        watched.run(no_rows(network.twin, 1, network.shape, network.device))
        known = {node: torch.zeros_like(value) if node in varying else value for node, value in watched.seen.items()}
        for node in nodes:
            arguments, keywords = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            bias = getattr(watched, node.op)(node.target, arguments, keywords)
            if bias.any():
                biases[node] = bias
    return biases


def _between_zero_and_one(values: Tensor) -> Tensor:
    """Each row's values, shifted and scaled to reach from zero to one."""
    by_row = (-1, *[1] * (values.dim() - 1))
    low, high = (limit.reshape(by_row) for limit in values.flatten(1).aminmax(dim=1))
    return (values - low) / (high - low + MIN_RANGE)


def _enlarged(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    modes = {1: "linear", 2: "bilinear", 3: "trilinear"}
    return functional.interpolate(maps, size=size, mode=modes[len(size)], align_corners=True)


class HessianKernel(RowsKernel):
    """Hessian-vector products by differentiating the gradient; softplus stands in for every ReLU."""

    name = "hessian"

    def __init__(self, network: Network, capacity: int) -> None:
        super().__init__(replace(network, twin=_softened(network.twin)), capacity)

    def _computed(self, rows: Tensor, of_logits: ReadOut, segments: Sequence[Segment]) -> tuple[Any, ...]:
        vectors = self._padded([question_of(s, HessianRows).vectors[s.start : s.stop] for s in segments])
        outputs, _ = of_logits(self.network.twin(rows).double())
        (gradients,) = torch.autograd.grad(outputs.sum(), rows, create_graph=True)
        products = torch.zeros_like(rows)
        if gradients.requires_grad:  # it does not where the output is linear in the input
            (products,) = torch.autograd.grad((gradients * vectors).sum(), rows, allow_unused=True)
        products = torch.zeros_like(rows) if products is None else products
        return _host(outputs), _host(gradients.flatten(1).double()), _host(products.flatten(1).double())

    def _answer(self, *fields: Any) -> object:
        return Curvatures(*fields)


def _softened(network: fx.GraphModule) -> fx.GraphModule:
    """The network with every ReLU replaced by softplus(beta x) / beta; the same where it has none."""
    softened = deepcopy(network)
    for node in softened.graph.nodes:
        operator = operator_of(softened, node)
        if operator is not None and is_relu(operator):
            node.op, node.target = "call_function", functional.softplus
            node.args, node.kwargs = tuple(node.all_input_nodes), {"beta": SOFTPLUS_BETA}
    softened.recompile()
    return softened


def _host(values: Tensor) -> Floats:
    result: Floats = values.detach().cpu().numpy()
    return result
