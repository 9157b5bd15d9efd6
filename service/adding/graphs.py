"""What an ONNX file takes and answers, and the same file with what the service needs of it: logits and probabilities.

Exporters end classifiers in different ways: in logits; in a softmax; scikit-learn's in a label and a list of
dictionaries (ZipMap), after a softmax, a sigmoid of one score for two labels, or a linear classifier in one operator.
The file that is written computes the same from the same constants, with other outputs: logits and probabilities,
[rows, labels].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from service.catalog.graphs import ancestors, reads
from service.errors import CatalogError

LOGITS, PROBABILITIES = "answerable_logits", "answerable_probabilities"
SCORE = "answerable_score"
"""The one logit [rows, 1] that two labels share, where they do: with zero beside it, it makes their `LOGITS`."""
LEAST_OPSET = 17
"""Of the operators that are added, where the file has none of ONNX's own."""
PASSING_ON = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "ZipMap", "Normalizer"}
"""Operators between the probabilities and an output that do not change them; scikit-learn normalises what sums to 1."""

Makers = Mapping[str, NodeProto]
"""The nodes by the names of their outputs."""


@dataclass(frozen=True, slots=True)
class Given:
    """The graph's one input: its name, the shape of one row, and whether its values are integers.

    `rows` is how many it declares to take at a time, None where that is left open.
    """

    name: str
    shape: tuple[int, ...]
    rows: int | None
    is_integer: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A classifier: its input, the tensor of its scores, how these were read, its labels, and the file to be served."""

    given: Given
    output: str
    how: str
    labels: tuple[str, ...]
    model: onnx.ModelProto

    @property
    def has_one_logit(self) -> bool:
        """Whether two labels share one logit, `SCORE`."""
        return any(SCORE in node.output for node in self.model.graph.node)


def read_classifier(model: onnx.ModelProto, output: str | None, is_logit: bool) -> Found:
    """Finds the logits and the probabilities. `output` names the tensor to read, which holds logits if `is_logit`.

    Raises CatalogError, saying what to do.
    """
    given = _given(model)
    makers = {name: node for node in model.graph.node for name in node.output if name}
    if output is None:
        output = _scores(model, makers)
    elif output not in makers:
        raise CatalogError(f"the graph has no tensor {output!r}; its outputs are {_outputs(model)}")
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    how = _end_in_logits(whole, output, makers, is_logit, given.shape[-1])
    _serve(whole, given)
    return Found(given, output, how, _labels(model), whole)


def _outputs(model: onnx.ModelProto) -> str:
    return ", ".join(repr(value.name) for value in model.graph.output)


def _given(model: onnx.ModelProto) -> Given:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise CatalogError(
            f"the graph has {len(inputs)} inputs ({names}); `models add` writes manifests for one: scikit-learn "
            "pipelines take one when they are converted with a single FloatTensorType of all columns"
        )
    kind = inputs[0].type.tensor_type
    if kind.elem_type not in {TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64}:
        name = TensorProto.DataType.Name(kind.elem_type) if kind.elem_type else "no tensor"
        raise CatalogError(f"the input {inputs[0].name!r} is {name}; export the model with float32 inputs")
    rows, *sizes = [one.dim_value for one in kind.shape.dim] or [0]
    if not sizes or 0 in sizes:
        raise CatalogError(f"the input {inputs[0].name!r} does not declare the shape of a row; export it with one")
    return Given(inputs[0].name, tuple(sizes), rows or None, kind.elem_type != TensorProto.FLOAT)


def _scores(model: onnx.ModelProto, makers: Makers) -> str:
    """The output to read: the one that is no label. Raises CatalogError where that is none, or several."""
    candidates = [value for value in model.graph.output if not _is_label(value)]
    if len(candidates) > 1:  # probabilities come with their logits: the logits are enough
        probable = [value for value in candidates if _source(value.name, makers)[1] is not None]
        candidates = probable[:1] if len(probable) == 1 else candidates
    if len(candidates) != 1:
        raise CatalogError(
            f"which output holds the scores of the labels? The graph's outputs are {_outputs(model)}; name one with "
            "--output, and add --logits if it holds scores before the softmax"
        )
    return str(candidates[0].name)


def _is_label(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type.elem_type
    return value.type.HasField("tensor_type") and kind not in {TensorProto.FLOAT, TensorProto.DOUBLE}


def _source(name: str, makers: Makers) -> tuple[str, NodeProto | None]:
    """Behind operators that change nothing: the tensor of the scores, and the softmax or the like that made it."""
    while name in makers and makers[name].op_type in PASSING_ON:
        name = makers[name].input[0]
    node = makers.get(name)
    is_end = node is not None and node.op_type in {"Softmax", "Sigmoid", "Concat", "LinearClassifier", "LogSoftmax"}
    return name, node if is_end else None


def _end_in_logits(model: onnx.ModelProto, output: str, makers: Makers, is_logit: bool, columns: int) -> str:
    """Adds the tensor `LOGITS`; how it was found."""
    graph = model.graph
    name, node = (output, None) if is_logit else _source(output, makers)
    if node is None:
        graph.node.append(helper.make_node("Identity", [name], [LOGITS]))
        return f"logits are {name!r}"
    if node.op_type in {"Softmax", "LogSoftmax"}:
        graph.node.append(helper.make_node("Identity", [node.input[0]], [LOGITS]))
        return f"logits are {node.input[0]!r}, before the {node.op_type.lower()}"
    if node.op_type == "LinearClassifier":
        return _linear(model, node, columns)
    score = _score_of_two(name, makers)
    _two_logits(graph, score)
    return f"logits are 0 and {score!r}, before the sigmoid of two labels"


def _score_of_two(name: str, makers: Makers) -> str:
    """The score whose sigmoid is the probability of the second label: of 1 - p and p, or of p alone."""
    node = makers[name]
    if node.op_type == "Concat":
        name, node = _behind(node.input[-1], makers)
    if node is None or node.op_type != "Sigmoid":
        raise CatalogError(
            f"{name!r} is no softmax and no sigmoid of two labels; name the tensor that holds the scores before it "
            "with --output NAME --logits"
        )
    return str(node.input[0])


def _behind(name: str, makers: Makers) -> tuple[str, NodeProto]:
    while name in makers and makers[name].op_type in PASSING_ON:
        name = makers[name].input[0]
    if name not in makers:
        raise CatalogError("the probabilities do not come from a sigmoid; name the scores with --output NAME --logits")
    return name, makers[name]


def _two_logits(graph: onnx.GraphProto, score: str) -> None:
    """softmax(0, z) = (1 - sigmoid(z), sigmoid(z)). The score is [rows, 1], or [rows]."""
    shape = numpy_helper.from_array(np.array([-1, 1], dtype=np.int64), "answerable_column")
    zero = numpy_helper.from_array(np.zeros((), dtype=np.float32), "answerable_zero")
    graph.initializer.extend([shape, zero])
    graph.node.extend(
        [
            helper.make_node("Reshape", [score, shape.name], [SCORE]),
            helper.make_node("Mul", [SCORE, zero.name], ["answerable_nothing"]),
            helper.make_node("Concat", ["answerable_nothing", SCORE], [LOGITS], axis=1),
        ]
    )


def _linear(model: onnx.ModelProto, node: NodeProto, columns: int) -> str:
    """A linear classifier as the product and the sum that it is."""
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    transform = attributes.get("post_transform", b"NONE")
    labels = attributes.get("classlabels_strings") or attributes.get("classlabels_ints") or [0, 1]
    coefficients = np.array(attributes["coefficients"], dtype=np.float32)
    intercepts = np.array(attributes.get("intercepts") or [0.0] * (len(coefficients) // columns), dtype=np.float32)
    weights = coefficients[: len(intercepts) * columns].reshape(len(intercepts), columns)
    if transform == b"LOGISTIC" and len(labels) == 2:
        # One score for the second label; where there are two, the first is the other's negative.
        weights, intercepts = weights[-1:], intercepts[-1:]
    elif transform not in (b"SOFTMAX", b"LOGISTIC") or len(intercepts) != len(labels):
        raise CatalogError(
            f"the linear classifier ends in {transform.decode()} over {len(labels)} labels, which are no "
            "probabilities; export a classifier that has them (LogisticRegression)"
        )
    constants = {"answerable_weights": weights.T.copy(), "answerable_intercepts": intercepts}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    add = model.graph.node.add
    add(op_type="MatMul", input=[node.input[0], "answerable_weights"], output=["answerable_product"])
    add(op_type="Add", input=["answerable_product", "answerable_intercepts"], output=["answerable_sum"])
    if len(intercepts) == 1:
        _two_logits(model.graph, "answerable_sum")
        return "logits are 0 and the sum of the linear classifier of two labels"
    if transform == b"SOFTMAX":
        add(op_type="Identity", input=["answerable_sum"], output=[LOGITS])
        return "logits are the sums of the linear classifier"
    # One label against all others, each with a sigmoid, in sum made one: the softmax of their logarithms.
    add(op_type="Neg", input=["answerable_sum"], output=["answerable_negative"])
    add(op_type="Softplus", input=["answerable_negative"], output=["answerable_softplus"])
    add(op_type="Neg", input=["answerable_softplus"], output=[LOGITS])
    return "logits are the logarithms of the sigmoids of a linear classifier, one label against the others"


def _serve(model: onnx.ModelProto, given: Given) -> None:
    """Leaves the two outputs, of the nodes those that they need, and open how many rows are taken at a time."""
    graph = model.graph
    graph.node.append(helper.make_node("Softmax", [LOGITS], [PROBABILITIES], axis=1))
    kept = ancestors(graph.node, PROBABILITIES)
    needed = {name for node in kept for name in reads(node)}
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    for field in (graph.node, graph.initializer, graph.output, graph.value_info):
        del field[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)
    for name in (LOGITS, PROBABILITIES):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "labels"]))
    (value,) = (value for value in graph.input if value.name == given.name)
    value.type.tensor_type.shape.dim[0].Clear()
    value.type.tensor_type.shape.dim[0].dim_param = "rows"
    if not any(one.domain == "" for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", LEAST_OPSET))
        model.ir_version = max(model.ir_version, 8)


def _labels(model: onnx.ModelProto) -> tuple[str, ...]:
    """Those that a ZipMap, a classifier, or the constant that the label is picked from names."""
    names = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in reversed(model.graph.node):
        values: object = None
        if node.op_type in {"ZipMap", "LinearClassifier"}:
            values = next((helper.get_attribute_value(one) for one in node.attribute if one.name in names), None)
        elif node.op_type == "ArrayFeatureExtractor" and node.input[0] in constants:
            values = numpy_helper.to_array(constants[node.input[0]]).ravel().tolist()
        if isinstance(values, list) and values:
            return tuple(value.decode() if isinstance(value, bytes) else str(value) for value in values)
    return ()
