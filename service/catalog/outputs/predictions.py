"""Predictions and targets of every kind of output, as replies and records have them, and which kind a recorded one is.

Another kind of output defines its classes in its own file and is added to the unions and both functions here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.catalog.outputs.classes import ClassPrediction
from service.catalog.outputs.embedding import EmbeddingPrediction, SimilarityTarget
from service.catalog.outputs.kind import LabelTarget, Space
from service.catalog.outputs.labels import LabelsPrediction
from service.catalog.outputs.tokens import ContinuationTarget, TokensPrediction
from service.catalog.outputs.values import ValuesPrediction, ValueTarget

__all__ = ["AnyPrediction", "AnyTarget", "Space", "prediction_kind", "target_kind"]

AnyPrediction = ClassPrediction | LabelsPrediction | ValuesPrediction | EmbeddingPrediction | TokensPrediction
AnyTarget = LabelTarget | ValueTarget | SimilarityTarget | ContinuationTarget


def prediction_kind(content: Mapping[str, Any]) -> type[AnyPrediction]:
    """Which of the kinds a recorded prediction is of."""
    if "values" in content:
        return ValuesPrediction
    if "dimensions" in content:
        return EmbeddingPrediction
    if "next" in content:
        return TokensPrediction
    return LabelsPrediction if "labels" in content else ClassPrediction


def target_kind(content: Mapping[str, Any]) -> type[AnyTarget]:
    """Which of the kinds a recorded target is of."""
    if "measure" in content:
        return SimilarityTarget
    if "continuation" in content:
        return ContinuationTarget
    return ValueTarget if "value" in content else LabelTarget
