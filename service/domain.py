"""The types that every layer shares: what is to be computed (`Plan`) and the result (`Explanation`).

All values are frozen, and are pickled between the front and the workers as they are. The classes that are pickled have
no slots: for classes with slots pickle calls Python code for every value, which takes twice as long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import orjson
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
RowType = np.dtype[np.floating]
SINGLE: RowType = np.dtype(np.float32)
DOUBLE: RowType = np.dtype(np.float64)
"""The number type of a model's rows, of these two the one that its artefact takes."""


class OutputSpace(StrEnum):
    """What outputs are: after or before the model's link function, or, without one, values; of an embedding, which is
    explained by what it is similar to, its numbers."""

    PROBABILITY = "probability"
    LOGIT = "logit"
    VALUE = "value"
    SIMILARITY = "similarity"
    LOG_PROBABILITY = "log_probability"


class Completeness(StrEnum):
    """In what sense a method's attributions sum to f(x) - f(x')."""

    EXACT = "exact"
    ASYMPTOTIC = "asymptotic"
    BY_CONSTRUCTION = "by_construction"
    NONE = "none"


class NoiseKind(StrEnum):
    """The statistic of the attributions of noisy copies of an input: their mean or their variance."""

    SMOOTHGRAD = "smoothgrad"
    VARGRAD = "vargrad"


OptionValue = str | float | int | tuple[tuple[int, ...], ...]
"""The value of a method's option; the tuples are groups of features by their indices."""


@dataclass(frozen=True, slots=True)
class Context:
    """What an explanation belongs to, in the caller's terms."""

    decision_id: str | None = None
    subject: str | None = None
    cohort: Mapping[str, str] = field(default_factory=dict)


class Priority(StrEnum):
    """The two classes of the scheduler; interactive points are packed first."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True)
class Contrast:
    """The output at `index` minus the one at `rather_than`: what speaks for one rather than for the other."""

    index: int
    rather_than: int


class Measure(StrEnum):
    """How similar two embeddings are: by their dot product, or by the cosine of the angle between them."""

    COSINE = "cosine"
    DOT = "dot"


@dataclass(frozen=True)
class Similarity:
    """The similarity of the outputs, an embedding, to the embedding `reference` [outputs].

    An embedding of zeros has no direction: its cosine with any other is 0.
    """

    reference: tuple[float, ...]
    measure: Measure

    @property
    def coefficients(self) -> Floats:
        """What the outputs are multiplied by and summed: for the cosine the reference's direction. [outputs]."""
        reference = np.array(self.reference)
        if self.measure is Measure.COSINE:
            reference /= float(np.linalg.norm(reference)) or 1.0
        return reference

    def of(self, outputs: Floats) -> Floats:
        """The similarity [...] of `outputs` [..., outputs]."""
        products: Floats = outputs @ self.coefficients
        if self.measure is Measure.DOT:
            return products
        norms = np.linalg.norm(outputs, axis=-1)
        cosines: Floats = np.divide(products, norms, out=np.zeros_like(products), where=norms != 0)
        return cosines


@dataclass(frozen=True)
class Continuation:
    """What a language model says of a text behind the prompt: its log-probability, less that of the text that it is
    compared with. Both are by their tokens; `per_token` asks for the attributions of each token's, too."""

    tokens: tuple[int, ...]
    rather_than: tuple[int, ...] = ()
    per_token: bool = False

    @property
    def outputs_of_tokens(self) -> range:
        """Where among the outputs the log-probability of each token of both is."""
        return range(1, 1 + len(self.tokens) + len(self.rather_than))

    @property
    def explanations(self) -> int:
        """How many are computed for it."""
        return 1 + self.per_token * len(self.outputs_of_tokens)


Target = int | Contrast | Similarity
"""The single number that is explained: the output at an index, the difference of two, or a similarity."""

PlanTarget = Target | Continuation
"""What a plan explains: a number of the outputs, or one that the network is asked for together with its input."""


def output_of(target: PlanTarget) -> Target:
    """Where among the outputs the explained number is: that of a continuation is the first."""
    return 0 if isinstance(target, Continuation) else target


def read_target(outputs: Floats, target: Target) -> Floats:
    """The explained number [...] of `outputs` [..., outputs]."""
    if isinstance(target, Contrast):
        difference: Floats = outputs[..., target.index] - outputs[..., target.rather_than]
        return difference
    if isinstance(target, Similarity):
        return target.of(outputs)
    own: Floats = outputs[..., target]
    return own


@dataclass(frozen=True)
class ModelKey:
    """One version of one model; `digest` is that of the deployed artefact: of its file, and its architecture."""

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


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on the input: `samples` copies, with a standard deviation of `scale` times each input's range."""

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

    `ATTRIBUTION`: the estimated L1 error of the attributions and the error of their sum, both relative to their L1
    norm. `COMPLETENESS`: these, and the error of their sum relative to the change of the output.
    """

    ATTRIBUTION = "attribution"
    COMPLETENESS = "completeness"


SCHEMA = 2
"""The schema of plans and of records. It changes when either gets a field, or when a field changes its meaning; records
of earlier schemas can be read and replayed. Plans and records without a number are of schema 1."""

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
"""In the order in which they enter the digest."""


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
    target: PlanTarget | None
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

        For a plan that was read from a record of schema 1, only the fields that plans had then.
        """
        whole = self if self.schema != 1 else {name: getattr(self, name) for name in FIELDS_OF_SCHEMA_1}
        return hashlib.sha256(orjson.dumps(whole)).hexdigest()


GRADED = ".."
"""Between the rows of the smallest and of the largest of graded chunk shapes, as they are written."""


@dataclass(frozen=True)
class ChunkShapes:
    """The shapes of gradient chunks that an explanation is computed at: rows, and their length.

    There are two sizes: `brief` for questions that fit it, `long` for all others. Where each row costs nearly as much
    as the next, so that none should be padding, shapes are `graded`: all doublings from `brief` to `long`, of which a
    question takes several. Rows may be cut to a `length`, where what is cut off is padding; None: they are whole.
    """

    brief: int
    long: int
    length: int | None = None
    graded: bool = False

    def __str__(self) -> str:
        length = "" if self.length is None else f"x{self.length}"
        return f"{self.brief}{GRADED if self.graded else '+'}{self.long}{length}"

    @property
    def rows(self) -> tuple[int, ...]:
        """Of all sizes, ascending."""
        if not self.graded:
            return tuple(sorted({self.brief, self.long}))
        doublings = (self.long // self.brief).bit_length()
        return tuple(self.brief << power for power in range(doublings))

    @staticmethod
    def read(text: str) -> ChunkShapes:
        """The shapes that `text` names. Raises ValueError."""
        rows, _, length = text.partition("x")
        graded = GRADED in rows
        brief, _, long = rows.partition(GRADED if graded else "+")
        return ChunkShapes(int(brief), int(long), int(length) if length else None, graded)


@dataclass(frozen=True)
class Conditions:
    """The conditions for repeating an explanation: the chunk shapes it was computed in, and how many of its questions
    were answered before its deadline, None where that did not end it."""

    shapes: ChunkShapes
    answers: int | None


@dataclass(frozen=True)
class GroupShare:
    """The result for a group of features (`directional_ig`): their indices, their dividend and their value."""

    members: tuple[int, ...]
    dividend: float
    value: float


@dataclass(frozen=True)
class Explanation:
    """What a worker computed for one plan.

    `outputs` are all that the deployed artefact answers for the input, in the plan's output space; `output` is what
    `target` reads of them.
    `attributions` has one value a component: a feature or group of a table, a pixel, or a position, as `shape` says;
    `standard_error` likewise where the method has one. `noisy_output` is the mean output over noisy copies, of which
    the attributions then are. `interactions` is a matrix over the features, `groups` the results for groups of
    features.
    `attribution_errors`, one for each of the `attributions` and in their units, is how far each may be off; known of
    tables, and of all else where the plan asks for `errors`.
    `completeness_error` and `attribution_error` are relative (see `service.numerics.errors`), and None for methods that
    promise no sum, or take no integral. When the model answered a number that is not finite, `converged` is false with
    reason `non_finite` and the figures that could not be computed are None. `chunk_rows` are the `ChunkShapes` it was
    computed at, on which its last bits depend. `answers` is how many of its questions were answered before its
    deadline, None where that did not end it. `per_token` explains each token of a continuation, and of the one that it
    is compared with, where that was asked for.
    """

    outputs: tuple[float, ...] | None
    target: PlanTarget
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
    per_token: tuple[Explanation, ...] = ()


@dataclass(frozen=True)
class Timings:
    """Where the time of one request went in the worker, in seconds."""

    queue: float
    compute: float


@dataclass(frozen=True)
class Prediction:
    """All outputs of the deployed artefact for one input, by output space."""

    outputs: Mapping[OutputSpace, tuple[float, ...]]
