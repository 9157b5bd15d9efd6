"""Whether the file that is served answers what the file that was given does, in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from service.adding.graphs import LOGITS, PROBABILITIES, Found
from service.errors import CatalogError

LARGEST_DIFFERENCE = 1e-5
ROWS = 32


def count_labels(found: Found) -> int:
    """How many labels the file answers for. Raises CatalogError where ONNX Runtime cannot run it."""
    row = np.zeros((1, *found.given.shape), dtype=np.float32)
    return int(_run(found.model, [LOGITS], found.given.name, row)[0].shape[-1])


def refuse_another(model: onnx.ModelProto, found: Found, rows: NDArray[np.float32]) -> float:
    """The largest difference between both files' answers for the rows [rows, columns], flat. Raises CatalogError."""
    given = rows[:ROWS].reshape(-1, *found.given.shape)
    served = _run(found.model, [LOGITS, PROBABILITIES], found.given.name, given)
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    if found.output not in {value.name for value in whole.graph.output}:
        whole.graph.output.append(helper.make_empty_tensor_value_info(found.output))
    at_once = found.given.rows or len(given)
    repeated = (
        np.concatenate([given, given[: -len(given) % at_once]]) if len(given) >= at_once else _fill(given, at_once)
    )
    parts = [
        _array(_run(whole, [found.output], found.given.name, repeated[at : at + at_once])[0])
        for at in range(0, len(repeated), at_once)
    ]
    expected = np.concatenate(parts)[: len(given)]
    candidates = [served[0], served[1], served[1][:, 1:]]
    differences = [_difference(one, expected) for one in candidates if one.shape == expected.shape]
    least = min(differences, default=np.inf)
    if not least <= LARGEST_DIFFERENCE:
        raise CatalogError(
            f"the scores were read wrongly: {found.how}, but {found.output!r} of the file answers something else "
            f"(difference {least:.2g}); name the scores before the softmax with --output NAME --logits"
        )
    return float(least)


def _fill(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    return np.resize(rows, (count, *rows.shape[1:]))


def _array(answer: Any) -> NDArray[np.float64]:
    """Scores as an array; a ZipMap answers a dictionary a row."""
    if isinstance(answer, list):
        return np.array([list(row.values()) for row in answer], dtype=np.float64)
    array = np.asarray(answer, dtype=np.float64)
    return array.reshape(len(array), -1)


def _difference(one: NDArray[Any], other: NDArray[np.float64]) -> float:
    return float((np.abs(one - other) / np.maximum(np.abs(other), 1.0)).max())


def _run(model: onnx.ModelProto, outputs: list[str], name: str, rows: NDArray[np.float32]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        found: list[Any] = session.run(outputs, {name: rows})
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise CatalogError(f"ONNX Runtime cannot run the file: {error}") from error
    return found
