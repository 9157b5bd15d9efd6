"""The shapes of `:explain` and `:predict`. Unknown fields are refused, so that a typo never changes an explanation.

Validation ends at the first error of a list or of unknown names: pydantic would describe each of them, and 8 MiB of
wrong items kept the event loop for 34 s and took 6.8 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from service.api.targets import TARGETS, Number, Target, as_sent
from service.catalog.nearest import MAX_CHARACTERS_SHOWN, Searches
from service.domain import Context, ToleranceOf
from service.errors import MAX_FAULTS, InvalidRequest
from service.ledger.entries import MAX_TEXT_LENGTH, read_subject
from service.ledger.naming import normal
from service.usecases.planning import MAX_TARGETS, NOISE_SAMPLES, NOISE_SCALE, Parameters, RequestedTarget
from service.wording import SENTENCE

MAX_INSTANCES = 1000
MAX_COHORT_TAGS = 8
MAX_OPTIONS = 32
"""More than any method has."""
UNKNOWN_FIELD = "unknown_field"


def _at_most(maximum: int, what: str) -> Callable[[object], object]:
    """Refuses an object of more names before any of them is looked at."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > maximum:
            raise PydanticCustomError(SENTENCE, "must have at most {most} {what}", {"most": maximum, "what": what})
        return value

    return check


def _subject(value: str) -> str:
    if len(normal(value)) > MAX_TEXT_LENGTH:
        raise PydanticKnownError("string_too_long", {"max_length": MAX_TEXT_LENGTH})
    try:
        return read_subject(value)
    except InvalidRequest as error:
        raise PydanticCustomError(SENTENCE, "{detail}", {"detail": str(error)}) from None


Subject = Annotated[
    StrictStr, AfterValidator(_subject), Field(json_schema_extra={"minLength": 1, "maxLength": MAX_TEXT_LENGTH})
]
Targets = Annotated[list[Target], Field(min_length=1, max_length=MAX_TARGETS, fail_fast=True)]
Tags = Annotated[
    dict[StrictStr, StrictStr], BeforeValidator(_at_most(MAX_COHORT_TAGS, "tags")), Field(max_length=MAX_COHORT_TAGS)
]
Options = Annotated[dict[str, Any], BeforeValidator(_at_most(MAX_OPTIONS, "options")), Field(max_length=MAX_OPTIONS)]


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
        unknown = [*islice((name for name in value if name not in cls._known), MAX_FAULTS)]
        searches = Searches()
        hints = [searches.hint(name, cls._known) for name in unknown]
        names = [name[:MAX_CHARACTERS_SHOWN] for name in unknown]
        raise PydanticCustomError(UNKNOWN_FIELD, "is not a known field", {"unknown": [*zip(names, hints, strict=True)]})


class NoiseBody(Strict):
    """Noise around any method; each copy gets an equal share of `max_evaluations`."""

    kind: StrictStr = Field(description="`smoothgrad`: the mean over the copies; `vargrad`: the variance")
    samples: StrictInt = Field(NOISE_SAMPLES, description="copies")
    scale: Number = Field(NOISE_SCALE, description="standard deviation, as a share of each input's range")


EMBEDDING = Field(True, description="false leaves embeddings out of `predictions`")


class ExplainParameters(Strict):
    """All optional; the model's manifest holds the defaults."""

    method: StrictStr | None = Field(None, description="an attribution method; the model's page lists them")
    target: Target = Field(
        "predicted",
        description=TARGETS,
    )
    targets: Targets | None = Field(
        None,
        description="several, in the place of `target`: each instance then has an explanation of each, in this order",
    )
    when: StrictStr | None = Field(
        None,
        max_length=200,
        description="explains only instances for whose prediction this holds, `probability > 0.8` or `label == denied` "
        "say; the others have null in the place of each explanation, and no record",
    )
    output_space: StrictStr | None = Field(
        None,
        description="`probability` or `logit`; of values `value`, of embeddings `similarity`, of tokens "
        "`log_probability`",
    )
    baseline: Any = Field(None, description="a baseline set, optionally `name@version`; `zeros`; or an inline instance")
    tolerance: Number | None = Field(None, description="largest relative error accepted, in (0, 1]")
    tolerance_of: StrictStr = Field(
        ToleranceOf.ATTRIBUTION,
        description="what `tolerance` bounds: `attribution`, the attributions' error relative to their L1 norm; or "
        "`completeness`, also what their sum misses relative to the change of the output",
    )
    errors: StrictBool = Field(False, description="how far each attribution may be off, too: `attribution_errors`")
    stability: StrictBool = Field(
        False,
        description="how much of the ranking is left near the input where the prediction is the same: as much work as "
        "thirty more explanations, behind all others",
    )
    max_evaluations: StrictInt | None = Field(None, description="budget, in gradient points")
    seed: StrictInt = Field(0, description="of methods that draw, and of noise; recorded as 0 for others")
    deadline_ms: StrictInt | None = Field(None, description="milliseconds until an answer is due")
    strict: StrictBool = Field(False, description="answer 422 instead of an explanation over its tolerance")
    channels: StrictBool = Field(False, description="an image's attributions for each channel too")
    over: Literal["time", "feature"] | None = Field(
        None,
        description="sums of a series' attributions too: over `time`, one for each feature, or over `feature`, one for "
        "each step",
    )
    units: Literal["words", "sentences"] | None = Field(
        None,
        description="a text's attributions by word (as its tokenizer divides it) or sentence, in the place of tokens: "
        "the sum over them, and of errors a bound on the sum's",
    )
    noise: NoiseBody | None = Field(None, description="mean or variance over noisy copies of the input")
    options: Options = Field(default_factory=dict, description="the method's own options, by name")
    embedding: StrictBool = EMBEDDING

    @property
    def explanations(self) -> int:
        """How many explanations an instance has."""
        targets = [self.target] if self.targets is None else self.targets
        return sum(len(as_sent(target)) for target in targets)

    def parameters(self) -> Parameters:
        """As planning takes them; a target of both sides becomes two."""
        own: Sequence[RequestedTarget] = as_sent(self.target) if "target" in self.model_fields_set else [None]
        placed: list[tuple[Sequence[str | int], RequestedTarget]] = []
        if self.targets is not None:
            placed = [(("targets", at), one) for at, target in enumerate(self.targets) for one in as_sent(target)]
        elif len(own) > 1:
            placed, own = [(("target",), one) for one in own], [None]
        read = {
            "target": own[0],
            "targets": [one for _, one in placed] or None,
            "places": [place for place, _ in placed] or None,
            "noise": None if self.noise is None else vars(self.noise),
        }
        return Parameters(**{name: value for name, value in {**vars(self), **read}.items() if name != "embedding"})


class PredictParameters(Strict):
    """What a prediction may be asked with."""

    output_space: StrictStr | None = Field(None, description="`probability` or `logit`")
    embedding: StrictBool = EMBEDDING

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


Contexts = Annotated[list[ContextBody], Field(max_length=MAX_INSTANCES, fail_fast=True)]
Instances = Annotated[
    list[Any],
    Field(
        min_length=1,
        max_length=MAX_INSTANCES,
        description="each an object by feature name, in raw units, or a list in feature order; a text is an object "
        "with `text`, of a pair a list of two, and may have `segments`: a list of `name`, `start` and `end` in "
        "characters, of a pair also `part`",
    ),
]


class ExplainBody(Strict):
    """Instances to predict and explain; the answer is for all of them or none."""

    instances: Instances
    parameters: ExplainParameters = Field(default_factory=lambda: ExplainParameters(), description="how to explain")
    context: ContextBody | Contexts = Field(
        default_factory=lambda: ContextBody(), description="one for all instances, or a list with one per instance"
    )

    @model_validator(mode="after")
    def _not_too_many(self) -> ExplainBody:
        check_size(self.instances, self.parameters, MAX_INSTANCES)
        return self


def check_size(instances: Sized, parameters: ExplainParameters, most: int) -> None:
    """Refuses more than so many explanations of instances."""
    explanations = len(instances) * parameters.explanations
    if explanations > most:
        sentence = "asks for {explanations} explanations, one for each instance and target; {most} at most"
        raise PydanticCustomError(SENTENCE, sentence, {"explanations": explanations, "most": most})


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
        None, max_length=MAX_FAULTS, description="every fault of the request; left out where it has no place in it"
    )
    tombstone: dict[str, Any] | None = Field(None, description="what the log says of an erasure; of status 410 only")
