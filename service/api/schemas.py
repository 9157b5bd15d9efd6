"""The shapes of `:explain` and `:predict`. Unknown fields are refused, so that a typo never changes an explanation.

Validation ends at the first error of a list or of unknown names: pydantic would describe each of them, and 8 MiB of
wrong items kept the event loop for 34 s and took 6.8 GB.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from service.errors import InvalidRequest
from service.ledger.entries import LONGEST_TEXT, read_subject
from service.ledger.naming import normal
from service.planning import NOISE_SAMPLES, NOISE_SCALE, Parameters
from service.records import Context

MOST_INSTANCES = 1000
MOST_COHORT_TAGS = 8
UNKNOWN_FIELD = "unknown_field"


def _label_or_index(value: object) -> object:
    if type(value) in (str, int):
        return value
    raise PydanticCustomError("target_type", "Input should be a label, a label's index, or `predicted`")


def _few_tags(value: object) -> object:
    if isinstance(value, dict) and len(value) > MOST_COHORT_TAGS:
        raise PydanticCustomError("too_long", "at most {most} tags", {"most": MOST_COHORT_TAGS})
    return value


def _subject(value: str) -> str:
    if len(normal(value)) > LONGEST_TEXT:
        raise PydanticKnownError("string_too_long", {"max_length": LONGEST_TEXT})
    try:
        return read_subject(value)
    except InvalidRequest as error:
        raise PydanticCustomError("subject", "{said}", {"said": str(error)}) from None


Subject = Annotated[
    StrictStr, AfterValidator(_subject), Field(json_schema_extra={"minLength": 1, "maxLength": LONGEST_TEXT})
]
Target = Annotated[str | int, BeforeValidator(_label_or_index)]
Tags = Annotated[dict[StrictStr, StrictStr], BeforeValidator(_few_tags), Field(max_length=MOST_COHORT_TAGS)]
Number = Annotated[FiniteFloat, Field(strict=True)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    _known: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls._known = frozenset(field.alias or name for name, field in cls.__pydantic_fields__.items())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, value: object) -> object:
        if type(value) is not dict or value.keys() <= cls._known:
            return value
        unknown = next(name for name in value if name not in cls._known)
        close = difflib.get_close_matches(unknown[:64], cls._known, 1)
        raise PydanticCustomError(
            UNKNOWN_FIELD, "is not a known field", {"name": unknown[:64], "meant": close[0] if close else ""}
        )


class NoiseBody(Strict):
    """Noise around any method; each copy gets an equal share of `max_evaluations`."""

    kind: StrictStr = Field(description="`smoothgrad`: the mean over the copies; `vargrad`: the variance")
    samples: StrictInt = Field(NOISE_SAMPLES, description="copies")
    scale: Number = Field(NOISE_SCALE, description="standard deviation, as a share of each input's range")


class ExplainParameters(Strict):
    """All optional; the model's manifest holds the defaults."""

    method: StrictStr | None = Field(None, description="an attribution method; the model's page lists them")
    target: Target = Field("predicted", description="a label, its index, or `predicted`")
    output_space: StrictStr | None = Field(None, description="`probability` or `logit`")
    baseline: Any = Field(None, description="a baseline set, optionally `name@version`; `zeros`; or an inline instance")
    tolerance: Number | None = Field(None, description="largest relative completeness error accepted, in (0, 1]")
    max_evaluations: StrictInt | None = Field(None, description="budget, in gradient points")
    seed: StrictInt = Field(0, description="of methods that draw, and of noise; recorded as 0 for others")
    deadline_ms: StrictInt | None = Field(None, description="milliseconds until an answer is due")
    strict: StrictBool = Field(False, description="answer 422 instead of an explanation over its tolerance")
    channels: StrictBool = Field(False, description="an image's attributions for each channel too")
    noise: NoiseBody | None = Field(None, description="mean or variance over noisy copies of the input")
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own options, by name")

    def parameters(self) -> Parameters:
        """As planning takes them."""
        return Parameters(**{**vars(self), "noise": None if self.noise is None else vars(self.noise)})


class PredictParameters(Strict):
    """What a prediction may be asked with."""

    output_space: StrictStr | None = Field(None, description="`probability` or `logit`")

    def parameters(self) -> Parameters:
        """As planning takes them."""
        return Parameters(output_space=self.output_space)


class ContextBody(Strict):
    """What the explanation belongs to; the ledger can be searched by each."""

    decision_id: StrictStr | None = Field(None, max_length=200)
    subject: Subject | None = Field(
        None, description="the person; what is recorded of them is found, held and erased by this name"
    )
    cohort: Tags = Field(default_factory=dict)

    def context(self) -> Context:
        """As the ledger takes it."""
        return Context(self.decision_id, self.subject, self.cohort)


Contexts = Annotated[list[ContextBody], Field(max_length=MOST_INSTANCES, fail_fast=True)]
Instances = Annotated[
    list[Any],
    Field(
        min_length=1,
        max_length=MOST_INSTANCES,
        description="each an object by feature name, in raw units, or a list in feature order",
    ),
]


class ExplainBody(Strict):
    """Instances to predict and explain; the answer is for all of them or none."""

    instances: Instances
    parameters: ExplainParameters = Field(default_factory=lambda: ExplainParameters())
    context: ContextBody | Contexts = Field(
        default_factory=lambda: ContextBody(), description="one for all instances, or a list with one per instance"
    )


class Nothing(Strict):
    """No body, or an empty object."""


NOTHING = Nothing()


class PredictBody(Strict):
    """Instances to predict."""

    instances: Instances
    parameters: PredictParameters = Field(default_factory=lambda: PredictParameters())
    context: ContextBody | Contexts = Field(default_factory=lambda: ContextBody())


class PredictionItem(BaseModel):
    """What the deployed artefact answers; no label where it answered no finite numbers."""

    label: str | None = None
    index: int | None = None
    outputs: list[float]
    output_space: Literal["probability", "logit"]


class PredictReply(BaseModel):
    predictions: list[PredictionItem]


class ModelItem(BaseModel):
    name: str
    version: str
    digest: str


class TargetItem(BaseModel):
    index: int
    label: str


class BaselineItem(BaseModel):
    name: str
    version: str
    digest: str
    size: int


class ImageItem(BaseModel):
    """One value a pixel, row by row, summed over the channels; `shape` is height and width."""

    shape: list[int]
    values: list[float]


class TokenItem(BaseModel):
    token: int
    attribution: float


class GroupItem(BaseModel):
    """Of `directional_ig`: a group's own share, and its value, the shares of all groups within it."""

    features: list[str] | list[int]
    dividend: float
    value: float


class NoiseItem(BaseModel):
    """`output` is the mean over the copies, which the attributions sum to where the method is complete."""

    kind: Literal["smoothgrad", "vargrad"]
    samples: int
    scale: float
    output: float | None


class ReasonItem(BaseModel):
    """A principal reason. `features` are all that share it, where there are several, the strongest first; what the
    manifest has no reason text for stands under its title, without a code."""

    feature: str
    features: list[str] | None = None
    code: str | None = None
    text: str
    contribution: float


class DisclosureItem(BaseModel):
    """How the key's policy limits what is shown: so many of the largest attributions, rounded to so many digits."""

    top: int | None = None
    digits: int | None = None
    outputs: bool | None = None


class TimingsItem(BaseModel):
    queue: float
    compute: float
    total: float


class ExplanationItem(BaseModel):
    """One explanation. What could not be computed, after an answer that is not finite, is absent."""

    id: str
    model: ModelItem
    method: str
    target: TargetItem
    output_space: Literal["probability", "logit"]
    output: float | None = None
    baseline_output: float | None = None
    attributions: dict[str, float] | ImageItem | list[TokenItem] | None = None
    completeness: Literal["exact", "asymptotic", "by_construction", "none"] | None = None
    completeness_error: float | None = None
    attribution_error: float | None = None
    standard_error: dict[str, float] | ImageItem | list[TokenItem] | None = None
    interactions: list[list[float]] | None = None
    groups: list[GroupItem] | None = None
    noise: NoiseItem | None = None
    converged: bool
    reason: Literal["budget", "deadline", "non_finite", "precision", "steps"] | None = None
    evaluations: int
    baseline: BaselineItem
    reasons: list[ReasonItem] | None = None
    flags: list[str]
    cached: bool
    disclosure: DisclosureItem | None = None
    timings_ms: TimingsItem


class ExplainReply(BaseModel):
    predictions: list[PredictionItem]
    explanations: list[ExplanationItem]


class Problem(BaseModel):
    """RFC 9457, with the detail once more in `error`."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    request_id: str
