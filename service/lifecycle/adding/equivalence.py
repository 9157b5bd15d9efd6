"""What the file that was given answers for rows, and whether the file that is served answers the same."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from service.domain import Floats
from service.errors import CatalogError
from service.lifecycle.adding.inputs import Given

if TYPE_CHECKING:
    from service.lifecycle.adding.graphs import Found

LARGEST_DIFFERENCE = 1e-5
LARGEST_DIFFERENCE_OF_HALVES = 2e-3
"""Of a file that computes in float16, whose own softmax has three digits."""
LEAST_SUM, LARGEST_SUM = 1 - 2e-3, 1 + 2e-3
"""Of probabilities that sum to one, in float16 too."""
ROWS = 32
"""On which the file is tried, of many evenly chosen ones."""


class Meaning(StrEnum):
    """What the file's own numbers are, as far as they say it themselves."""

    PROBABILITIES = "probabilities"
    LOGARITHMS = "logarithms of probabilities"
    SHARES = "between 0 and 1"
    SCORES = "scores"
    VALUES = "values"


def meaning_of(scores: Floats) -> Meaning:
    """Of scores [rows, columns], all of them finite."""

    def sum_to_one(values: Floats) -> bool:
        sums = values.sum(axis=1)
        return values.shape[1] > 1 and bool(((sums > LEAST_SUM) & (sums < LARGEST_SUM)).all())

    if ((scores >= -LARGEST_DIFFERENCE) & (scores <= 1 + LARGEST_DIFFERENCE)).all():
        return Meaning.PROBABILITIES if sum_to_one(scores) else Meaning.SHARES
    if (scores <= LARGEST_DIFFERENCE).all() and sum_to_one(np.exp(scores)):
        return Meaning.LOGARITHMS
    return Meaning.SCORES


def own_scores(model: onnx.ModelProto, given: Given, names: Sequence[str], rows: NDArray[Any]) -> list[Floats]:
    """What the file itself answers in these tensors for rows [rows, columns], flat: [rows, numbers] each.

    Raises CatalogError where ONNX Runtime cannot run it, or does not answer numbers for each row.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    known = {value.name for value in whole.graph.output}
    whole.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    shaped = rows.reshape(-1, *given.shape)
    at_once = given.rows or len(shaped)
    repeated = np.resize(shaped, (-(-len(shaped) // at_once) * at_once, *given.shape))
    session = _opened(whole)
    parts = [_run(session, names, given.name, repeated[at : at + at_once]) for at in range(0, len(repeated), at_once)]
    return [
        np.concatenate([_numbers(name, part[place], at_once) for part in parts])[: len(shaped)]
        for place, name in enumerate(names)
    ]


def served(found: Found, rows: NDArray[Any]) -> tuple[Floats, Floats]:
    """The logits and the probabilities that the file answers which is served; of values, twice these.

    Raises CatalogError.
    """
    shaped = rows.reshape(-1, *found.given.shape)
    names = [value.name for value in found.model.graph.output]
    try:
        logits, probabilities = _run(_opened(found.model), [names[0], names[-1]], found.given.name, shaped)
    except CatalogError as error:
        if found.given.rows is None:
            raise
        raise CatalogError(_counted_on(found.given.rows)) from error
    if len(logits) != len(shaped):
        raise CatalogError(_counted_on(found.given.rows or 1))
    return logits.astype(np.float64), probabilities.astype(np.float64)


def _counted_on(rows: int) -> str:
    return (
        f"the graph takes {rows} row{'s' * (rows > 1)} at a time and cannot be opened for more, since it counts on "
        "that inside; export it with a first dimension that is dynamic (torch: dynamic_shapes, or dynamic_axes with "
        "dynamo=False), and let its code say -1 and not a number where it reshapes"
    )


def refuse_another(model: onnx.ModelProto, found: Found, rows: NDArray[Any]) -> float:
    """The largest difference between both files' answers for the rows [rows, columns], flat. Raises CatalogError."""
    given = rows[:ROWS]
    (expected,) = own_scores(model, found.given, [found.output], given)
    difference = difference_from(found, expected, *served(found, given))
    if not difference <= _limit(found):
        raise CatalogError(
            f"the scores were read wrongly: {found.how}, but {found.output!r} of the file answers something else "
            f"(difference {difference:.2g}); name the scores before the softmax with --output NAME --logits"
        )
    return difference


def refuse_contradiction(model: onnx.ModelProto, found: Found, outputs: Sequence[str], rows: NDArray[Any]) -> None:
    """Raises CatalogError where another output of the file has other probabilities for as many labels."""
    others = [name for name in outputs if name != found.output]
    if not others or found.meaning is Meaning.VALUES:
        return
    given = rows[:ROWS]
    _, probabilities = served(found, given)
    for name in others:
        try:
            (expected,) = own_scores(model, found.given, [name], given)
        except CatalogError:  # no numbers for each row: nothing that could contradict
            continue
        if expected.shape[1] == 1 and probabilities.shape[1] == 2:
            expected = np.concatenate([1 - expected, expected], axis=1)
        known = np.isfinite(expected).all(axis=1)
        is_comparable = expected.shape == probabilities.shape and known.any()
        if not is_comparable or meaning_of(expected[known]) not in {Meaning.PROBABILITIES, Meaning.SHARES}:
            continue
        difference = float(np.abs(probabilities - expected)[known].max())
        if not difference <= _limit(found):
            raise CatalogError(
                f"{name!r} of the file answers other probabilities than the softmax of {found.output!r} (difference "
                f"{difference:.2g}): these are no scores before a softmax, or those of several labels of which more "
                "than one may be right"
            )


def _limit(found: Found) -> float:
    return LARGEST_DIFFERENCE if found.parity is None else LARGEST_DIFFERENCE_OF_HALVES


def difference_from(found: Found, expected: Floats, logits: Floats, probabilities: Floats) -> float:
    """The largest one of what is served from the file's own scores, by what these mean; infinity for other shapes."""
    match found.meaning:
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
    least = np.abs(expected).max(axis=0) if found.meaning is Meaning.VALUES else 1.0
    scale = np.maximum(np.abs(expected), least)
    return float((np.abs(answers - expected) / np.where(scale > 0, scale, 1.0)).max())


def _numbers(name: str, answer: Any, rows: int) -> Floats:
    """Scores as an array; a ZipMap answers a dictionary a row."""
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
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise CatalogError(f"ONNX Runtime cannot run the file: {_first_line(error)}") from error


def _run(session: onnxruntime.InferenceSession, outputs: Sequence[str], name: str, rows: NDArray[Any]) -> list[Any]:
    try:
        found: list[Any] = session.run(list(outputs), {name: rows.astype(np.float32, copy=False)})
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise CatalogError(f"ONNX Runtime cannot run the file: {_first_line(error)}") from error
    return found


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
