"""Spells quantised operators out: what they do to real numbers, between a DequantizeLinear and a QuantizeLinear.

QLinearConv, say, becomes Conv with its inputs dequantised before it and its result quantised behind it. Then the two
converters in `service.artefacts.onnx.quantised_converters` are all that a twin needs for quantised files, whatever
wrote them: QDQ as it is, QOperator and dynamic quantisation as they are spelled out here.

Dynamic quantisation chooses its scale from the values that it quantises, so that nothing lies outside of its range:
for a twin it is the identity, with a scale of one and a zero point of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

from service.artefacts.onnx.undifferentiable import described
from service.errors import CatalogError

MICROSOFT = "com.microsoft"
EXACT_PRODUCTS = ("session.x64quantprecision", "1")
"""The option by which ONNX Runtime multiplies integers exactly on every processor. Without it, it adds in 16 bits on
those that lack VNNI, where sums overflow: logits of up to 0.7 were wrong by 0.2."""
ROWS_TOGETHER_BY_SCALE = {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
"""Operators that choose one scale for all rows that they are given."""
QUANTISED = {
    *("QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat"),
    *ROWS_TOGETHER_BY_SCALE,
    *("QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearWhere"),
    *("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearReduceMean"),
    *("QLinearAveragePool", "QLinearGlobalAveragePool", "MatMulNBits"),
}


def is_quantised(model: ModelProto) -> bool:
    """Whether a graph computes with numbers that are rounded to a grid."""
    return any(node.op_type in QUANTISED for node in model.graph.node)


def scales_depend_on_all_rows(model: ModelProto) -> bool:
    """Whether a row's answer depends on the others that ONNX Runtime is given with it."""
    return any(node.op_type in ROWS_TOGETHER_BY_SCALE for node in model.graph.node)


def in_real_numbers(model: ModelProto) -> ModelProto:
    """The graph with quantised operators spelled out; the same graph where there are none.

    Raises CatalogError for a form of one that is not supported.
    """
    if not any(node.op_type in SPELLED for node in model.graph.node):
        return model
    result = ModelProto()
    result.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    writing = _Writing(constants)
    for node in model.graph.node:
        spelled = SPELLED.get(node.op_type)
        if spelled is None:
            writing.nodes.append(node)
        else:
            spelled(node, writing)
    del result.graph.node[:]
    result.graph.node.extend(writing.nodes)
    if not any(entry.domain == MICROSOFT for entry in result.opset_import):
        result.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return result


@dataclass(slots=True)
class _Writing:
    """The nodes of the new graph, in the making. `real` are tensors that were integers and are real numbers now."""

    constants: Mapping[str, TensorProto]
    nodes: list[NodeProto] = field(default_factory=list)
    real: set[str] = field(default_factory=set)

    def add(
        self, operator: str, inputs: Iterable[str], output: str, domain: str = "", options: Mapping[str, Any] = {}
    ) -> str:
        """Adds a node with one output, and names that."""
        made = helper.make_node(operator, [*inputs], [output], f"{output} by {operator}", domain=domain, **options)
        self.nodes.append(made)
        return output

    def dequantised(self, of: NodeProto, name: str, scale: str, zero: str, axis: int | None = None) -> str:
        """A tensor in real numbers."""
        options = {} if axis is None or not self.has_several(scale) else {"axis": axis}
        output = f"{of.output[0]}/{name}/real"
        if any(node.output[0] == output for node in self.nodes[-4:]):  # x + x: the same input twice
            return output
        return self.add("DequantizeLinear", [name, scale, *([zero] if zero else [])], output, MICROSOFT, options)

    def quantised(self, name: str, scale: str, zero: str, output: str) -> str:
        """A real tensor as integers."""
        return self.add("QuantizeLinear", [name, scale, *([zero] if zero else [])], output, MICROSOFT)

    def without_zero(self, of: NodeProto, name: str, zero: str, per_channel: Sequence[int] | None = None) -> str:
        """Integers less their zero point, as real numbers.

        `per_channel` is the shape in which several zero points stand beside the tensor; without it they stand along its
        last dimension.
        """
        if name in self.real:
            return name
        start = f"{of.output[0]}/{name}"
        real = self.add("Cast", [name], f"{start}/cast", options={"to": TensorProto.FLOAT})
        if not zero:
            return real
        known = self.add("Cast", [zero], f"{start}/zero", options={"to": TensorProto.FLOAT})
        if per_channel is not None and self.has_several(zero):
            shape = self.numbers(f"{start}/shape", per_channel)
            known = self.add("Reshape", [known, shape], f"{start}/zeros")
        return self.add("Sub", [real, known], f"{start}/real")

    def has_several(self, name: str) -> bool:
        """Whether a scale or zero point has one number for each channel."""
        tensor = self.constants.get(name)
        return tensor is not None and any(size > 1 for size in tensor.dims)

    def numbers(self, name: str, values: Sequence[int]) -> str:
        """A constant of whole numbers."""
        tensor = helper.make_tensor("", TensorProto.INT64, [len(values)], values)
        return self.add("Constant", [], name, options={"value": tensor})

    def sizes(self, name: str) -> Sequence[int]:
        """The shape of weights."""
        if name not in self.constants:
            raise CatalogError(f"the quantised weights {name!r} are no constant of the graph")
        return [*self.constants[name].dims]


def _input(node: NodeProto, at: int) -> str:
    name: str = node.input[at] if at < len(node.input) else ""
    return name


def _options(node: NodeProto, *left_out: str) -> dict[str, Any]:
    options = {one.name: helper.get_attribute_value(one) for one in node.attribute if one.name not in left_out}
    if options.pop("channels_last", 0):
        raise CatalogError(f"{described(node)} is not converted with its channels last")
    return options


Spell = Callable[[NodeProto, _Writing], Any]


def _with_result(node: NodeProto, writing: _Writing, operator: str, inputs: Sequence[str], scale_at: int) -> None:
    """The operator on real numbers, and its result quantised by the scale at this place and the zero point behind it;
    left real where there is none."""
    (output,), scale = node.output, _input(node, scale_at)
    options = _options(node, "opset")
    result = writing.add(operator, inputs, f"{output}/real" if scale else output, options=options)
    if scale:
        writing.quantised(result, scale, _input(node, scale_at + 1), output)


def _one_or_two(operator: str, count: int) -> Spell:
    """An operator of `count` tensors, each followed by its scale and zero point."""

    def spelled(node: NodeProto, writing: _Writing) -> None:
        inputs = [writing.dequantised(node, *node.input[3 * at : 3 * at + 3]) for at in range(count)]
        _with_result(node, writing, operator, inputs, 3 * count)

    return spelled


def _conv(node: NodeProto, writing: _Writing) -> None:
    rows, row_scale, row_zero, weights, scale, zero, *_ = node.input
    inputs = [
        writing.dequantised(node, rows, row_scale, row_zero),
        writing.dequantised(node, weights, scale, zero, axis=0),
    ]
    inputs += _bias(node, writing, _input(node, 8), (row_scale, scale))
    _with_result(node, writing, "Conv", inputs, 6)


def _bias(node: NodeProto, writing: _Writing, bias: str, scales: tuple[str, str]) -> list[str]:
    """The bias, whose scale is the product of those of the operator's two inputs."""
    if not bias:
        return []
    scale = writing.add("Mul", scales, f"{node.output[0]}/bias scale")
    real = writing.add("Cast", [bias], f"{node.output[0]}/bias cast", options={"to": TensorProto.FLOAT})
    return [writing.add("Mul", [real, scale], f"{node.output[0]}/bias")]


def _matmul(node: NodeProto, writing: _Writing) -> None:
    left, left_scale, left_zero, right, scale, zero, *_ = node.input
    if any(writing.has_several(name) for name in (left_scale, left_zero)):
        raise CatalogError(f"{described(node)} is not converted with a scale for each row of its first factor")
    axis = len(writing.sizes(right)) - 1 if writing.has_several(scale) else None
    factors = [writing.dequantised(node, left, left_scale, left_zero)]
    factors.append(writing.dequantised(node, right, scale, zero, axis))
    _with_result(node, writing, "MatMul", factors, 6)


def _gemm(node: NodeProto, writing: _Writing) -> None:
    left, left_scale, left_zero, right, scale, zero, *_ = node.input
    axis = 0 if _options(node).get("transB") else 1
    factors = [
        writing.dequantised(node, left, left_scale, left_zero),
        writing.dequantised(node, right, scale, zero, axis),
    ]
    bias = _input(node, 6)
    if bias and "alpha" in (options := _options(node)) and options["alpha"] != 1:
        raise CatalogError(f"{described(node)} is not converted with alpha = {options['alpha']:g}")
    _with_result(node, writing, "Gemm", [*factors, *_bias(node, writing, bias, (left_scale, scale))], 7)


def _concat(node: NodeProto, writing: _Writing) -> None:
    scale, zero, *inputs = node.input
    (output,) = node.output
    parts = [writing.dequantised(node, *inputs[at : at + 3]) for at in range(0, len(inputs), 3)]
    result = writing.add("Concat", parts, f"{output}/real", options=_options(node))
    writing.quantised(result, scale, zero, output)


def _where(node: NodeProto, writing: _Writing) -> None:
    condition, first, second = node.input[0], node.input[1:4], node.input[4:7]
    chosen = [writing.dequantised(node, *first), writing.dequantised(node, *second)]
    _with_result(node, writing, "Where", [condition, *chosen], 7)


def _integer_product(operator: str) -> Spell:
    """Of integers, whose result is scaled by other nodes."""

    def spelled(node: NodeProto, writing: _Writing) -> None:
        right, zero = node.input[1], _input(node, 3)
        of_channels = (
            [-1, *[1] * (len(writing.sizes(right)) - 1)] if operator == "Conv" and writing.has_several(zero) else None
        )
        factors = [
            writing.without_zero(node, node.input[0], _input(node, 2)),
            writing.without_zero(node, right, zero, of_channels),
        ]
        writing.add(operator, factors, node.output[0], options=_options(node))

    return spelled


def _scaled_product(node: NodeProto, writing: _Writing) -> None:
    """MatMulIntegerToFloat: both factors less their zero points, times both scales, and the bias."""
    left, right, left_scale, right_scale = node.input[:4]
    (output,) = node.output
    factors = [
        writing.without_zero(node, left, _input(node, 4)),
        writing.without_zero(node, right, _input(node, 5)),
    ]
    product = writing.add("MatMul", factors, f"{output}/product")
    scale = writing.add("Mul", [left_scale, right_scale], f"{output}/scale")
    _with_bias(writing, "Mul", [product, scale], output, _input(node, 6))


def _dynamic_product(node: NodeProto, writing: _Writing) -> None:
    """DynamicQuantizeMatMul: the first factor is quantised by itself, and so stays as it is."""
    left, right, scale = node.input[:3]
    (output,) = node.output
    weights = writing.without_zero(node, right, _input(node, 3))
    scaled = writing.add("Mul", [weights, scale], f"{output}/weights")
    _with_bias(writing, "MatMul", [left, scaled], output, _input(node, 4))


def _with_bias(writing: _Writing, operator: str, inputs: Sequence[str], output: str, bias: str) -> None:
    if not bias:
        writing.add(operator, inputs, output)
        return
    writing.add("Add", [writing.add(operator, inputs, f"{output}/unbiased"), bias], output)


def _dynamic(node: NodeProto, writing: _Writing) -> None:
    """DynamicQuantizeLinear: the identity, with a scale of one and a zero point of zero."""
    quantised, scale, zero = node.output
    writing.add("Identity", [node.input[0]], quantised)
    writing.real.add(quantised)
    one, none = helper.make_tensor("", TensorProto.FLOAT, [], [1.0]), helper.make_tensor("", TensorProto.UINT8, [], [0])
    for name, value in ((scale, one), (zero, none)):
        if name:
            writing.add("Constant", [], name, options={"value": value})


def _dynamic_lstm(node: NodeProto, writing: _Writing) -> None:
    """DynamicQuantizeLSTM, whose weights are turned: [directions, inputs, 4 * hidden]."""
    inputs = [*node.input, *[""] * (12 - len(node.input))]
    weights = []
    for name, scale, zero in ((inputs[1], *inputs[8:10]), (inputs[2], *inputs[10:12])):
        start = f"{next(filter(None, node.output))}/{name}"
        in_rows = writing.numbers(f"{start}/shape", [writing.sizes(name)[0], 1, -1])
        real, zeros = (
            writing.add("Cast", [each], f"{start}/{part}", options={"to": TensorProto.FLOAT})
            for part, each in (("cast", name), ("zero", zero))
        )
        less = writing.add("Sub", [real, writing.add("Reshape", [zeros, in_rows], f"{start}/zeros")], f"{start}/less")
        scales = writing.add("Reshape", [scale, in_rows], f"{start}/scales")
        scaled = writing.add("Mul", [less, scales], f"{start}/scaled")
        weights.append(writing.add("Transpose", [scaled], f"{start}/turned", options={"perm": [0, 2, 1]}))
    rest = [inputs[0], *weights, *inputs[3:8]]
    writing.nodes.append(helper.make_node("LSTM", rest, [*node.output], node.name, **_options(node)))


SPELLED: Mapping[str, Spell] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "QGemm": _gemm,
    "QLinearAdd": _one_or_two("Add", 2),
    "QLinearMul": _one_or_two("Mul", 2),
    "QLinearConcat": _concat,
    "QLinearWhere": _where,
    "QLinearSigmoid": _one_or_two("Sigmoid", 1),
    "QLinearLeakyRelu": _one_or_two("LeakyRelu", 1),
    "QLinearSoftmax": _one_or_two("Softmax", 1),
    "QLinearReduceMean": _one_or_two("ReduceMean", 1),
    "QLinearAveragePool": _one_or_two("AveragePool", 1),
    "QLinearGlobalAveragePool": _one_or_two("GlobalAveragePool", 1),
    "MatMulInteger": _integer_product("MatMul"),
    "ConvInteger": _integer_product("Conv"),
    "MatMulIntegerToFloat": _scaled_product,
    "DynamicQuantizeLinear": _dynamic,
    "DynamicQuantizeMatMul": _dynamic_product,
    "DynamicQuantizeLSTM": _dynamic_lstm,
}
