"""The input of an ONNX graph: one tensor of numbers, or a sentence that says what to do where it takes something
else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from service.errors import CatalogError

TOKENS = re.compile(r"(^|_|\.)(input_?ids?|attention_?mask|token_?type_?ids|position_?ids|input_?mask|past_key_values)")
"""Names that exporters of text models give their inputs."""
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
INTEGERS = {TensorProto.INT32, TensorProto.INT64}


@dataclass(frozen=True, slots=True)
class SingleInput:
    """The graph's one input: its name, the shape of one row, and whether its values are integers.

    `rows` is how many it declares to take at a time, None where that is left open. Numbers are float32, or doubles.
    """

    name: str
    shape: tuple[int, ...]
    rows: int | None
    is_integer: bool
    is_double: bool = False


def taking_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inputs of half precision given in float32 and rounded by the graph: as it would be given them."""
    halves = [value for value in model.graph.input if value.type.tensor_type.elem_type in HALVES]
    if not halves:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    casts = []
    for value in (one for one in result.graph.input if one.type.tensor_type.elem_type in HALVES):
        inner, element_type = f"{value.name} in half precision", value.type.tensor_type.elem_type
        for node in result.graph.node:
            node.input[:] = [inner if name == value.name else name for name in node.input]
        casts.append(helper.make_node("Cast", [value.name], [inner], to=element_type))
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = [*casts, *result.graph.node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def with_shape(model: onnx.ModelProto, shape: Sequence[int] | None) -> onnx.ModelProto:
    """The model for rows of this shape, where its one input leaves sizes open. Raises CatalogError where it declares
    others."""
    if shape is None:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {tensor.name for tensor in result.graph.initializer}
    inputs = [value for value in result.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise CatalogError(_not_one_input(inputs))
    sizes = inputs[0].type.tensor_type.shape.dim
    declared = [size.dim_value for size in sizes][1:]
    if len(declared) != len(shape) or any(own > 0 and own != size for own, size in zip(declared, shape, strict=True)):
        stated = ", ".join(str(own) if own > 0 else "any" for own in declared)
        raise CatalogError(f"the input {inputs[0].name!r} takes rows of [{stated}], not of {list(shape)}")
    for dimension, size in zip(list(sizes)[1:], shape, strict=True):
        dimension.dim_value = size
    del result.graph.value_info[:]
    return result


def single_input_of(model: onnx.ModelProto) -> SingleInput:
    """The input. Raises CatalogError where there are several, or one that does not declare the shape of a row."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise CatalogError(_not_one_input(inputs))
    kind = inputs[0].type.tensor_type
    if kind.elem_type == TensorProto.STRING:
        raise CatalogError(_takes_text(inputs))
    if kind.elem_type not in {TensorProto.FLOAT, TensorProto.DOUBLE, *INTEGERS}:
        name = TensorProto.DataType.Name(kind.elem_type) if kind.elem_type else "no tensor"
        raise CatalogError(f"the input {inputs[0].name!r} is {name}; export the model with float32 inputs")
    rows, *sizes = [one.dim_value for one in kind.shape.dim] or [0]
    if not sizes or min(sizes) < 1:  # a size that is open is 0 here, or -1 with some exporters
        if TOKENS.search(inputs[0].name):
            raise CatalogError(_text_model(inputs))
        stated = ", ".join(str(size) if size > 0 else "any" for size in sizes) or "any"
        raise CatalogError(
            f"the input {inputs[0].name!r} leaves open what shape a row has ([{stated}]); say it, as in "
            "--shape 3,224,224 for an image of three channels, or export the model with one"
        )
    count, is_double = rows if rows > 0 else None, kind.elem_type == TensorProto.DOUBLE
    return SingleInput(inputs[0].name, tuple(sizes), count, kind.elem_type in INTEGERS, is_double)


def refuse_shape(graph_input: SingleInput) -> None:
    """Raises CatalogError where rows have another shape than those of a table, a series or an image."""
    shape = list(graph_input.shape)
    if graph_input.is_integer:
        raise CatalogError(
            "the model takes integers, tokens perhaps: how they are padded and masked is not in the file, so write its "
            "manifest by hand (kind: tokens), as models/README.md says"
        )
    if len(shape) > 3:
        raise CatalogError(
            f"rows of shape {shape} are neither a table's [features], a series' [steps, features] nor an image's "
            "[channels, height, width]; export the model behind a layer that takes one of these and makes the other"
        )


def _not_one_input(inputs: Sequence[onnx.ValueInfoProto]) -> str:
    if not inputs:
        return "the graph has no input: everything in it is a constant"
    kinds = [value.type.tensor_type.elem_type for value in inputs]
    if any(TOKENS.search(value.name) for value in inputs):
        return _text_model(inputs)
    if TensorProto.STRING in kinds:
        return _takes_text(inputs)
    names = _listed([value.name for value in inputs])
    if all(_is_column(value) for value in inputs):
        return (
            f"the graph has {len(inputs)} inputs ({names}), one for each column; `models add` writes manifests for "
            "one: convert the pipeline with a single FloatTensorType of all columns, or write the manifest by hand, "
            "where each feature names its `tensor`, as models/README.md says"
        )
    return (
        f"the graph has {len(inputs)} inputs ({names}); `models add` writes manifests for one. Tables with several are "
        "served with a manifest written by hand, where each feature names its `tensor`, as models/README.md says"
    )


def _is_column(value: onnx.ValueInfoProto) -> bool:
    sizes = [one.dim_value for one in value.type.tensor_type.shape.dim]
    return value.type.tensor_type.elem_type in FLOATS | INTEGERS and len(sizes) == 2 and sizes[1] == 1


def _text_model(inputs: Sequence[onnx.ValueInfoProto]) -> str:
    names = [value.name for value in inputs]
    what = f"the model takes tokens ({_listed(names)}), as models of texts do"
    if any("past_key_values" in name or name.startswith("past") for name in names):
        return f"{what}, with what it has generated so far: it writes texts, and only classifiers are served"
    return (
        f"{what}: how texts become tokens is not in the file. If it is a classifier, write its manifest by hand (kind: "
        "tokens), with its tokenizer, as models/README.md says"
    )


def _takes_text(inputs: Sequence[onnx.ValueInfoProto]) -> str:
    text = [value.name for value in inputs if value.type.tensor_type.elem_type == TensorProto.STRING]
    return (
        f"the graph takes text: {_listed(text)}. `models add` writes manifests for numbers; with a manifest written by "
        "hand, where those features have `categories` and each names its `tensor`, it can be served, as "
        "models/README.md says. Texts that are no categories need a model of tokens"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
