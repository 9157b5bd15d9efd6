"""What an ONNX file answers, and the same file with what the service needs of it: logits and probabilities.

Exporters end classifiers in different ways: in logits; in a softmax; scikit-learn's in a label and a list of
dictionaries (ZipMap), after whatever makes their probabilities. The file that is written computes the same from the
same constants, with other outputs: logits and probabilities, [rows, labels]. It answers what the file itself does for
some rows, or is refused.
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
from service.catalog.outputs.classes import Classes
from service.catalog.outputs.kind import OutputKind
from service.domain import Link
from service.errors import CatalogError
from service.lifecycle.adding.endings import (
    HALVES,
    LOGITS,
    PROBABILITIES,
    SCORE,
    VALUES,
    Ending,
    add_outputs,
    as_independent_logits,
    as_logits,
    as_values,
    by_logarithm,
    has_floats,
    independent_endings,
    makers_of,
    visible_ending,
)
from service.lifecycle.adding.equivalence import (
    ROWS,
    Meaning,
    meaning_of,
    own_scores,
    refuse_another,
    refuse_contradiction,
)
from service.lifecycle.adding.inputs import Given, given_of
from service.lifecycle.adding.linear import expand_linear

__all__ = ["LOGITS", "PROBABILITIES", "SCORE", "Found", "Given", "read_classifier"]

MIN_OPSET = 17
"""Of the operators that are added, where the file has none of ONNX's own."""
PARITY_OF_HALVES = 0.02
"""float16 has three digits, and the twin adds up in another order."""
RANDOM_ROWS = 32
ENOUGH_ROWS = 32
"""So many rows whose numbers all lie between 0 and 1 show that they are no scores before a softmax."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model: its input, the tensor of its scores, what these are, how its logits or values were found, its labels,
    the file to be served, and the kind of its `outputs`. `columns` are the numbers of the scores, one for every label
    or value, or one for the second of two labels. `parity` is what its twin may differ by, None for what is usual."""

    given: Given
    output: str
    meaning: Meaning
    columns: int
    how: str
    labels: tuple[str, ...]
    parity: float | None
    model: onnx.ModelProto
    outputs: type[OutputKind] = Classes

    @property
    def count(self) -> int:
        """How many labels or values the file answers for."""
        return max(self.columns, 2) if self.outputs.network_link is Link.SOFTMAX else self.columns

    @property
    def tensors(self) -> dict[str, str]:
        """By output space, the tensors of the file to be served."""
        if self.outputs.network_link is Link.IDENTITY:
            return {self.outputs.network_space.value: VALUES}
        return {"logit": SCORE if self.has_one_logit else LOGITS, "probability": PROBABILITIES}

    @property
    def has_one_logit(self) -> bool:
        """Whether two labels share one logit, `SCORE`."""
        return any(SCORE in node.output for node in self.model.graph.node)


def read_classifier(
    model: onnx.ModelProto,
    output: str | None,
    is_logit: bool,
    rows: NDArray[Any] | None = None,
    *,
    are_values: bool = False,
    are_several: bool = False,
) -> Found:
    """Finds the logits and the probabilities, or the values. `output` names the tensor to read.

    Its numbers are logits if `is_logit`, and values if they `are_values` or a regressor of scikit-learn answers them.
    With `are_several` labels each is right or wrong on its own. The file is tried on `rows` [rows, columns], flat, or
    on random ones. Raises CatalogError, saying what to do.
    """
    given = given_of(model)
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    expand_linear(whole)
    if output is None:
        output = _scores(whole)
    elif output not in makers_of(whole.graph):
        raise CatalogError(f"the graph has no tensor {output!r}; its outputs are {_outputs(model)}")
    if rows is None:
        rows = np.random.default_rng(0).normal(size=(RANDOM_ROWS, int(np.prod(given.shape))))
    rows = rows[:: max(1, len(rows) // ROWS)][:ROWS]
    (scores,) = own_scores(model, given, [output], rows)
    scores = scores[np.isfinite(scores).all(axis=1)]
    if not len(scores):
        raise CatalogError(f"{output!r} holds no finite number for any of {len(rows)} rows; bring rows of its data")
    meaning = meaning_of(scores)
    is_told = is_logit or are_several
    if are_values or (not is_told and is_regressor(model) and not _ends_in_probabilities(whole, output, meaning)):
        meaning = Meaning.VALUES
    elif is_logit:
        _refuse_probabilities(output, meaning, scores)
        meaning = Meaning.SCORES
    failures = []
    for ending in _endings(whole, output, meaning, scores.shape[1], are_several):
        found = _found(model, whole, given, output, meaning, scores.shape[1], ending)
        try:
            refuse_another(model, found, rows)
            refuse_contradiction(model, found, _answers(model), rows)
        except CatalogError as error:
            failures.append(error)
        else:
            return found
    raise failures[0]


def _endings(
    model: onnx.ModelProto, output: str, meaning: Meaning, columns: int, are_several: bool
) -> Iterator[Ending]:
    """The ways in which logits or values may be found, the best first. Raises CatalogError where there is none."""
    makers = makers_of(model.graph)
    if meaning is Meaning.VALUES:
        yield as_values(output)
        return
    if meaning is Meaning.SCORES:
        yield as_independent_logits(output) if are_several else as_logits(output, columns, makers)
        return
    if are_several or (meaning is Meaning.SHARES and columns > 1):
        endings = [*independent_endings(output, makers, is_sure=are_several or _has_label(model))]
        if not endings:
            raise CatalogError(
                f"{output!r} holds {columns} numbers a row, each between 0 and 1, that do not sum to one, and the "
                "graph does not say what they are. If several labels may be right at once, and these are their "
                "probabilities, say so with --several; if they are values, with --values; and name the scores before "
                "the softmax, if there is one, with --output NAME --logits"
            )
        yield from endings
        return
    visible = visible_ending(output, columns, makers)
    if meaning is Meaning.SHARES and visible is None:
        raise CatalogError(
            f"{output!r} holds one number a row, between 0 and 1, and the graph does not say what it is: the "
            "probability of the second of two labels ends in a sigmoid. Export it so, or name the score before it with "
            "--output NAME --logits; the value of a regression is said to be one with --values"
        )
    if visible is not None:
        yield visible
    if meaning is Meaning.PROBABILITIES:
        yield by_logarithm(output, makers)
    elif meaning is Meaning.LOGARITHMS:
        yield as_logits(output, columns, makers)


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


def _found(
    model: onnx.ModelProto,
    whole: onnx.ModelProto,
    given: Given,
    output: str,
    meaning: Meaning,
    columns: int,
    ending: Ending,
) -> Found:
    file = onnx.ModelProto()
    file.CopyFrom(whole)
    add_outputs(file.graph, ending)
    _serve(file, given, [VALUES] if VALUES in makers_of(file.graph) else [LOGITS, PROBABILITIES])
    return Found(
        given,
        output,
        meaning,
        columns,
        ending.how,
        _labels(model),
        PARITY_OF_HALVES if has_floats(model.graph, HALVES) else None,
        file,
        ending.outputs,
    )


def _outputs(model: onnx.ModelProto) -> str:
    return ", ".join(repr(value.name) for value in model.graph.output)


def _answers(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in model.graph.output if not _is_label(value)]


def _scores(model: onnx.ModelProto) -> str:
    """The output to read: the one that is no label. Raises CatalogError where that is none, or several."""
    candidates = _answers(model)
    if len(candidates) > 1:  # probabilities come with their logits: they say how they are made of these
        makers = makers_of(model.graph)
        visible = [name for name in candidates if visible_ending(name, 0, makers) is not None]
        candidates = visible if len(visible) == 1 else candidates
    if len(candidates) != 1:
        raise CatalogError(
            f"which output holds the scores of the labels? The graph's outputs are {_outputs(model)}; name one with "
            "--output, and add --logits if it holds scores before the softmax"
        )
    return candidates[0]


def _is_label(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type.elem_type
    return value.type.HasField("tensor_type") and kind not in {TensorProto.FLOAT, TensorProto.DOUBLE}


def _has_label(model: onnx.ModelProto) -> bool:
    """Whether the file answers labels too, as a classifier of scikit-learn does."""
    return any(_is_label(value) for value in model.graph.output)


def is_regressor(model: onnx.ModelProto) -> bool:
    """Whether scikit-learn's exporter made the file of a regressor: a classifier's has a label beside the scores."""
    return model.producer_name == "skl2onnx" and len(model.graph.output) == 1 and not _has_label(model)


def _ends_in_probabilities(model: onnx.ModelProto, output: str, meaning: Meaning) -> bool:
    """Whether the numbers, or the graph, say that these are probabilities or their logarithms."""
    if meaning in {Meaning.PROBABILITIES, Meaning.LOGARITHMS}:
        return True
    return meaning is Meaning.SHARES and visible_ending(output, 1, makers_of(model.graph)) is not None


def _serve(model: onnx.ModelProto, given: Given, outputs: Sequence[str]) -> None:
    """Leaves the outputs, of the nodes those that they need, and open how many rows are taken at a time."""
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
    (value,) = (value for value in graph.input if value.name == given.name)
    value.type.tensor_type.shape.dim[0].Clear()
    value.type.tensor_type.shape.dim[0].dim_param = "rows"
    if not any(one.domain == "" for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", MIN_OPSET))
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
