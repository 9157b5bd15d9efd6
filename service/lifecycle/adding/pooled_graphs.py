"""The ONNX export of an encoder, with the pooling of its tokens' embeddings added to the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from service.artefacts.huggingface.pooling import LEAST_COUNT
from service.artefacts.huggingface.sentence_modules import Pooling
from service.errors import CatalogError

EMBEDDING, MASK = "sentence_embedding", "attention_mask"
LEAST_NORM = 1e-12
AXES_AS_INPUT = {"ReduceSum": 13, "ReduceMax": 18}
"""From which version of ONNX's operators on they are given their axes as an input."""
MASKED = -1e30
"""In the place of padding, where the largest number is looked for."""


def with_pooling(model: ModelProto, tokens: str, pooling: Pooling) -> ModelProto:
    """The model with an output `EMBEDDING`, made of the tensor `tokens` [rows, length, width] by the pooling.

    Raises CatalogError where the graph is not told the padding, or for a mode that is not added to graphs.
    """
    if MASK not in {value.name for value in model.graph.input}:
        raise CatalogError(f"the graph has no input {MASK}, by which padding is told from the tokens that are pooled")
    pooled = ModelProto()
    pooled.CopyFrom(model)
    end = _End(pooled)
    mask = end("Unsqueeze", end("Cast", MASK, to=TensorProto.FLOAT), axes=[2])
    embeddings = [_by_mode(end, mode, tokens, mask) for mode in pooling.modes]
    embedding = embeddings[0] if len(embeddings) == 1 else end("Concat", *embeddings, axis=1)
    if pooling.is_normalised:
        squares = end("ReduceSum", end("Mul", embedding, embedding), axes=[1], keepdims=1)
        embedding = end("Div", embedding, end("Max", end("Sqrt", squares), end.constant(np.float32(LEAST_NORM))))
    pooled.graph.node.append(helper.make_node("Identity", [embedding], [EMBEDDING]))
    pooled.graph.output.append(helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["rows", "outputs"]))
    return pooled


def _by_mode(end: _End, mode: str, tokens: str, mask: str) -> str:
    if mode == "cls":
        return end("Gather", tokens, end.constant(np.int64(0)), axis=1)
    if mode == "max":
        hidden = end("Mul", end("Sub", mask, end.constant(np.float32(1))), end.constant(np.float32(-MASKED)))
        return end("ReduceMax", end("Add", end("Mul", tokens, mask), hidden), axes=[1], keepdims=0)
    if mode not in ("mean", "mean_sqrt_len_tokens"):
        raise CatalogError(
            f"the pooling {mode!r} is not added to exported graphs: add the folder with its weights, or export the "
            f"whole model with the output {EMBEDDING}"
        )
    total = end("ReduceSum", end("Mul", tokens, mask), axes=[1], keepdims=0)
    count = end("Max", end("ReduceSum", mask, axes=[1], keepdims=0), end.constant(np.float32(LEAST_COUNT)))
    return end("Div", total, count if mode == "mean" else end("Sqrt", count))


class _End:
    """Appends operators to a graph; each call answers the name of the tensor that is computed."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._opset = max(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))

    def __call__(self, operator: str, *inputs: str, axes: list[int] | None = None, **attributes: Any) -> str:
        given: dict[str, Any] = attributes
        if axes is not None:
            if self._opset >= AXES_AS_INPUT.get(operator, 13):
                inputs = (*inputs, self.constant(np.array(axes, dtype=np.int64)))
            else:
                given = {**attributes, "axes": axes}
        name = f"answerable_{operator.lower()}_{len(self._graph.node)}"
        self._graph.node.append(helper.make_node(operator, inputs, [name], **given))
        return name

    def constant(self, value: Any) -> str:
        name = f"answerable_constant_{len(self._graph.initializer)}"
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name
