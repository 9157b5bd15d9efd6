"""The `predictions` item of an answer."""

from __future__ import annotations

import math

from service.catalog.inputs.kind import Places
from service.catalog.outputs.predictions import AnyPrediction, PredictionItem
from service.catalog.versions import ModelVersion
from service.domain import OutputSpace


def prediction_of(
    version: ModelVersion, space: OutputSpace, outputs: tuple[float, ...] | None, places: Places | None = None
) -> AnyPrediction:
    """The `predictions` item; without a label and outputs where the model answered a number that is not finite."""
    truncated = True if places is not None and places.truncated else None
    if outputs is None or not all(map(math.isfinite, outputs)):
        return PredictionItem(outputs=(), output_space=space.value, truncated=truncated)
    index = max(range(len(outputs)), key=outputs.__getitem__)
    return PredictionItem(
        label=version.manifest.outputs.labels[index],
        index=index,
        outputs=outputs,
        output_space=space.value,
        truncated=truncated,
    )
