"""Embeddings: the network answers a vector, of which is explained what makes it similar to another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from reprlib import repr as abridged
from typing import Annotated, Any, ClassVar, Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from service.access.visibility import ALWAYS, OUTPUTS, Item
from service.catalog.nearest import did_you_mean, known
from service.catalog.outputs.kind import (
    PREDICTED,
    TARGET,
    TRUNCATED,
    KnownOutputs,
    OutputKind,
    Outputs,
    OutputsItem,
    PredictionItem,
    Space,
    are_finite,
)
from service.catalog.outputs.values import MIN_FLOOR, MIN_SHARE
from service.domain import Floats, Measure, OutputSpace, PlanTarget, Similarity, Target
from service.errors import Kind, invalid, pointer_to
from service.numerics.links import UNIT_LENGTH, Link

REFERENCE, MEASURE, SIDE = "similar_to", "measure", "side"
SIDES = ("instance", "reference")
"""Of a target: which of both is explained, the instance or what it is to be similar to."""
COSINE_FLOOR = 0.01
SHARE_OF_SPREAD = 0.01


class EmbeddingPrediction(PredictionItem):
    """The vector that the deployed artefact answers."""

    embedding: Annotated[
        tuple[float, ...] | None,
        OUTPUTS,
        Field(
            description="its numbers; empty where they are not finite, or not shown; absent with `embedding: false`",
        ),
    ] = None
    dimensions: Annotated[int, ALWAYS, Field(description="how many numbers it has")]
    output_space: Annotated[Space, ALWAYS, Field(description="what is explained of it")]
    truncated: Annotated[bool | None, ALWAYS, TRUNCATED] = None

    def brief(self) -> EmbeddingPrediction:
        return self.adding(embedding=None)


class SimilarityTarget(Item):
    """The similarity that is explained. What the input is similar to is in the personal part of the record."""

    measure: Annotated[Literal["cosine", "dot"], ALWAYS, Field(description="the cosine of the angle, or the product")]

    @property
    def text(self) -> str:
        """The target in words."""
        return "cosine similarity" if self.measure == Measure.COSINE.value else "dot product"


class Embedding(OutputKind):
    """A vector of so many `dimensions`. What is explained is its similarity to another one: to that of an instance
    which the request holds, or to a list of numbers."""

    noun: ClassVar[str] = "dimension"
    is_named: ClassVar[bool] = False
    network_noun: ClassVar[str] = "numbers"
    spaces: ClassVar[tuple[OutputSpace, ...]] = (OutputSpace.SIMILARITY,)
    network_space: ClassVar[OutputSpace] = OutputSpace.SIMILARITY
    network_link: ClassVar[Link] = UNIT_LENGTH
    adverse: ClassVar[None] = None

    kind: Literal["embedding"]
    dimensions: PositiveInt
    default_space: OutputSpace = OutputSpace.SIMILARITY

    @property
    def names(self) -> tuple[str, ...]:
        return self.usual_names(self.dimensions)

    @property
    def listed(self) -> str:
        return f"{self.dimensions}, of an embedding"

    def parity_scale(self, deployed: NDArray[np.floating]) -> NDArray[np.floating] | float:
        """The largest magnitude of all: one of the numbers may always be close to zero."""
        return float(np.abs(deployed).max()) or 1.0

    def reference_in(self, requested: object) -> tuple[str, object] | None:
        if not isinstance(requested, Mapping) or REFERENCE not in requested:
            return None
        reference = requested[REFERENCE]
        if not (_is_vector(reference) and len(reference) == self.dimensions):
            return REFERENCE, reference
        if self.explains_reference(requested):
            detail = "target: both sides are explained where `similar_to` is an instance; of numbers there is none"
            raise invalid(Kind.WRONG_VALUE, pointer_to("parameters", "target", REFERENCE), detail)
        return None

    def with_reference(self, requested: object, outputs: Outputs) -> object:
        assert isinstance(requested, Mapping)
        return {**requested, REFERENCE: list(outputs)}

    def explains_reference(self, requested: object) -> bool:
        return isinstance(requested, Mapping) and requested.get(SIDE) == SIDES[1]

    def read_target(self, requested: object) -> Target | None:
        if not isinstance(requested, Mapping) or REFERENCE not in requested:
            what = "is missing" if requested == PREDICTED else f"{abridged(requested)} is none of an embedding"
            detail = (
                f'target {what}: say what the instance is to be similar to, as in {{"similar_to": another instance}}, '
                f"or a list of {self.dimensions} numbers"
            )
            raise invalid(Kind.WRONG_VALUE, TARGET, detail)
        measure, reference = requested.get(MEASURE, Measure.COSINE), requested[REFERENCE]
        if measure not in set(Measure):
            detail = f"target.measure is {abridged(measure)}; {known('measures', Measure)}"
            place = pointer_to("parameters", "target", MEASURE)
            raise invalid(Kind.WRONG_VALUE, place, detail + did_you_mean(measure, Measure))
        place = pointer_to("parameters", "target", REFERENCE)
        if not (_is_vector(reference) and len(reference) == self.dimensions and are_finite(reference)):
            raise invalid(Kind.WRONG_VALUE, place, f"target.similar_to is no list of {self.dimensions} finite numbers")
        if measure == Measure.COSINE and not any(reference):
            detail = "target.similar_to is an embedding of zeros, which has no direction; take the measure `dot`"
            raise invalid(Kind.WRONG_VALUE, place, detail)
        return Similarity(tuple(map(float, reference)), Measure(measure))

    @property
    def usual_target(self) -> str:
        """In words, as a profile has it."""
        return "similarity to the example"

    def usual_request(self, example: object) -> object:
        return {REFERENCE: example}

    def is_usual(self, target: PlanTarget | None) -> bool:  # noqa: ARG002
        """Never: those of similarities to different instances cannot be compared."""
        return False

    def adverse_sign(self, target: PlanTarget) -> int | None:  # noqa: ARG002
        return None

    def target_item(self, target: PlanTarget) -> SimilarityTarget:
        assert isinstance(target, Similarity)
        return SimilarityTarget(measure=target.measure.value)

    def prediction_item(
        self, outputs: Outputs | None, space: OutputSpace, truncated: bool | None = None
    ) -> EmbeddingPrediction:
        answered = outputs if outputs is not None and are_finite(outputs) else ()
        return EmbeddingPrediction(
            embedding=tuple(answered), dimensions=self.dimensions, output_space=space.value, truncated=truncated
        )

    def decision(self, outputs: Outputs, space: OutputSpace) -> str | None:  # noqa: ARG002
        return None

    def is_adverse(self, outputs: Outputs, space: OutputSpace) -> bool:  # noqa: ARG002
        return False

    def default_floor(self, space: OutputSpace, over_baselines: Floats, target: PlanTarget) -> float:  # noqa: ARG002
        """Of cosines a hundredth; of products a hundredth of the spread over the baseline set, but no less than the
        rounding of such numbers in float32."""
        if isinstance(target, Similarity) and target.measure is Measure.COSINE:
            return COSINE_FLOOR
        spread = float(over_baselines.max() - over_baselines.min())
        return max(SHARE_OF_SPREAD * spread, MIN_SHARE * float(np.abs(over_baselines).max()), MIN_FLOOR)

    def check_quantity(self, quantity: str, of: str | None) -> None:  # noqa: ARG002
        raise ValueError(f"`{quantity}` is not told of embeddings; of a similarity there are `output` and `change`")

    def quantity(self, quantity: str, of: str | None, outputs: Outputs, space: OutputSpace) -> float | None:  # noqa: ARG002
        return None

    def labels_of(self, outputs: Outputs, space: OutputSpace) -> frozenset[str]:  # noqa: ARG002
        return frozenset()

    @classmethod
    def declaration(cls, known: KnownOutputs) -> dict[str, Any]:
        if known.adverse is not None:
            raise ValueError(f"nothing of an embedding is bad news: leave {known.adverse!r} out")
        return {"kind": "embedding", "dimensions": len(known.names), "tensors": dict(known.tensors)}

    def described(self) -> OutputsItem:
        return OutputsItem(
            kind=self.kind,
            dimensions=self.dimensions,
            adverse=None,
            spaces=[space.value for space in self.spaces],
            default_space=self.default_space.value,
        )


def _is_vector(value: object) -> TypeGuard[Sequence[float]]:
    return isinstance(value, list | tuple) and all(type(number) in (int, float) for number in value)
