"""Recording: a computation, forward and backward, as a flat list of operators that can be run again.

torch's `make_fx` does this and more, and imports torch's compiler for it: 1.7 of the 8 seconds of computing that a
worker needed to load three small models. It takes 0.1 s and more for a recording of the loan network, this 0.03.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary


def record(program: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Runs the program and returns it as a module that computes the same for other inputs of these shapes.

    Tensors that are neither inputs nor computed, such as parameters, become the module's own. Raises ValueError where
    the program reads a value that it computed of its inputs, or makes a shape of one: its flow may depend on it.
    """
    recorder = _Recorder(inputs)
    with recorder:
        results = program(*inputs)
    return recorder.module(results)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator that is run, with its arguments."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._nodes = WeakTensorKeyDictionary()
        self._numbers = itertools.count()
        self._varying: set[fx.Node] = set()
        for number, tensor in enumerate(inputs):
            self._nodes[tensor] = self._graph.placeholder(f"input_{number}")
            self._varying.add(self._nodes[tensor])

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and to see to that torch would import its compiler."""
        return False

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if func is torch.ops.aten.lift_fresh.default:  # a tensor made of numbers; in-place operators may follow
            func = torch.ops.aten.lift_fresh_copy.default
        node = self._graph.call_function(func, map_aggregate(args, self._node), map_aggregate(keywords, self._node))
        if torch.Tag.nondeterministic_seeded in func.tags or not self._varying.isdisjoint(node.all_input_nodes):
            if _reads_values(func, args):
                raise ValueError(f"{func} reads a value that was computed")
            self._varying.add(node)
        result = func(*args, **keywords)
        self._note(result, node)
        return result

    def module(self, results: Sequence[Tensor]) -> fx.GraphModule:
        """What was run and leads to these results, or changes something on the way."""
        self._graph.output(tuple(map(self._node, results)))
        self._graph.eliminate_dead_code()
        return fx.GraphModule(self._root, self._graph)

    def _node(self, argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        if argument not in self._nodes:
            name = f"constant_{next(self._numbers)}"
            self._root.register_buffer(name, argument)
            self._nodes[argument] = self._graph.get_attr(name)
        return self._nodes[argument]

    def _note(self, result: object, node: fx.Node) -> None:
        """A tensor that was changed in place is from now on what came out."""
        if isinstance(result, Tensor):
            self._nodes[result] = node
        elif isinstance(result, (tuple, list)):
            for number, part in enumerate(result):
                item = self._graph.call_function(operator.getitem, (node, number))
                if node in self._varying:
                    self._varying.add(item)
                self._note(part, item)


def _reads_values(func: OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether the operator's result, or its size, becomes visible to Python."""
    if func is torch.ops.aten.index.Tensor:  # indexing by integers has their size, by a mask as many as are set
        return any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.intersection(func.tags))
