"""Predictions and targets of every kind of output, as replies and records have them, and which kind a recorded one is.

Another kind of output defines its classes in its own file and is added to the unions and both functions here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.catalog.outputs.classes import ClassPrediction
from service.catalog.outputs.kind import LabelTarget, Space
from service.catalog.outputs.labels import LabelsPrediction
from service.catalog.outputs.maps import MapPrediction, RegionTarget
from service.catalog.outputs.values import ValuesPrediction, ValueTarget

__all__ = ["AnyPrediction", "AnyTarget", "Space", "prediction_kind", "target_kind"]

AnyPrediction = ClassPrediction | LabelsPrediction | ValuesPrediction | MapPrediction
AnyTarget = LabelTarget | ValueTarget | RegionTarget


def prediction_kind(content: Mapping[str, Any]) -> type[AnyPrediction]:
    """Which of the kinds a recorded prediction is of."""
    if "values" in content:
        return ValuesPrediction
    if "areas" in content:
        return MapPrediction
    return LabelsPrediction if "labels" in content else ClassPrediction


def target_kind(content: Mapping[str, Any]) -> type[AnyTarget]:
    """Which of the kinds a recorded target is of."""
    if "box" in content:
        return RegionTarget
    return ValueTarget if "value" in content else LabelTarget
