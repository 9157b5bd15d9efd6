"""An ONNX file rewritten to have the outputs that the service needs: logits and probabilities, or values.

Exporters end classifiers in different ways: in logits; in a softmax; scikit-learn's in a label and a list of
dictionaries (ZipMap), behind the operators that compute the probabilities. The rewritten file computes the same from
the same constants, with other outputs: logits and probabilities, [rows, labels]. It is run on some rows, and refused
unless it answers the same as the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.artefacts.onnx.graphs import ancestors, reads
from service.artefacts.onnx.open_rows import with_open_rows
from service.artefacts.onnx.quantisation import is_quantised
from service.catalog.manifest import MAX_PARITY
from service.catalog.outputs.classes import Classes
from service.catalog.outputs.kind import OutputKind
from service.domain import OutputSpace
from service.errors import CatalogError
from service.lifecycle.adding.added_inputs import Ask
from service.lifecycle.adding.endings import (
    HALF_PRECISION,
    LOGITS,
    PROBABILITIES,
    SCORE,
    VALUES,
    Ending,
    add_outputs,
    as_embedding,
    as_independent_logits,
    as_logits,
    as_values,
    by_logarithm,
    has_floats,
    independent_endings,
    producers_of,
    visible_ending,
)
from service.lifecycle.adding.equivalence import (
    ROWS,
    Meaning,
    meaning_of,
    original_scores,
    refuse_contradiction,
    refuse_difference,
)
from service.lifecycle.adding.inputs import SingleInput, single_input_of
from service.lifecycle.adding.linear import expand_linear

__all__ = ["LOGITS", "PROBABILITIES", "SCORE", "ServableModel", "SingleInput", "make_servable"]

MIN_OPSET = 17
"""The version of ONNX's own operators, for a file that had none of them before some were added."""
PARITY_OF_HALF_PRECISION = 0.02
"""Half precision has three digits, and the twin sums in another order."""
PARITY_OF_QUANTISED = MAX_PARITY
"""The most that rounding may do; by how much it does differ is measured when the model is loaded."""
RANDOM_ROWS = 32
ENOUGH_ROWS = 32
"""If the numbers of so many rows all lie between 0 and 1, they are not scores before a softmax."""


@dataclass(frozen=True, slots=True)
class ServableModel:
    """A file that can be served, `model`, and what was read from the original file.

    `output` is the original tensor of scores, `meaning` what those are, `columns` how many there are in a row: one for
    every label or value, or one for the second of two labels. `how` says, as a sentence to users, where the logits or
    values come from. `parity` is by how much the twin may differ, None for the usual limit; that of a quantised file is
    measured when it is loaded. `outputs` is the kind of output.
    """

    input: SingleInput
    output: str
    meaning: Meaning
    columns: int
    how: str
    labels: tuple[str, ...]
    parity: float | None
    model: onnx.ModelProto
    outputs: type[OutputKind] = Classes

    @property
    def is_quantised(self) -> bool:
        """Whether it computes with numbers that are rounded to a grid."""
        return is_quantised(self.model)

    @property
    def count(self) -> int:
        """How many labels or values there are."""
        return self.outputs.count(self.columns)

    @property
    def tensors(self) -> dict[str, str]:
        """The tensors of `model`, by output space."""
        tensors = {
            OutputSpace.LOGIT: SCORE if self.has_one_logit else LOGITS,
            OutputSpace.PROBABILITY: PROBABILITIES,
            OutputSpace.VALUE: VALUES,
            OutputSpace.SIMILARITY: VALUES,
        }
        return {space.value: tensor for space, tensor in tensors.items() if space in self.outputs.spaces}

    @property
    def has_one_logit(self) -> bool:
        """Whether two labels share one logit, `SCORE`."""
        return any(SCORE in node.output for node in self.model.graph.node)


def make_servable(
    model: onnx.ModelProto,
    output: str | None,
    is_logit: bool,
    rows: NDArray[Any] | None = None,
    *,
    are_values: bool = False,
    are_several: bool = False,
    ask: Ask | None = None,
    is_embedding: bool = False,
) -> ServableModel:
    """Rewrites a file to answer logits and probabilities, or values. `output` names the tensor of scores, if it is
    known.

    Scores are logits if `is_logit`, and values if `are_values` or if the file is one of scikit-learn's regressors. With
    `are_several` each label is right or wrong independently of the others. With `is_embedding` they are the numbers of
    an embedding. The file is run on `rows` [rows, columns], flat, or on random ones; which of several outputs is meant
    is asked by `ask`. Raises CatalogError, saying what to do.
    """
    graph_input = single_input_of(model)
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    expand_linear(whole)
    if output is None:
        output = _scores(whole, ask)
    elif output not in producers_of(whole.graph):
        raise CatalogError(f"the graph has no tensor {output!r}; its outputs are {_outputs(model)}")
    if rows is None:
        rows = np.random.default_rng(0).normal(size=(RANDOM_ROWS, int(np.prod(graph_input.shape))))
    rows = rows[:: max(1, len(rows) // ROWS)][:ROWS]
    (scores,) = original_scores(model, graph_input, [output], rows)
    scores = scores[np.isfinite(scores).all(axis=1)]
    if not len(scores):
        raise CatalogError(f"{output!r} holds no finite number for any of {len(rows)} rows; bring rows of its data")
    meaning = meaning_of(scores, is_quantised=is_quantised(model))
    is_stated = is_logit or are_several
    if (
        are_values
        or is_embedding
        or (not is_stated and is_regressor(model) and not _ends_in_probabilities(whole, output, meaning))
    ):
        meaning = Meaning.VALUES
    elif is_logit:
        _refuse_probabilities(output, meaning, scores)
        meaning = Meaning.SCORES
    failures = []
    known = [as_embedding(output)] if is_embedding else None
    for ending in known or _endings(whole, output, meaning, scores.shape[1], are_several):
        servable = _with_outputs(model, whole, graph_input, output, meaning, scores.shape[1], ending)
        try:
            refuse_difference(model, servable, rows)
            refuse_contradiction(model, servable, _score_outputs(model), rows)
        except CatalogError as error:
            failures.append(error)
        else:
            return servable
    raise failures[0]


def _endings(
    model: onnx.ModelProto, output: str, meaning: Meaning, columns: int, are_several: bool
) -> Iterator[Ending]:
    """The endings that the graph may have, the most precise first. Raises CatalogError where there is none."""
    producers = producers_of(model.graph)
    if meaning is Meaning.VALUES:
        yield as_values(output)
        return
    if meaning is Meaning.SCORES:
        yield as_independent_logits(output) if are_several else as_logits(output, columns, producers)
        return
    if are_several or (meaning is Meaning.SHARES and columns > 1):
        endings = [*independent_endings(output, producers, is_sure=are_several or _has_label(model))]
        if not endings:
            raise CatalogError(
                f"{output!r} holds {columns} numbers a row, each between 0 and 1, that do not sum to one, and the "
                "graph does not say what they are. If several labels may be right at once, and these are their "
                "probabilities, say so with --several; if they are values, with --values; and name the scores before "
                "the softmax, if there is one, with --output NAME --logits"
            )
        yield from endings
        return
    visible = visible_ending(output, columns, producers)
    if meaning is Meaning.SHARES and visible is None:
        raise CatalogError(
            f"{output!r} holds one number a row, between 0 and 1, and the graph does not say what it is: the "
            "probability of the second of two labels ends in a sigmoid. Export it so, or name the score before it with "
            "--output NAME --logits; the value of a regression is said to be one with --values"
        )
    if visible is not None:
        yield visible
    if meaning is Meaning.PROBABILITIES:
        yield by_logarithm(output, producers)
    elif meaning is Meaning.LOGARITHMS:
        yield as_logits(output, columns, producers)


def _refuse_probabilities(output: str, meaning: Meaning, scores: NDArray[Any]) -> None:
    if meaning is Meaning.PROBABILITIES:
        raise CatalogError(
            f"{output!r} holds probabilities, which sum to one in every row, and no logits: leave --logits out"
        )
    if meaning is Meaning.SHARES and len(scores) >= ENOUGH_ROWS:
        raise CatalogError(
            f"all of {output!r} lies between 0 and 1, in {len(scores)} rows, so these are no scores before a softmax: "
            "name the tensor that holds those with --output NAME --logits"
        )


def _with_outputs(
    model: onnx.ModelProto,
    whole: onnx.ModelProto,
    graph_input: SingleInput,
    output: str,
    meaning: Meaning,
    columns: int,
    ending: Ending,
) -> ServableModel:
    file = onnx.ModelProto()
    file.CopyFrom(with_open_rows(whole))
    add_outputs(file.graph, ending)
    _keep_only(file, graph_input, [VALUES] if VALUES in producers_of(file.graph) else [LOGITS, PROBABILITIES])
    return ServableModel(
        graph_input,
        output,
        meaning,
        columns,
        ending.how,
        _labels(model),
        _parity_allowed(model),
        file,
        ending.outputs,
    )


def _parity_allowed(model: onnx.ModelProto) -> float | None:
    if is_quantised(model):
        return PARITY_OF_QUANTISED
    return PARITY_OF_HALF_PRECISION if has_floats(model.graph, HALF_PRECISION) else None


def _outputs(model: onnx.ModelProto) -> str:
    return ", ".join(repr(value.name) for value in model.graph.output)


def _score_outputs(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in model.graph.output if not _is_label(value)]


def _scores(model: onnx.ModelProto, ask: Ask | None) -> str:
    """The output that holds scores: the only one that is not a label, or the one that the user names. Raises
    CatalogError where there is none."""
    candidates = _score_outputs(model)
    if len(candidates) > 1:  # probabilities come with their logits: they say how they are made of these
        producers = producers_of(model.graph)
        visible = [name for name in candidates if visible_ending(name, 0, producers) is not None]
        candidates = visible if len(visible) == 1 else candidates
    if len(candidates) > 1 and ask is not None:
        named = ask(f"which output holds the scores: {', '.join(candidates)}?", "")
        candidates = [name for name in candidates if name == named] or candidates
    if len(candidates) != 1:
        raise CatalogError(
            f"which output holds the scores of the labels? The graph's outputs are {_outputs(model)}; name one with "
            "--output, and add --logits if it holds scores before the softmax"
        )
    return candidates[0]


def _is_label(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type.elem_type
    return value.type.HasField("tensor_type") and kind not in {TensorProto.FLOAT, TensorProto.DOUBLE, *HALF_PRECISION}


def _has_label(model: onnx.ModelProto) -> bool:
    """Whether the file also outputs labels, as scikit-learn's classifiers do."""
    return any(_is_label(value) for value in model.graph.output)


def is_regressor(model: onnx.ModelProto) -> bool:
    """Whether scikit-learn's exporter made the file of a regressor: a classifier's has a label beside the scores."""
    return model.producer_name == "skl2onnx" and len(model.graph.output) == 1 and not _has_label(model)


def _ends_in_probabilities(model: onnx.ModelProto, output: str, meaning: Meaning) -> bool:
    """Whether the numbers or the graph show that these are probabilities or their logarithms."""
    if meaning in {Meaning.PROBABILITIES, Meaning.LOGARITHMS}:
        return True
    return meaning is Meaning.SHARES and visible_ending(output, 1, producers_of(model.graph)) is not None


def _keep_only(model: onnx.ModelProto, graph_input: SingleInput, outputs: Sequence[str]) -> None:
    """Removes all other outputs and the nodes that only they need, and lets the graph take any number of rows."""
    graph = model.graph
    kept = ancestors(graph.node, outputs[-1])
    needed = {name for node in kept for name in reads(node)}
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    for field in (graph.node, graph.initializer, graph.output, graph.value_info):
        del field[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)
    for name in outputs:
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "outputs"]))
    (value,) = (value for value in graph.input if value.name == graph_input.name)
    value.type.tensor_type.shape.dim[0].Clear()
    value.type.tensor_type.shape.dim[0].dim_param = "rows"
    if not any(one.domain == "" for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", MIN_OPSET))
        model.ir_version = max(model.ir_version, 8)


def _labels(model: onnx.ModelProto) -> tuple[str, ...]:
    """The labels, as named by a ZipMap, a classifier's operator, or the constant that the label is selected from."""
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
