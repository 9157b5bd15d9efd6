"""The requests that the client makes, each with how its answer is read; who sends them is in `clients`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

from .answers import (
    Explanation,
    Record,
    Verification,
    read_explained,
    read_record,
)
from .descriptions import ModelDescription, read_description
from .errors import UnexpectedAnswer
from .outputs import Prediction, TargetOf
from .reading import read

T = TypeVar("T")

FRESH = {"Cache-Control": "no-cache"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What an explanation belongs to. By its `subject`, the person, it is found, held and erased."""

    subject: str | None = None
    decision_id: str | None = None
    cohort: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a request has it."""
        content = {"subject": self.subject, "decision_id": self.decision_id, "cohort": self.cohort or None}
        return {name: value for name, value in content.items() if value is not None}


class Noise(TypedDict, total=False):
    """Noisy copies of the input, around any method."""

    kind: Literal["smoothgrad", "vargrad"]
    samples: int
    scale: float


class Parameters(TypedDict, total=False):
    """How to explain; the model's manifest says what is taken otherwise."""

    method: str
    target: TargetOf
    output_space: str
    baseline: Any
    tolerance: float
    tolerance_of: Literal["attribution", "completeness"]
    errors: bool
    stability: bool
    max_evaluations: int
    seed: int
    deadline_ms: int
    strict: bool
    channels: bool
    over: Literal["time", "feature"]
    units: Literal["words", "sentences"]
    noise: Noise
    options: Mapping[str, Any]
    embedding: bool


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how the JSON of its answer is read. `is_recorded` says that the service appends a record."""

    method: str
    path: str
    read: Callable[[Any], T]
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    is_recorded: bool = False

    def all_headers(self, *, may_repeat: bool) -> dict[str, str]:
        """With a key of its own, so that an explanation whose answer was lost is not recorded twice."""
        key = {"Idempotency-Key": str(uuid.uuid4())} if self.is_recorded and may_repeat else {}
        return {**self.headers, **key}


def list_models() -> Call[list[str]]:
    """The names of all models."""
    return Call("GET", "/v1/models", lambda content: [str(name) for name in _part(content, "models")])


def describe(model: str, version: str | None) -> Call[ModelDescription]:
    """What a model takes and gives."""
    return Call("GET", _model_path(model, version), read_description)


def predict(model: str, version: str | None, instances: Sequence[Any], **parameters: Any) -> Call[list[Prediction]]:
    """Predictions, without explanations."""
    return Call(
        "POST",
        f"{_model_path(model, version)}:predict",
        lambda content: [read(Prediction, one) for one in _part(content, "predictions")],
        {"instances": list(instances), "parameters": parameters},
    )


def explain(
    read: Callable[[Any], T],
    model: str,
    version: str | None,
    instances: Sequence[Any],
    contexts: Sequence[Context] | Context | None,
    parameters: Mapping[str, Any],
    *,
    fresh: bool,
) -> Call[T]:
    """Predictions with explanations; `fresh` ones are computed, whatever is in the cache.

    `read` is `read_explanations`, or with `when` among the parameters `read_either`.
    """
    body: dict[str, Any] = {"instances": list(instances), "parameters": dict(parameters)}
    if contexts is not None:
        body["context"] = (
            contexts.to_json() if isinstance(contexts, Context) else [context.to_json() for context in contexts]
        )
    path = f"{_model_path(model, version)}:explain"
    return Call("POST", path, read, body, FRESH if fresh else {}, is_recorded=True)


def show(explanation: str) -> Call[Record]:
    """A stored explanation."""
    return Call("GET", _explanation_path(explanation), read_record)


def verify(explanation: str) -> Call[Verification]:
    """Whether a stored explanation is as it was written."""
    return Call("POST", f"{_explanation_path(explanation)}:verify", lambda content: read(Verification, content), {})


def read_explanations(content: Any) -> list[Explanation]:
    """Those of the first instance, then those of the second. Raises UnexpectedAnswer."""
    return [read_explained(explanation, prediction) for explanation, prediction in _pairs(content)]


def read_either(content: Any) -> list[Explanation | Prediction]:
    """The same, with the prediction where there is no explanation. Raises UnexpectedAnswer."""
    return [
        read(Prediction, prediction) if explanation is None else read_explained(explanation, prediction)
        for explanation, prediction in _pairs(content)
    ]


def _pairs(content: Any) -> Iterator[tuple[Any, Any]]:
    """Each explanation, and the prediction that it is of."""
    predictions, explanations = _part(content, "predictions"), _part(content, "explanations")
    times, more = divmod(len(explanations), max(len(predictions), 1))
    if more or not times:
        raise UnexpectedAnswer("the answer has not as many explanations for each prediction")
    return zip(explanations, (prediction for prediction in predictions for _ in range(times)), strict=True)


def _part(content: Any, name: str) -> Any:
    if not isinstance(content, Mapping) or name not in content:
        raise UnexpectedAnswer(f"the answer has no `{name}`; is it the service that answers?")
    return content[name]


def _model_path(model: str, version: str | None) -> str:
    path = f"/v1/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"


def _explanation_path(explanation: str) -> str:
    return f"/v1/explanations/{quote(explanation, safe='')}"
