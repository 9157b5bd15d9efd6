"""Whether the file to be served answers the same as the original file for some rows."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from service.artefacts.onnx.quantisation import EXACT_PRODUCTS
from service.artefacts.onnx.weights import open_session
from service.domain import Floats
from service.errors import CatalogError
from service.lifecycle.adding.inputs import SingleInput

if TYPE_CHECKING:
    from service.lifecycle.adding.graphs import ServableModel

MAX_DIFFERENCE = 1e-5
MAX_HALF_PRECISION_DIFFERENCE = 2e-3
"""For a file that computes in half precision, whose own softmax has three digits."""
MAX_QUANTISED_DIFFERENCE = 1e-2
"""For a quantised file, whose own softmax may be rounded to 1/256."""
MAX_MISSING = 2e-3
"""By how much sums of probabilities may miss one, in half precision too."""
MAX_MISSING_OF_QUANTISED = 2e-2
ROWS = 32
"""How many rows the file is run on; of more, these are chosen evenly."""


class Meaning(StrEnum):
    """What the scores of the original file are, as far as the numbers show it."""

    PROBABILITIES = "probabilities"
    LOGARITHMS = "logarithms of probabilities"
    SHARES = "between 0 and 1"
    SCORES = "scores"
    VALUES = "values"


def meaning_of(scores: Floats, *, is_quantised: bool = False) -> Meaning:
    """The meaning of scores [rows, columns], all of them finite."""
    missing = MAX_MISSING_OF_QUANTISED if is_quantised else MAX_MISSING

    def sum_to_one(values: Floats) -> bool:
        sums = values.sum(axis=1)
        return values.shape[1] > 1 and bool((np.abs(sums - 1) < missing).all())

    if ((scores >= -MAX_DIFFERENCE) & (scores <= 1 + MAX_DIFFERENCE)).all():
        return Meaning.PROBABILITIES if sum_to_one(scores) else Meaning.SHARES
    if (scores <= MAX_DIFFERENCE).all() and sum_to_one(np.exp(scores)):
        return Meaning.LOGARITHMS
    return Meaning.SCORES


def original_scores(
    model: onnx.ModelProto, graph_input: SingleInput, names: Sequence[str], rows: NDArray[Any]
) -> list[Floats]:
    """The tensors that the original file computes for rows [rows, columns], flat: [rows, numbers] each.

    Raises CatalogError where ONNX Runtime cannot run it, or a tensor does not hold numbers for each row.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    known = {value.name for value in whole.graph.output}
    whole.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    shaped = rows.reshape(-1, *graph_input.shape)
    at_once = graph_input.rows or len(shaped)
    repeated = np.resize(shaped, (-(-len(shaped) // at_once) * at_once, *graph_input.shape))
    session = _opened(whole)
    parts = [
        _run(session, names, graph_input.name, repeated[at : at + at_once]) for at in range(0, len(repeated), at_once)
    ]
    return [
        np.concatenate([_numbers(name, part[place], at_once) for part in parts])[: len(shaped)]
        for place, name in enumerate(names)
    ]


def served_outputs(servable: ServableModel, rows: NDArray[Any]) -> tuple[Floats, Floats]:
    """The logits and the probabilities that the file to be served answers; for values, those twice.

    Raises CatalogError.
    """
    shaped = rows.reshape(-1, *servable.input.shape)
    names = [value.name for value in servable.model.graph.output]
    try:
        logits, probabilities = _run(_opened(servable.model), [names[0], names[-1]], servable.input.name, shaped)
    except CatalogError as error:
        if servable.input.rows is None:
            raise
        raise CatalogError(_fixed_row_count(servable.input.rows)) from error
    if len(logits) != len(shaped):
        raise CatalogError(_fixed_row_count(servable.input.rows or 1))
    return logits.astype(np.float64), probabilities.astype(np.float64)


def _fixed_row_count(rows: int) -> str:
    return (
        f"the graph takes {rows} row{'s' * (rows > 1)} at a time and cannot be opened for more, since it counts on "
        "that inside; export it with a first dimension that is dynamic (torch: dynamic_shapes, or dynamic_axes with "
        "dynamo=False), and let its code say -1 and not a number where it reshapes"
    )


def refuse_difference(model: onnx.ModelProto, servable: ServableModel, rows: NDArray[Any]) -> float:
    """The largest difference between both files' outputs for rows [rows, columns], flat.

    Raises CatalogError where it is too large.
    """
    sample = rows[:ROWS]
    (expected,) = original_scores(model, servable.input, [servable.output], sample)
    difference = difference_from(servable, expected, *served_outputs(servable, sample))
    if not difference <= _limit(servable):
        raise CatalogError(
            f"the scores were read wrongly: {servable.how}, but {servable.output!r} of the file answers something else "
            f"(difference {difference:.2g}); name the scores before the softmax with --output NAME --logits"
        )
    return difference


def refuse_contradiction(
    model: onnx.ModelProto, servable: ServableModel, outputs: Sequence[str], rows: NDArray[Any]
) -> None:
    """Raises CatalogError where another output of the file holds other probabilities for the same number of labels."""
    others = [name for name in outputs if name != servable.output]
    if not others or servable.meaning is Meaning.VALUES:
        return
    sample = rows[:ROWS]
    _, probabilities = served_outputs(servable, sample)
    for name in others:
        try:
            (expected,) = original_scores(model, servable.input, [name], sample)
        except CatalogError:  # no numbers for each row: nothing that could contradict
            continue
        if expected.shape[1] == 1 and probabilities.shape[1] == 2:
            expected = np.concatenate([1 - expected, expected], axis=1)
        known = np.isfinite(expected).all(axis=1)
        is_comparable = expected.shape == probabilities.shape and known.any()
        if not is_comparable or meaning_of(expected[known], is_quantised=servable.is_quantised) not in {
            Meaning.PROBABILITIES,
            Meaning.SHARES,
        }:
            continue
        difference = float(np.abs(probabilities - expected)[known].max())
        if not difference <= _limit(servable):
            raise CatalogError(
                f"{name!r} of the file answers other probabilities than the softmax of {servable.output!r} (difference "
                f"{difference:.2g}): these are no scores before a softmax, or those of several labels of which more "
                "than one may be right"
            )


def _limit(servable: ServableModel) -> float:
    if servable.is_quantised:
        return MAX_QUANTISED_DIFFERENCE
    return MAX_DIFFERENCE if servable.parity is None else MAX_HALF_PRECISION_DIFFERENCE


def difference_from(servable: ServableModel, expected: Floats, logits: Floats, probabilities: Floats) -> float:
    """The largest difference of the served outputs from the original scores, by what those mean; infinity where shapes
    differ."""
    match servable.meaning:
        case Meaning.SCORES | Meaning.VALUES:
            answers = logits
        case Meaning.LOGARITHMS:
            answers, expected = probabilities, np.exp(expected)
        case _:
            answers = probabilities
    if expected.shape[1] == 1 and answers.shape[1] == 2:  # of the second of two labels
        answers = answers[:, 1:]
    known = np.isfinite(expected).all(axis=1)
    if answers.shape != expected.shape or not known.any():
        return np.inf
    answers, expected = answers[known], expected[known]
    least = np.abs(expected).max(axis=0) if servable.meaning is Meaning.VALUES else 1.0
    scale = np.maximum(np.abs(expected), least)
    return float((np.abs(answers - expected) / np.where(scale > 0, scale, 1.0)).max())


def _numbers(name: str, answer: Any, rows: int) -> Floats:
    """Scores as an array; a ZipMap's output is a dictionary a row."""
    if isinstance(answer, list) and all(isinstance(row, dict) for row in answer):
        answer = [list(row.values()) for row in answer]
    elif isinstance(answer, list):
        raise CatalogError(
            f"{name!r} holds {len(answer)} answers, to as many questions; one that chooses among labels is served: "
            "export each as a classifier of its own"
        )
    array = np.asarray(answer, dtype=np.float64)
    if not array.size or array.shape[:1] != (rows,):
        raise CatalogError(
            f"{name!r} has the shape {list(array.shape)} for {rows} rows; a classifier answers for each row by itself"
        )
    if sum(size > 1 for size in array.shape[1:]) > 1:
        raise CatalogError(
            f"{name!r} holds {list(array.shape[1:])} numbers a row: answers for several places or tokens, or a "
            "picture; a classifier has one number for each label of a row"
        )
    return array.reshape(rows, -1)


def _opened(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry(*EXACT_PRODUCTS)
    try:
        return open_session(model, options)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise CatalogError(f"ONNX Runtime cannot run the file: {_first_line(error)}") from error


def _run(session: onnxruntime.InferenceSession, outputs: Sequence[str], name: str, rows: NDArray[Any]) -> list[Any]:
    try:
        (own,) = (one.type for one in session.get_inputs() if one.name == name)
        dtype = np.float64 if own == "tensor(double)" else np.float32
        results: list[Any] = session.run(list(outputs), {name: rows.astype(dtype, copy=False)})
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise CatalogError(f"ONNX Runtime cannot run the file: {_first_line(error)}") from error
    return results


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
