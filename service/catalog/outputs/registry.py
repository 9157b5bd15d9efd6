"""The kinds of output. Another kind is a class in a file beside these, and its line in each of the lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field

from service.catalog.outputs.classes import Classes, ClassPrediction, RecordedContrast
from service.catalog.outputs.embedding import (
    Embedding,
    EmbeddingPrediction,
    RecordedSimilarity,
    Similarity,
    SimilarityTarget,
)
from service.catalog.outputs.kind import LabelTarget
from service.catalog.outputs.labels import Labels, LabelsPrediction
from service.catalog.outputs.maps import MapPrediction, Maps, RecordedRegion, Region, RegionTarget
from service.catalog.outputs.tokens import Continuation, ContinuationTarget, Tokens, TokensPrediction
from service.catalog.outputs.values import Values, ValuesPrediction, ValueTarget
from service.domain import Combination, Contrast


def _with_kind(declared: Any) -> Any:
    """Manifests that name no kind declare classes."""
    return {"kind": "classes", **declared} if isinstance(declared, Mapping) else declared


Outputs = Annotated[
    Classes | Labels | Values | Embedding | Tokens | Maps, Field(discriminator="kind"), BeforeValidator(_with_kind)
]
"""What a manifest declares, by the word `kind`."""

AnyPrediction = (
    ClassPrediction | LabelsPrediction | ValuesPrediction | EmbeddingPrediction | TokensPrediction | MapPrediction
)
"""What was predicted, as replies and records have it."""

AnyTarget = LabelTarget | ValueTarget | SimilarityTarget | ContinuationTarget | RegionTarget
"""What was explained, as replies and records have it."""

AnyRecordedTarget = int | RecordedContrast | RecordedSimilarity | RecordedRegion
"""What was asked for, as records keep it in clear: an output's index, or what a kind has beside these."""

COMBINATIONS: tuple[type[Combination], ...] = (Contrast, Similarity, Continuation, Region)


def prediction_kind(content: Mapping[str, Any]) -> type[AnyPrediction]:
    """Which of the kinds a recorded prediction is of."""
    kind: type[AnyPrediction] = _told(get_args(AnyPrediction), content)
    return kind


def target_kind(content: Mapping[str, Any]) -> type[AnyTarget]:
    """Which of the kinds a recorded target is of."""
    kind: type[AnyTarget] = _told(get_args(AnyTarget), content)
    return kind


def recorded_kind(content: Mapping[str, Any]) -> type[RecordedContrast | RecordedSimilarity | RecordedRegion]:
    """Which of the kinds what was asked for is of, where it is no index."""
    kind: type[RecordedContrast | RecordedSimilarity | RecordedRegion] = _told(get_args(AnyRecordedTarget)[1:], content)
    return kind


def combination_kind(content: Mapping[str, Any]) -> type[Combination]:
    """Which of the kinds the target of a kept explanation is of, where it is no index."""
    kind: type[Combination] = _told(COMBINATIONS, content)
    return kind


def _told(kinds: tuple[Any, ...], content: Mapping[str, Any]) -> Any:
    """The kind that is told by a field of the content, or else the first, which has none of these."""
    return next((kind for kind in kinds[1:] if kind.told_by in content), kinds[0])
