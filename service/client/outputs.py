"""What models answer, by kind of output: predictions, what was explained of them, and what a request may ask to be
explained. Another kind is a class of each here, and its line in the tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Required, TypedDict, TypeVar

from .reading import read

T = TypeVar("T")


class Prediction(ABC):
    """What the deployed model answers for an instance."""

    __slots__ = ()
    output_space: str
    """What its numbers are: `probability`, `logit` or `value`; of an embedding, `similarity` is explained."""

    @property
    @abstractmethod
    def text(self) -> str:
        """It in a few words."""

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Prediction:
        """Of the kind that its names say. Raises UnexpectedAnswer."""
        return read(_told(_PREDICTIONS, content) or PredictedClass, content)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedClass(Prediction):
    """One of the model's labels; none where the outputs are not finite."""

    output_space: str
    outputs: tuple[float, ...] = ()
    label: str | None = None
    index: int | None = None
    truncated: bool = False

    @property
    def text(self) -> str:
        return self.label if self.label is not None else "no number"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedLabels(Prediction):
    """Those of the model's labels that are over their thresholds, the likeliest first; perhaps none."""

    output_space: str
    labels: tuple[str, ...]
    outputs: tuple[float, ...] = ()
    label: str | None = None
    truncated: bool = False

    @property
    def text(self) -> str:
        return ", ".join(self.labels) or "no label"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedValues(Prediction):
    """Numbers by name, with their units (`1` for none)."""

    output_space: str
    values: dict[str, float]
    units: dict[str, str]
    truncated: bool = False

    @property
    def text(self) -> str:
        return ", ".join(f"{name} {with_unit(value, self.units[name])}" for name, value in self.values.items()) or (
            "no number"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedEmbedding(Prediction):
    """A vector; without its numbers where the request left them out, or they are not finite or not shown."""

    output_space: str
    dimensions: int
    embedding: tuple[float, ...] = ()
    truncated: bool = False

    @property
    def text(self) -> str:
        return f"an embedding of {self.dimensions} numbers"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedMap(Prediction):
    """The share of all places, by label, and the label with the most; none where there is no such place."""

    output_space: str
    areas: dict[str, float]
    label: str | None = None
    truncated: bool = False

    @property
    def text(self) -> str:
        return ", ".join(f"{label} {share:.0%}" for label, share in self.areas.items()) or "no number"


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelyToken:
    """A token, and the natural logarithm of its probability, behind what stands before it."""

    id: int
    token: str | None = None
    log_probability: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedTokens(Prediction):
    """What a language model would write next: the likeliest tokens, the likeliest first."""

    output_space: str
    next: tuple[LikelyToken, ...]
    truncated: bool = False

    @property
    def text(self) -> str:
        if not self.next:
            return "no number"
        likeliest = self.next[0]
        return f"token {likeliest.id}" if likeliest.token is None else repr(likeliest.token)


_PREDICTIONS: Mapping[str, type[Prediction]] = {
    "values": PredictedValues,
    "dimensions": PredictedEmbedding,
    "next": PredictedTokens,
    "areas": PredictedMap,
    "labels": PredictedLabels,
}
"""By a name that no other has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What was explained: the output of a label, perhaps less that of another, or a value."""

    index: int | None = None
    label: str | None = None
    rather_than: str | None = None
    value: str | None = None
    unit: str | None = None

    @property
    def text(self) -> str:
        """It in words."""
        name = self.value if self.label is None else self.label
        return f"{name} rather than {self.rather_than}" if self.rather_than is not None else str(name)

    def output(self, space: str | None) -> str:
        """The number that was explained, in words."""
        return f"{space} of {self.text}"

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Target:
        """Of the kind that its names say. Raises UnexpectedAnswer."""
        return read(_told(_TARGETS, content) or ExplainedOutput, content)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedOutput(Target):
    """One that is no more than a target may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedSimilarity(Target):
    """What was explained of an embedding: its similarity to another one, by the `measure`, `cosine` or `dot`."""

    measure: str

    @property
    def text(self) -> str:
        return "dot product" if self.measure == "dot" else f"{self.measure} similarity"

    def output(self, space: str | None) -> str:  # noqa: ARG002
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedContinuation(Target):
    """What was explained of a language model: the log-probability of a text, perhaps less that of another."""

    continuation: str

    @property
    def text(self) -> str:
        own = repr(self.continuation)
        return own if self.rather_than is None else f"{own} rather than {self.rather_than!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedRegion(Target):
    """What was explained of a map: the sum of a label's logits in a box, of so many places."""

    box: tuple[float, ...]
    places: int

    @property
    def text(self) -> str:
        return f"{self.label} in {', '.join(f'{edge:g}' for edge in self.box)}"


_TARGETS: Mapping[str, type[Target]] = {
    "measure": ExplainedSimilarity,
    "continuation": ExplainedContinuation,
    "box": ExplainedRegion,
}
"""By a name that no other has."""


def _told(kinds: Mapping[str, type[T]], content: Mapping[str, Any]) -> type[T] | None:
    return next((kind for name, kind in kinds.items() if name in content), None)


class Contrast(TypedDict):
    """A target: the difference of two classes."""

    label: str | int
    rather_than: str | int


class Similarity(TypedDict, total=False):
    """A target: how similar an embedding is to another one. With `both` there is a second explanation, of the other
    instance."""

    similar_to: Required[Any]
    measure: Literal["cosine", "dot"]
    both: bool


class Continuation(TypedDict, total=False):
    """A target: the log-probability of a text behind the prompt, perhaps less that of another one, and with `per_token`
    of each of its tokens."""

    continuation: Required[str]
    rather_than: str
    per_token: bool


class Box(TypedDict, total=False):
    """A target: one label's logits inside a box, left, top, right and bottom in pixels of the image."""

    box: Required[Sequence[float]]
    label: str | int


TargetOf = str | int | Contrast | Similarity | Continuation | Box
"""A label or a value, by its name or index; `predicted`; two classes; what an embedding is similar to; a continuation
of a prompt; or a box of a map."""


def with_unit(value: float, unit: str | None) -> str:
    """The number with its unit, in six digits."""
    return f"{value:g}" if unit in (None, "1") else f"{value:g} {unit}"
