"""Where a graph turns tokens or categories into real numbers: the embedding of tokens, the encoders of categories.

The twin begins there, since nothing before it has a gradient. Which numbers a token or a category becomes is measured:
the artefact itself is run with all of them. So it does not matter which operators a graph uses for it, and a tensor
that depends on anything else is noticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from service.artefacts.onnx.graph_parts import open_part
from service.artefacts.onnx.session_inputs import Array, SessionInputs
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.inputs.tokens import TokenInputs
from service.domain import Floats
from service.errors import CatalogError

ROWS_AT_ONCE = 32
RANDOM_ROWS = 64
MAX_FLOATS = 2**24
"""In the embeddings that are computed at once: a vocabulary of 30,000 is checked part by part."""


@dataclass(frozen=True, slots=True)
class CategoryEmbedding:
    """A tensor of the graph that depends on one feature alone, a category: its `table` [categories, ...shape]."""

    tensor: str
    feature: int
    table: NDArray[Any]

    @property
    def columns(self) -> Floats:
        """The table flat: [categories, columns]."""
        return self.table.reshape(len(self.table), -1).astype(np.float64)


def find_token_embedding(model: ModelProto, input_tensor: str) -> tuple[str, NDArray[np.float32]]:
    """The tensor that holds the embeddings of the tokens in `input_tensor`, and the table [vocabulary, dimensions].

    The embedding is a Gather of rows of a constant table, or the product of the tokens' one-hot code with such a table.
    Raises CatalogError where there is none.
    """
    for tensor, table in _token_embeddings(model, input_tensor):
        return tensor, table
    raise CatalogError(f"no embedding of the tokens in {input_tensor!r}: no constant table's rows are taken by them")


def check_token_embedding(
    model: ModelProto, inputs: TokenInputs, session_inputs: SessionInputs, tensor: str, table: NDArray[np.float32]
) -> None:
    """Raises CatalogError unless the graph's tensor is the table's row of every token, wherever it stands."""
    vocabulary, width = inputs.vocabulary, table.shape[1]
    if len(table) < vocabulary:
        raise CatalogError(f"the embedding has {len(table)} tokens, the manifest's vocabulary {vocabulary}")
    every = np.resize(np.arange(vocabulary), -(-vocabulary // inputs.length) * inputs.length)
    rows = every.reshape(-1, inputs.length).astype(np.float32)
    session = open_part(model, [tensor])
    step = max(1, MAX_FLOATS // (inputs.length * width))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        (rows_of_graph,) = session.run([tensor], session_inputs(part))
        if not np.array_equal(rows_of_graph.reshape(-1, width), table[part.astype(np.int64)].reshape(-1, width)):
            raise CatalogError(f"{tensor!r} is not the embedding of the tokens in {inputs.tensor!r} alone")


def find_category_embeddings(
    model: ModelProto, inputs: TabularInputs, session_inputs: SessionInputs, end: str
) -> list[CategoryEmbedding]:
    """The tensors on the way to `end` in which the graph encodes features that are text or whole numbers.

    Raises CatalogError where one tensor depends on several of them, so that it cannot be said which.
    """
    encoded = {tensor: features for tensor, features in inputs.tensors.items() if _is_encoded(model, inputs, tensor)}
    if not encoded:
        return []
    frontier = _frontier(model, set(encoded), end)
    if not frontier:
        return []
    session, features = open_part(model, list(frontier)), [number for own in encoded.values() for number in own]
    base = _first_row(inputs)

    def run(rows: Array) -> dict[str, Array]:
        parts = [
            session.run(list(frontier), session_inputs(rows[at : at + ROWS_AT_ONCE]))
            for at in range(0, len(rows), ROWS_AT_ONCE)
        ]
        return {name: np.concatenate(values) for name, values in zip(frontier, zip(*parts, strict=True), strict=True)}

    tables: dict[str, dict[int, Array]] = {name: {} for name in frontier}
    for number in features:
        rows = np.tile(base, (len(inputs.features[number].categories), 1))
        rows[:, number] = np.arange(len(rows))
        for name, values in run(rows).items():
            if (values != values[:1]).any():
                tables[name][number] = values
    embeddings = [
        _category_embedding(inputs, name, table_by_feature)
        for name, table_by_feature in tables.items()
        if table_by_feature
    ]
    _check(inputs, features, embeddings, base, run)
    return embeddings


def _category_embedding(inputs: TabularInputs, tensor: str, table_by_feature: Mapping[int, Array]) -> CategoryEmbedding:
    if len(table_by_feature) > 1:
        names = " and ".join(inputs.names[number] for number in table_by_feature)
        raise CatalogError(f"{tensor!r} is made of {names} together, so it is the encoding of neither")
    ((feature, table),) = table_by_feature.items()
    return CategoryEmbedding(tensor, feature, table)


def _check(
    inputs: TabularInputs, features: Sequence[int], embeddings: Sequence[CategoryEmbedding], base: Array, run: Any
) -> None:
    """Compares the tables with what the graph computes for rows whose categories are drawn at random."""
    draws = np.random.default_rng(0)
    rows = np.tile(base, (RANDOM_ROWS, 1))
    for number in features:
        rows[:, number] = draws.integers(0, len(inputs.features[number].categories), RANDOM_ROWS)
    measured = run(rows)
    for embedding in embeddings:
        expected = embedding.table[rows[:, embedding.feature].astype(np.intp)]
        if not np.array_equal(measured[embedding.tensor], expected):
            raise CatalogError(f"{embedding.tensor!r} is more than the encoding of {inputs.names[embedding.feature]}")


def _first_row(inputs: TabularInputs) -> Floats:
    """The smallest value of every numeric feature, the first category of every other."""
    return np.array(inputs.bounds[0])


def _is_encoded(model: ModelProto, inputs: TabularInputs, tensor: str) -> bool:
    """Whether this input of the graph takes categories unencoded, as text or whole numbers."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    is_floating = types.get(tensor) in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    return not is_floating and any(inputs.features[number].categories for number in inputs.tensors[tensor])


def _frontier(model: ModelProto, discrete: set[str], end: str) -> list[str]:
    """The first tensors of real numbers on the paths from the `discrete` tensors to `end`."""
    reached, names = set(discrete), []
    for node in model.graph.node:
        if not reached.isdisjoint(node.input):
            reached.update(name for name in node.output if name)
            names += [name for name in node.output if name]
    is_real = _are_real(model, names)
    behind, frontier = set(discrete), []
    for node in model.graph.node:
        if behind.isdisjoint(node.input):
            continue
        for name in filter(None, node.output):
            if is_real[name]:
                frontier.append(name)
            else:
                behind.add(name)
    needed = _needed(model, end, set(frontier))
    return [name for name in frontier if name in needed]


def _needed(model: ModelProto, end: str, stops: set[str]) -> set[str]:
    """The tensors by which `end` is computed, as far back as `stops`."""
    needed = {end}
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(set(node.output) - stops):
            needed.update(node.input)
    return needed


def _are_real(model: ModelProto, names: Sequence[str]) -> dict[str, bool]:
    """Whether tensors hold real numbers, by the types that ONNX Runtime infers."""
    outputs = {output.name: output.type for output in open_part(model, names).get_outputs()}
    return {name: outputs[name] in ("tensor(float)", "tensor(double)", "tensor(float16)") for name in names}


def _token_embeddings(model: ModelProto, input_tensor: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Tensors that may be the embedding, in the order of the graph: rows of a table, selected by the tokens alone."""
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    constants = set(tables) | {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    tokens = {input_tensor}
    for node in model.graph.node:
        at = {"Gather": (0, 1), "MatMul": (1, 0)}.get(node.op_type)
        if at is not None and len(node.input) == 2 and node.input[at[1]] in tokens and node.input[at[0]] in tables:
            table: NDArray[np.float32] = numpy_helper.to_array(tables[node.input[at[0]]]).astype(np.float32)
            if table.ndim == 2 and not any(a.name == "axis" and a.i != 0 for a in node.attribute):
                yield node.output[0], table
                continue
        is_of_tokens = all(not name or name in tokens | constants for name in node.input)
        if not tokens.isdisjoint(node.input) and (is_of_tokens or node.op_type in SHAPING):
            tokens.update(node.output)


SHAPING = {"Reshape", "Expand", "Equal", "Cast", "Identity", "OneHot", "Unsqueeze", "Squeeze"}
"""Operators by which exporters make a one-hot code of tokens; its sizes and the vocabulary come from other inputs."""
