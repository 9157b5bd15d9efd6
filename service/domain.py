"""The vocabulary that every layer shares: what is asked (`Plan`) and what comes back (`Explanation`).

All values are frozen and cross the process boundary between the front and the workers as they are. They have no slots:
of classes with slots pickle calls Python for every value, which takes twice as long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod

import numpy as np
import orjson
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
RowType = np.dtype[np.floating]
SINGLE: RowType = np.dtype(np.float32)
DOUBLE: RowType = np.dtype(np.float64)
"""What holds the rows of a model as its artefact takes them, exactly: one of these two."""


class OutputSpace(StrEnum):
    """Where the explained output lives: after or before the model's link function, or, without one, a value."""

    PROBABILITY = "probability"
    LOGIT = "logit"
    VALUE = "value"


class Link(StrEnum):
    """What leads from the numbers that a network answers to the probabilities of a row."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    """Of each number on its own."""
    IDENTITY = "identity"
    """The numbers are what the model answers."""


class Completeness(StrEnum):
    """In what sense a method's attributions sum to f(x) - f(x')."""

    EXACT = "exact"
    ASYMPTOTIC = "asymptotic"
    BY_CONSTRUCTION = "by_construction"
    NONE = "none"


class Axis(StrEnum):
    """What is counted along an axis of a model's inputs, as methods see them.

    A feature has a unit of its own, such as euros or years. Along channels and dimensions of an embedding lie the parts
    of what an attribution is of, a pixel or a token.
    """

    FEATURE = "feature"
    CHANNEL = "channel"
    HEIGHT = "height"
    WIDTH = "width"
    POSITION = "position"
    EMBEDDING = "embedding"


PARTS = frozenset({Axis.CHANNEL, Axis.EMBEDDING})
"""The axes along which attributions are summed."""


class NoiseKind(StrEnum):
    """What is told of the attributions of noisy copies of an input: their mean or their variance."""

    SMOOTHGRAD = "smoothgrad"
    VARGRAD = "vargrad"


OptionValue = str | float | int | tuple[tuple[int, ...], ...]
"""The value of a method's option; the last are groups of features by their numbers."""


@dataclass(frozen=True, slots=True)
class Context:
    """What an explanation belongs to, in the caller's world."""

    decision_id: str | None = None
    subject: str | None = None
    cohort: Mapping[str, str] = field(default_factory=dict)


class Priority(StrEnum):
    """The two classes of the scheduler; interactive points are packed first."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True)
class Contrast:
    """The output numbered `index` less the one numbered `rather_than`: what speaks for one rather than the other."""

    index: int
    rather_than: int


Target = int | Contrast
"""Which single number is explained: the output of that number, or the difference of two."""


def read_target(outputs: Floats, target: Target) -> Floats:
    """The explained number [...] of `outputs` [..., outputs]."""
    if isinstance(target, Contrast):
        difference: Floats = outputs[..., target.index] - outputs[..., target.rather_than]
        return difference
    own: Floats = outputs[..., target]
    return own


@dataclass(frozen=True)
class ModelKey:
    """One version of one model; `digest` is that of the artefact in production: of its file, and its architecture."""

    name: str
    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class VersionRef:
    """One version of one model by the files it is made of: `digest` is the sha256 of its manifest, which names all
    others by theirs. Two versions of one artefact may differ in their manifests alone."""

    name: str
    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


LIMITS = frozenset({"maximum", "minimum", "clamp", "clampmin", "clampmax", "clip", "hardtanh"})
"""Operators that are there to limit what goes in, by `kind_of`."""


def kind_of(operator: str) -> str:
    """An operator's name in whatever spelling, as one word: `max_pool2d` and `MaxPool2d` are `maxpool2d`."""
    return operator.replace("_", "").lower()


@dataclass(frozen=True)
class Traits:
    """What of a model decides which methods apply to it, and at what cost; read off its graph when it is loaded.

    `shape` is that of one input as methods see it, with a size for each of the `axes`: (features,), (channels, height,
    width) or (positions, dimensions).
    `obstacle` says why the exact rule does not apply, None where it does. `kinks` names the operators at which the
    gradient jumps. `biases_obstacle` says why what the biases add does not account for the output, None where it does.
    `labels` is how many outputs the network has, and `link` what leads from them to probabilities. With `has_one_logit`
    the network answers the second label's logit alone, and the first one's is its negative.
    With `has_double_rows` rows are float64 until the network itself makes less of them.
    `columns` has for each input of a table the number of the unit that it belongs to, a category say, whose
    attributions are summed; it is empty where every input is one of its own.
    """

    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    labels: int
    obstacle: str | None
    kinks: tuple[str, ...]
    has_relu: bool
    has_convolution: bool
    biases_obstacle: str | None
    columns: tuple[int, ...] = ()
    has_one_logit: bool = False
    has_double_rows: bool = False
    link: Link = Link.SOFTMAX

    @property
    def units(self) -> int:
        """How many there are of what attributions are of: features, positions, pixels."""
        if self.columns:
            return max(self.columns) + 1
        return prod(size for axis, size in zip(self.axes, self.shape, strict=True) if axis not in PARTS)

    @property
    def summed_axes(self) -> tuple[int, ...]:
        """The axes of the parts, counted from the last one, which is -1."""
        return tuple(at - len(self.axes) for at, axis in enumerate(self.axes) if axis in PARTS)

    @property
    def has_features(self) -> bool:
        """Whether inputs are features, each with a name and a unit of its own."""
        return Axis.FEATURE in self.axes

    @property
    def has_channels(self) -> bool:
        """Whether an input is one channel of a pixel."""
        return Axis.CHANNEL in self.axes

    @property
    def has_space(self) -> bool:
        """Whether inputs lie beside and below each other, so that they can be blurred, or be a region."""
        return Axis.HEIGHT in self.axes and Axis.WIDTH in self.axes

    @property
    def has_embeddings(self) -> bool:
        """Whether an input is one dimension of a token's embedding."""
        return Axis.EMBEDDING in self.axes

    @property
    def bends(self) -> tuple[str, ...]:
        """The kinks that are more than limits, which few paths meet and those that do meet once or twice."""
        return tuple(name for name in self.kinks if kind_of(name) not in LIMITS)

    @property
    def is_piecewise_linear(self) -> bool:
        """Whether the exact rule applies."""
        return self.obstacle is None


@dataclass(frozen=True)
class Noise:
    """Gaussian noise around an explanation: so many `samples`, of a deviation of `scale` times each input's range."""

    kind: NoiseKind
    samples: int
    scale: float


@dataclass(frozen=True)
class BaselineChoice:
    """The baseline of a plan: a named set of the model, or one row that came with the request."""

    name: str
    version: str
    digest: str
    size: int
    row: tuple[float, ...] | None = None


class ToleranceOf(StrEnum):
    """What a tolerance bounds.

    `ATTRIBUTION`: the L1 error of the attributions, as estimated, and what their sum misses, both relative to their L1
    norm. `COMPLETENESS`: that, and what their sum misses relative to the change of the output.
    """

    ATTRIBUTION = "attribution"
    COMPLETENESS = "completeness"


SCHEMA = 2
"""Of plans, and of records. It changes where either gets a field, or one that means something else; records of earlier
schemas are read and replayed. Schema 1 is of plans and records that hold no number."""

FIELDS_OF_SCHEMA_1 = (
    "model",
    "method",
    "options",
    "input",
    "target",
    "output_space",
    "baseline",
    "tolerance",
    "max_evaluations",
    "seed",
    "floor",
    "noise",
    "tolerance_of",
    "errors",
)
"""In their order, in which a digest takes them."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides the numbers of one explanation, and nothing else.

    `input` is the model's input row in the artefact's own units. `target` None means the likeliest label.
    `tolerance` bounds the relative error of what `tolerance_of` names; denominators of relative errors are at least
    `floor` (units of the output space; None: one hundredth of the spread of the output over the baseline set).
    `max_evaluations` is the budget in gradient points. `errors` asks for the error of each attribution too.
    `schema` numbers the form of plans and of the records that hold them.
    """

    model: ModelKey
    method: str
    options: tuple[tuple[str, OptionValue], ...]
    input: tuple[float, ...]
    target: Target | None
    output_space: OutputSpace
    baseline: BaselineChoice
    tolerance: float
    max_evaluations: int
    seed: int
    floor: float | None
    noise: Noise | None = None
    tolerance_of: ToleranceOf = ToleranceOf.ATTRIBUTION
    errors: bool = False
    schema: int = SCHEMA

    def digest(self) -> str:
        """sha256 over every field, the model's digest included: equal digests have equal explanations.

        Of a plan that was read from a record of schema 1, it is over the fields that plans had then.
        """
        whole = self if self.schema != 1 else {name: getattr(self, name) for name in FIELDS_OF_SCHEMA_1}
        return hashlib.sha256(orjson.dumps(whole)).hexdigest()


@dataclass(frozen=True)
class ChunkShapes:
    """The rows of a model's two gradient chunks: `brief` for questions that fit it, `long` for all others."""

    brief: int
    long: int

    def __str__(self) -> str:
        return f"{self.brief}+{self.long}"

    @staticmethod
    def read(text: str) -> ChunkShapes:
        """The shapes that `text` names. Raises ValueError."""
        brief, _, long = text.partition("+")
        return ChunkShapes(int(brief), int(long))


@dataclass(frozen=True)
class Conditions:
    """What an explanation is repeated under: the chunk shapes it was computed at, and how many of its questions were
    answered before its deadline, None where that did not end it."""

    shapes: ChunkShapes
    answers: int | None


@dataclass(frozen=True)
class GroupShare:
    """What was found of several features together: their numbers, their dividend and their value."""

    members: tuple[int, ...]
    dividend: float
    value: float


@dataclass(frozen=True)
class Explanation:
    """What a worker computed for one plan.

    `outputs` are all that the deployed artefact answers for the input, in the plan's output space; `output` is what
    `target` reads of them.
    `attributions` has one value a unit of a table, or one a pixel, or one a position, as `shape` says; `standard_error`
    likewise where the method has one. `noisy_output` is the mean output over noisy copies, of which the attributions
    then speak. `interactions` is a matrix over the features, `groups` what was found of several
    features together.
    `attribution_errors`, one for each of the `attributions` and in their units, is how far each may be off; known of
    tables, and of all else where the plan asks for `errors`.
    `completeness_error` and `attribution_error` are relative (see `service.numerics.errors`), and None for methods that
    promise no sum, or take no integral. When the model answered
    a number that is not finite, `converged` is false with reason `non_finite` and the figures that could not be
    computed are None. `chunk_rows` are the `ChunkShapes` it was computed at, on which its last bits depend. `answers`
    is how many of its questions were answered before its deadline, None where that did not end it.
    """

    outputs: tuple[float, ...] | None
    target: Target
    output: float | None
    baseline_output: float | None
    attributions: tuple[float, ...] | None
    shape: tuple[int, ...]
    standard_error: tuple[float, ...] | None
    completeness: Completeness
    completeness_error: float | None
    attribution_error: float | None
    converged: bool
    reason: str | None
    evaluations: int
    rule: str
    small_difference: bool
    chunk_rows: str
    interactions: tuple[tuple[float, ...], ...] | None = None
    groups: tuple[GroupShare, ...] = ()
    noisy_output: float | None = None
    answers: int | None = None
    attribution_errors: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Timings:
    """Where the time of one request went in the worker, in seconds."""

    queue: float
    compute: float


@dataclass(frozen=True)
class Prediction:
    """All outputs of the deployed artefact for one input, by output space."""

    outputs: Mapping[OutputSpace, tuple[float, ...]]
