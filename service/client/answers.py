"""Predictions, explanations and records, as the service answers them.

Attributions are by feature, by step, by pixel or by token. Each is a class of its own, and which one it is the answer
says by its shape; predictions and targets are such classes too, in `outputs`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from .errors import DamagedRecord
from .outputs import Prediction, Target
from .reading import read

E = TypeVar("E", bound="Explanation")


class Attributions(ABC):
    """What each component of the input (a feature, one at a step, a pixel, a token) moved the output by."""

    __slots__ = ()

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Of the components."""

    @property
    @abstractmethod
    def values(self) -> tuple[float, ...]:
        """Of the components, in their order."""

    def ranked(self) -> list[tuple[str, float]]:
        """Names and values, the largest first, either way."""
        return sorted(zip(self.names, self.values, strict=True), key=lambda named: -abs(named[1]))

    @staticmethod
    def from_json(content: Any) -> Attributions:
        """Of the kind that their shape says. Raises UnexpectedAnswer."""
        if isinstance(content, list):
            return ByToken(tuple(read(Token, token) for token in content))
        if not isinstance(content.get("shape"), list):
            return ByFeature(content)
        return read(ByStep, content) if isinstance(content.get("features"), list) else read(ByPixel, content)


@dataclass(frozen=True, slots=True)
class ByFeature(Attributions):
    """Of a table, by the name of the feature or of its group."""

    by_name: dict[str, float]

    def __getitem__(self, name: str) -> float:
        return self.by_name[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.by_name)

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(self.by_name.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class ByStep(Attributions):
    """Of a series: `shape` is how many steps and features there are, and `values` are step by step.

    Where asked for, `over_time` is the sum over time of each feature, and `over_feature` that over the features of each
    step.
    """

    shape: tuple[int, ...]
    features: tuple[str, ...]
    values: tuple[float, ...]
    over_time: tuple[float, ...] | None = None
    over_feature: tuple[float, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{feature}[{step}]" for step in range(self.shape[0]) for feature in self.features)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByPixel(Attributions):
    """Of an image: `values` row by row, summed over channels; `channels` [channel][row][column] where asked for."""

    shape: tuple[int, ...]
    values: tuple[float, ...]
    channels: tuple[tuple[tuple[float, ...], ...], ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        width = self.shape[1]
        return tuple(f"row {at // width}, column {at % width}" for at in range(len(self.values)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token's value; where it begins and ends in the text (characters) or the file (bytes), if it came as one, and of
    a pair its part. With `units` a `word` or a `sentence` stands in the place of its tokens."""

    attribution: float
    token: str | int | None = None
    word: str | None = None
    sentence: str | None = None
    start: int | None = None
    end: int | None = None
    part: int | None = None

    @property
    def text(self) -> str:
        """The sentence, the word, or the token as the tokenizer spells it."""
        return str(next((one for one in (self.sentence, self.word) if one is not None), self.token))


@dataclass(frozen=True, slots=True)
class ByToken(Attributions):
    """Of a text, a pair, a file or a list of tokens: by token, in their order; of a text also by word or sentence."""

    tokens: tuple[Token, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(token.text for token in self.tokens)

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(token.attribution for token in self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuationToken:
    """A token of the explained continuation, or of the one that it is compared with, with its log-probability; where
    they were asked for, with the attributions of it alone."""

    id: int
    token: str | None = None
    rather_than: bool = False
    log_probability: float | None = None
    attributions: Attributions | None = None
    completeness_error: float | None = None
    attribution_error: float | None = None
    converged: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """The version that answered."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What the input is compared with."""

    name: str
    size: int
    version: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A principal reason: what it moved the output by, towards what is adverse."""

    feature: str
    text: str
    contribution: float
    code: str | None = None
    features: tuple[str, ...] = ()
    tied: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A named segment of a text: the sum of its attributions, and its share of all absolute ones."""

    name: str
    start: int
    end: int
    sum: float
    share: float | None = None
    part: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """How much of the ranking is left near the input, at the worst that was found; or `why` there is no figure."""

    radius: float
    bound: float
    rank_correlation: float | None = None
    top_share: float | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """In milliseconds."""

    queue: float
    compute: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One explanation. What could not be computed, or is not shown to this key, is None.

    `content` is the JSON that it was read from, with what this client does not know.
    """

    id: str
    method: str
    prediction: Prediction | None = None
    model: ModelRef | None = None
    target: Target | None = None
    output_space: str | None = None
    output: float | None = None
    baseline_output: float | None = None
    attributions: Attributions | None = None
    completeness: str | None = None
    completeness_error: float | None = None
    attribution_error: float | None = None
    standard_error: Attributions | None = None
    attribution_errors: Attributions | None = None
    segments: tuple[Segment, ...] = ()
    interactions: tuple[tuple[float, ...], ...] | None = None
    groups: tuple[Mapping[str, Any], ...] | None = None
    continuation: tuple[ContinuationToken, ...] = ()
    noise: Mapping[str, Any] | None = None
    converged: bool | None = None
    reason: str | None = None
    evaluations: int | None = None
    baseline: Baseline | None = None
    flags: tuple[str, ...] = ()
    cached: bool = False
    reasons: tuple[Reason, ...] = ()
    stability: Stability | None = None
    disclosure: Mapping[str, Any] | None = None
    timings_ms: Timings | None = None
    content: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def change(self) -> float | None:
        """What the attributions explain: the output less the baseline's."""
        return None if self.output is None or self.baseline_output is None else self.output - self.baseline_output


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPlace:
    """Where a record stands in the log; `tombstone` is the row of the event that erased the personal part."""

    sequence: int
    leaf: str
    tombstone: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Explanation):
    """A stored explanation, with whom it concerns and where it stands in the log; `created` in microseconds (UTC)."""

    created: int
    tenant: str
    key_id: str
    ledger: LogPlace
    retention: str | None = None
    subject: str | None = None
    decision_id: str | None = None
    cohort: dict[str, str] = field(default_factory=dict)
    input: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Whether a record is as it was written. `signed` is when the log of that `size` was, in microseconds (UTC)."""

    id: str
    valid: bool
    erased: bool
    faults: tuple[str, ...]
    size: int
    signed: int


def read_explained(content: Mapping[str, Any], prediction: Mapping[str, Any]) -> Explanation:
    """An explanation of a reply, and the prediction beside it. Raises UnexpectedAnswer."""
    return _read(Explanation, {**content, "prediction": prediction})


def read_record(content: Mapping[str, Any]) -> Record:
    """A stored explanation. Raises DamagedRecord, UnexpectedAnswer."""
    if content.get("damaged"):
        raise DamagedRecord(
            f"the record of {content.get('id')} is not what was written; `answerable ledger verify` says what else is "
            "not"
        )
    return _read(Record, content)


def _read(kind: type[E], content: Mapping[str, Any]) -> E:
    told = {name: value for name, value in content.items() if value is not None}
    return replace(read(kind, told), content=content)
