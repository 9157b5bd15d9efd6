"""The `predictions` item of an answer."""

from __future__ import annotations

from service.catalog.inputs.kind import Places
from service.catalog.outputs.predictions import AnyPrediction
from service.catalog.versions import ModelVersion
from service.domain import OutputSpace


def prediction_of(
    version: ModelVersion, space: OutputSpace, outputs: tuple[float, ...] | None, places: Places | None = None
) -> AnyPrediction:
    """The `predictions` item; without what was predicted where the model answered a number that is not finite."""
    truncated = True if places is not None and places.truncated else None
    item: AnyPrediction = version.manifest.outputs.prediction_item(outputs, space, truncated)
    return item
