"""What a model takes and gives, as `GET /v1/models/{model}` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .reading import read


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """A feature of a table; of images and tokens there is one without a name, whose `kind` says what it is."""

    name: str | None = None
    title: str | None = None
    unit: str | None = None
    range: tuple[float, ...] | None = None
    categories: tuple[Any, ...] | None = None
    whole: bool = False
    missing: float | str | None = None
    protected: bool = False
    group: str | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What the model answers: one of its labels (`classes`), several at once (`labels`), numbers (`values`), or a
    vector (`embedding`) of so many `dimensions`."""

    kind: str
    spaces: tuple[str, ...]
    default_space: str
    labels: tuple[str, ...] = ()
    values: tuple[Mapping[str, str], ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)
    dimensions: int | None = None
    adverse: str | Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method that the model can be explained with; `options` are its own, by their names."""

    name: str
    description: str
    completeness: tuple[str, ...]
    cost: str
    least_points: int
    options: tuple[Mapping[str, Any], ...] = ()
    citation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineSet:
    """A baseline set that requests can name."""

    name: str
    version: str
    digest: str
    size: int
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """One version of a model; `example` is a complete, valid instance. `content` is the JSON it was read from."""

    name: str
    version: str
    ready: bool
    title: str
    description: str
    inputs: tuple[Feature, ...]
    outputs: Outputs
    methods: tuple[Method, ...]
    baselines: tuple[BaselineSet, ...]
    defaults: Mapping[str, Any]
    newest: str | None = None
    example: Any = None
    content: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def titles(self) -> dict[str, str]:
        """What features, and groups of them, are called for people, by name."""
        return {feature.name: feature.title or feature.name for feature in self.inputs if feature.name is not None}


def read_description(content: Mapping[str, Any]) -> ModelDescription:
    """Raises UnexpectedAnswer."""
    return replace(read(ModelDescription, content), content=content)
