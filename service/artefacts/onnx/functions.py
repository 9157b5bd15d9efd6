"""Operators spelled out in others: a file's own functions, those by which ONNX defines operators, and those that ONNX
Runtime's optimiser makes of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto, defs, helper, shape_inference

from service.artefacts.onnx.folding import versions
from service.artefacts.onnx.undifferentiable import REASONS, described
from service.artefacts.onnx.weights import without_weights_in
from service.errors import CatalogError

HasConverter = Callable[[NodeProto, Mapping[str, int]], bool]
MICROSOFT = "com.microsoft"
ACTIVATION_PARAMETERS = ("activation_alpha", "activation_beta", "activation_gamma")


def without_functions(model: ModelProto, has_converter: HasConverter) -> ModelProto:
    """The model with functions inlined: its own, and those by which ONNX defines operators without a converter."""
    whole = without_weights_in(model, onnx.inliner.inline_local_functions) if model.functions else model
    nodes = [node for node in whole.graph.node if node.op_type not in REASONS]
    unknown = {(node.domain, node.op_type) for node in nodes if not has_converter(node, versions(whole))}
    if not unknown:
        return whole

    def inline(part: ModelProto) -> ModelProto:
        typed = _typed(part)
        return onnx.inliner.inline_selected_functions(typed, sorted(unknown), inline_schema_functions=True)

    return without_weights_in(whole, inline)


def _typed(model: ModelProto) -> ModelProto:
    """With what the inliner needs: the defaults of options that nodes leave out, and the types of all tensors."""
    result = ModelProto()
    result.CopyFrom(model)
    imports = {entry.domain: entry.version for entry in model.opset_import}
    for node in result.graph.node:
        try:
            schema = defs.get_schema(node.op_type, imports[node.domain], node.domain)
        except (defs.SchemaError, KeyError):
            continue
        present = {option.name for option in node.attribute}
        defaults = (option.default_value for name, option in schema.attributes.items() if name not in present)
        node.attribute.extend(default for default in defaults if default.name)
    result = shape_inference.infer_shapes(result)
    result.graph.value_info.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, [*tensor.dims])
        for tensor in result.graph.initializer
    )
    return result


def without_fused(model: ModelProto) -> ModelProto:
    """The model with ONNX Runtime's fused operators spelled out in ONNX's own; the same one where there are none.

    Raises CatalogError for a form of one that is not supported.
    """
    for node in model.graph.node:
        if node.domain == "com.microsoft.nchwc":
            raise CatalogError(
                f"{described(node)} is laid out for one kind of processor: save the optimised file with "
                "graph_optimization_level = ORT_ENABLE_EXTENDED, or name the file before it was optimised"
            )
    if not any(node.op_type in FUSED and node.domain == MICROSOFT for node in model.graph.node):
        return model
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in model.graph.node:
        is_fused = node.domain == MICROSOFT and node.op_type in FUSED
        result.graph.node.extend(FUSED[node.op_type](node) if is_fused else [node])
    return result


def _input(node: NodeProto, at: int) -> str:
    return str(node.input[at]) if at < len(node.input) else ""


def _options(node: NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _activated(node: NodeProto, operator: str, inputs: list[str], options: dict[str, Any]) -> list[NodeProto]:
    """The operator, perhaps with a residual, and its activation behind it."""
    (output,) = node.output
    activation, parameters = options.pop("activation", b"").decode(), options.pop("activation_params", [])
    parameters = [*parameters, *(options.pop(name) for name in ACTIVATION_PARAMETERS if name in options)]
    residual = _input(node, 3) if operator == "Conv" else ""
    nodes = [helper.make_node(operator, inputs, [f"{output}/{operator}"], **options)]
    if residual:
        nodes.append(helper.make_node("Add", [nodes[-1].output[0], residual], [f"{output}/sum"]))
    names = {"LeakyRelu": ["alpha"], "HardSigmoid": ["alpha", "beta"], "Clip": ["min", "max"]}.get(activation, [])
    if activation == "Clip":
        bounds = [f"{output}/{name}" for name in names]
        nodes += [
            helper.make_node("Constant", [], [name], value=helper.make_tensor("", TensorProto.FLOAT, [], [value]))
            for name, value in zip(bounds, parameters, strict=True)
        ]
        nodes.append(helper.make_node("Clip", [f"{output}/{'sum' if residual else operator}", *bounds], [output]))
        return nodes
    own = dict(zip(names, parameters, strict=False))
    nodes.append(helper.make_node(activation or "Identity", [nodes[-1].output[0]], [output], **own))
    return nodes


def _fused_conv(node: NodeProto) -> list[NodeProto]:
    return _activated(node, "Conv", [name for name in node.input[:3] if name], _options(node))


def _fused_gemm(node: NodeProto) -> list[NodeProto]:
    return _activated(node, "Gemm", list(node.input), _options(node))


def _nhwc_conv(node: NodeProto) -> list[NodeProto]:
    """A convolution of images whose channels come last."""
    (output,), (rows, weights, *bias) = node.output, node.input
    turns = ((rows, f"{output}/rows", [0, 3, 1, 2]), (weights, f"{output}/weights", [0, 3, 1, 2]))
    nodes = [helper.make_node("Transpose", [name], [turned], perm=order) for name, turned, order in turns]
    inputs = [*(turned for _, turned, _ in turns), *bias]
    nodes.append(helper.make_node("Conv", inputs, [f"{output}/first"], **_options(node)))
    nodes.append(helper.make_node("Transpose", [f"{output}/first"], [output], perm=[0, 2, 3, 1]))
    return nodes


def _embedding(node: NodeProto) -> list[NodeProto]:
    """EmbedLayerNormalization: rows of up to three tables, their sum, and its normalisation."""
    tokens, segments, words, places, kinds, scale, shift = node.input[:7]
    mask, positions = _input(node, 7), _input(node, 8)
    output, start = node.output[0], f"{node.output[0]}/embedding"
    nodes = [helper.make_node("Gather", [words, tokens], [f"{start}/words"])]
    if not positions:
        positions = f"{start}/positions"
        first, last, step = (f"{start}/{name}" for name in ("first", "length", "step"))
        whole = TensorProto.INT64
        nodes += [
            helper.make_node("Constant", [], [name], value=helper.make_tensor("", whole, [], [value]))
            for name, value in ((first, 0), (step, 1))
        ]
        nodes += [
            helper.make_node("Shape", [tokens], [f"{start}/shape"]),
            helper.make_node("Gather", [f"{start}/shape", step], [last]),
            helper.make_node("Range", [first, last, step], [positions]),
        ]
    nodes.append(helper.make_node("Gather", [places, positions], [f"{start}/places"]))
    total = f"{start}/sum"
    nodes.append(helper.make_node("Add", [f"{start}/words", f"{start}/places"], [total]))
    if segments and kinds:
        nodes.append(helper.make_node("Gather", [kinds, segments], [f"{start}/kinds"]))
        nodes.append(helper.make_node("Add", [total, f"{start}/kinds"], [f"{start}/whole"]))
        total = f"{start}/whole"
    if len(node.output) > 2 and node.output[2]:
        nodes.append(helper.make_node("Identity", [total], [node.output[2]]))
    epsilon = _options(node).get("epsilon", 1e-12)
    nodes.append(helper.make_node("LayerNormalization", [total, scale, shift], [output], axis=-1, epsilon=epsilon))
    if len(node.output) > 1 and node.output[1] and mask:  # how many tokens each text has
        axis = helper.make_tensor("", TensorProto.INT64, [1], [1])
        nodes.append(helper.make_node("Constant", [], [f"{start}/axis"], value=axis))
        nodes.append(helper.make_node("ReduceSum", [mask, f"{start}/axis"], [node.output[1]], keepdims=0))
    return nodes


FUSED: Mapping[str, Callable[[NodeProto], list[NodeProto]]] = {
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "NhwcConv": _nhwc_conv,
    "EmbedLayerNormalization": _embedding,
}
