"""The shapes of `:explain` and `:predict`. Unknown fields are refused, so that a typo never changes an explanation.

Validation ends at the first error of a list or of unknown names: pydantic would describe each of them, and 8 MiB of
wrong items kept the event loop for 34 s and took 6.8 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
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

from service.answers.records import Context
from service.catalog.nearest import LONGEST_SHOWN, Searches
from service.domain import ToleranceOf
from service.errors import MOST_FAULTS, InvalidRequest
from service.ledger.entries import MAX_TEXT_LENGTH, read_subject
from service.ledger.naming import normal
from service.usecases.planning import NOISE_SAMPLES, NOISE_SCALE, Parameters

MOST_INSTANCES = 1000
MOST_COHORT_TAGS = 8
MOST_OPTIONS = 32
"""More than any method has."""
UNKNOWN_FIELD = "unknown_field"


def _label_or_index(value: object) -> object:
    if type(value) in (str, int):
        return value
    raise PydanticCustomError("target_type", "Input should be a label, a label's index, or `predicted`")


def _few(most: int, what: str) -> Callable[[object], object]:
    """Refuses an object of more names before any of them is looked at."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > most:
            raise PydanticCustomError("too_long", "at most {most} {what}", {"most": most, "what": what})
        return value

    return check


def _subject(value: str) -> str:
    if len(normal(value)) > MAX_TEXT_LENGTH:
        raise PydanticKnownError("string_too_long", {"max_length": MAX_TEXT_LENGTH})
    try:
        return read_subject(value)
    except InvalidRequest as error:
        raise PydanticCustomError("subject", "{said}", {"said": str(error)}) from None


Subject = Annotated[
    StrictStr, AfterValidator(_subject), Field(json_schema_extra={"minLength": 1, "maxLength": MAX_TEXT_LENGTH})
]
Target = Annotated[str | int, BeforeValidator(_label_or_index)]
Tags = Annotated[
    dict[StrictStr, StrictStr], BeforeValidator(_few(MOST_COHORT_TAGS, "tags")), Field(max_length=MOST_COHORT_TAGS)
]
Options = Annotated[dict[str, Any], BeforeValidator(_few(MOST_OPTIONS, "options")), Field(max_length=MOST_OPTIONS)]
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
        unknown = [*islice((name for name in value if name not in cls._known), MOST_FAULTS)]
        searches = Searches()
        hints = [searches.hint(name, cls._known) for name in unknown]
        names = [name[:LONGEST_SHOWN] for name in unknown]
        raise PydanticCustomError(UNKNOWN_FIELD, "is not a known field", {"unknown": [*zip(names, hints, strict=True)]})


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
    tolerance: Number | None = Field(None, description="largest relative error accepted, in (0, 1]")
    tolerance_of: StrictStr = Field(
        ToleranceOf.ATTRIBUTION,
        description="what `tolerance` bounds: `attribution`, the attributions' error relative to their L1 norm; or "
        "`completeness`, also what their sum misses relative to the change of the output",
    )
    errors: StrictBool = Field(False, description="how far each attribution may be off, too: `attribution_errors`")
    max_evaluations: StrictInt | None = Field(None, description="budget, in gradient points")
    seed: StrictInt = Field(0, description="of methods that draw, and of noise; recorded as 0 for others")
    deadline_ms: StrictInt | None = Field(None, description="milliseconds until an answer is due")
    strict: StrictBool = Field(False, description="answer 422 instead of an explanation over its tolerance")
    channels: StrictBool = Field(False, description="an image's attributions for each channel too")
    noise: NoiseBody | None = Field(None, description="mean or variance over noisy copies of the input")
    options: Options = Field(default_factory=dict, description="the method's own options, by name")

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

    decision_id: StrictStr | None = Field(None, max_length=200, description="the decision, as the caller knows it")
    subject: Subject | None = Field(
        None, description="the person; what is recorded of them is found, held and erased by this name"
    )
    cohort: Tags = Field(default_factory=dict, description="tags by name, such as the channel")

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
    parameters: ExplainParameters = Field(default_factory=lambda: ExplainParameters(), description="how to explain")
    context: ContextBody | Contexts = Field(
        default_factory=lambda: ContextBody(), description="one for all instances, or a list with one per instance"
    )


class Nothing(Strict):
    """No body, or an empty object."""


NOTHING = Nothing()


class PredictBody(Strict):
    """Instances to predict."""

    instances: Instances
    parameters: PredictParameters = Field(default_factory=lambda: PredictParameters(), description="how to answer")
    context: ContextBody | Contexts = Field(
        default_factory=lambda: ContextBody(), description="taken as for an explanation; nothing is recorded"
    )


Space = Literal["probability", "logit"]


class PredictionItem(BaseModel):
    """What the deployed artefact answers; no label where it answered no finite numbers."""

    label: str | None = Field(None, description="the label of the largest output")
    index: int | None = Field(None, description="the label's place among the model's labels, from 0")
    outputs: list[float] = Field(description="one for each label; empty where they are not finite, or not shown")
    output_space: Space = Field(description="what the outputs are")
    truncated: bool | None = Field(None, description="true where a text or a file was longer than the model takes")


class PredictReply(BaseModel):
    """The predictions, in the order of the instances."""

    predictions: list[PredictionItem] = Field(description="one for each instance")


class ModelItem(BaseModel):
    """The version of a model that answered."""

    name: str = Field(description="of the model")
    version: str = Field(description="of the model")
    digest: str = Field(description="the SHA-256 of the artefact")


class TargetItem(BaseModel):
    """The label whose output is explained."""

    index: int = Field(description="its place among the model's labels, from 0")
    label: str = Field(description="its name")


class BaselineItem(BaseModel):
    """What the input is compared with."""

    name: str = Field(description="of the baseline set, or `inline`, `zeros` or `mask`")
    version: str = Field(description="of the set")
    digest: str = Field(description="the SHA-256 of the set's file, or of the row")
    size: int = Field(description="rows")


class ImageItem(BaseModel):
    """One value a pixel, summed over the channels."""

    shape: list[int] = Field(description="height and width")
    values: list[float] = Field(description="row by row")
    channels: list[list[list[float]]] | None = Field(
        None, description="by channel, row and column, where the parameter `channels` asks for it"
    )


class TokenItem(BaseModel):
    """The value of one token."""

    token: int | str = Field(description="its number, or of a text as the tokenizer spells it")
    start: int | None = Field(None, description="where it begins in the text (characters) or the file (bytes)")
    end: int | None = Field(None, description="where it ends; a special token is as long as nothing")
    attribution: float = Field(description="its value")


class GroupItem(BaseModel):
    """Of `directional_ig`: a group of features."""

    features: list[str] | list[int] = Field(description="its members, by name, or by number where they have none")
    dividend: float = Field(description="the group's own share")
    value: float = Field(description="the shares of all groups within it")


class NoiseItem(BaseModel):
    """The noisy copies that the values are the mean or the variance over."""

    kind: Literal["smoothgrad", "vargrad"] = Field(description="`smoothgrad`: the mean; `vargrad`: the variance")
    samples: int = Field(description="copies")
    scale: float = Field(description="standard deviation, as a share of each input's range")
    output: float | None = Field(
        description="the mean over the copies, which the attributions sum to where the method is complete"
    )


class ReasonItem(BaseModel):
    """A principal reason."""

    feature: str = Field(description="the feature, or the strongest of those that share the reason")
    features: list[str] | None = Field(None, description="all that share it, where there are several, strongest first")
    code: str | None = Field(None, description="of the reason text; absent where the manifest has none")
    text: str = Field(description="the reason text, or the feature's title")
    contribution: float = Field(description="what it moved the output by, towards the adverse label")
    tied: bool | None = Field(None, description="there where the numerical error leaves its place in the order open")


class DisclosureItem(BaseModel):
    """How the key's policy limits what is shown."""

    top: int | None = Field(None, description="so many of the largest attributions are shown")
    digits: int | None = Field(None, description="values are rounded to so many significant digits of the largest")
    outputs: bool | None = Field(None, description="false: no outputs are shown")


class TimingsItem(BaseModel):
    """How long it took, in milliseconds."""

    queue: float = Field(description="waiting for a worker")
    compute: float = Field(description="computing")
    total: float = Field(description="from the request to the answer")


Values = dict[str, float] | ImageItem | list[TokenItem]
"""By feature, by pixel, or by token."""


class Explained(BaseModel):
    """What an answer and a record both hold. What could not be computed, after an answer that is not finite, is
    absent."""

    id: str = Field(description="a UUID (version 7), by which the ledger finds the record")
    method: str = Field(description="the attribution method")
    output: float | None = Field(None, description="the deployed artefact's output for the input")
    baseline_output: float | None = Field(None, description="the mean of its outputs over the baseline")
    attributions: Values | None = Field(None, description="by feature, by pixel, or by token")
    completeness: Literal["exact", "asymptotic", "by_construction", "none"] | None = Field(
        None, description="whether the attributions of this method sum to the change of the output, and why"
    )
    completeness_error: float | None = Field(
        None, description="what their sum misses, relative to the change (or to the manifest's floor, if larger)"
    )
    attribution_error: float | None = Field(
        None, description="the estimated relative error of the attributions (L1) from the quadrature"
    )
    attribution_errors: Values | None = Field(
        None, description="with `errors`: how far each attribution may be off, in units of the output"
    )
    standard_error: Values | None = Field(
        None, description="of expected gradients: the error from the baseline set being a sample"
    )
    interactions: list[list[float]] | None = Field(None, description="of integrated Hessians: by pair of features")
    groups: list[GroupItem] | None = Field(None, description="of `directional_ig`: by group of features")
    noise: NoiseItem | None = Field(None, description="the noisy copies, where there are some")
    reason: Literal["budget", "deadline", "non_finite", "precision", "steps"] | None = Field(
        None, description="why it was not"
    )
    reasons: list[ReasonItem] | None = Field(
        None, description="the principal reasons, the strongest first; for models with reason texts"
    )
    disclosure: DisclosureItem | None = Field(None, description="what the key's policy keeps back, where it does")


class ExplanationItem(Explained):
    """One explanation."""

    model: ModelItem = Field(description="what answered")
    target: TargetItem = Field(description="what was explained")
    output_space: Space = Field(description="what the outputs are")
    converged: bool = Field(description="whether the tolerance was met")
    evaluations: int = Field(description="gradient points spent")
    flags: list[str] = Field(description="the review rules that fired")
    cached: bool = Field(description="whether it was computed for an earlier request")
    baseline: BaselineItem = Field(description="what the input is compared with")
    timings_ms: TimingsItem = Field(description="the header Server-Timing repeats those of the first")


class ExplainReply(BaseModel):
    """The answer, in the order of the instances."""

    predictions: list[PredictionItem] = Field(description="one for each instance")
    explanations: list[ExplanationItem] = Field(description="one for each instance")


class ErrorItem(BaseModel):
    """One fault of the request."""

    type: str = Field(description="the kind of this fault, as in the problem")
    pointer: str | None = Field(None, description="a JSON pointer (RFC 6901) to the value in the body")
    parameter: str | None = Field(None, description="instead, the name of a parameter of the query or the path")
    detail: str = Field(description="what is wrong, and what to do about it")


class Problem(BaseModel):
    """RFC 9457, with the detail once more in `error`."""

    type: str = Field(
        description="`urn:answerable:problem:` and the kind of the problem, which stays what it is; that of the first "
        "of several faults",
        examples=["urn:answerable:problem:missing-feature"],
    )
    title: str = Field(description="the kind in words")
    status: int = Field(description="the status of the answer")
    detail: str = Field(description="what is wrong, and what to do about it")
    error: str = Field(description="the same as `detail`; clients of KServe read it")
    request_id: str = Field(description="leads to the request in the log; the header X-Request-Id has it too")
    errors: list[ErrorItem] | None = Field(
        None, max_length=MOST_FAULTS, description="every fault of the request; left out where it has no place in it"
    )
    tombstone: dict[str, Any] | None = Field(None, description="what the log says of an erasure; of status 410 only")
