"""The shapes in which models are described."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.catalog.inputs.kind import InputItem
from service.catalog.outputs.kind import OutputsItem


class ModelsReply(BaseModel):
    """All models."""

    models: list[str] = Field(description="their names")


class CheckItem(BaseModel):
    """What `answerable models check` found of a version."""

    passed: bool = Field(description="whether nothing was found against it")
    failed: list[str] = Field(description="the checks that were not passed")
    against: str | None = Field(description="the earlier version that it was compared with")
    checked: int | None = Field(description="microseconds since the epoch, UTC")
    checks: list[dict[str, Any]] = Field(description="every check, with its figures and limits")


class VersionItem(BaseModel):
    """One version of a model."""

    version: str = Field(description="its number")
    digest: str = Field(description="the SHA-256 of the artefact")
    ready: bool = Field(description="whether it can be asked")
    parity: float | None = Field(None, description="the largest difference of artefact and gradients' network, seen")
    parity_allowed: float | None = Field(None, description="how large that may be, where the manifest says so")
    check: CheckItem | None = Field(description="null before it was checked")


class OptionItem(BaseModel):
    """An option of a method."""

    name: str = Field(description="as the parameter `options` names it")
    default: Any = Field(description="what is taken otherwise")
    description: str = Field(description="what it does")
    choices: list[str] | None = Field(None, description="the values it takes")
    low: float | None = Field(None, description="the least number it takes")
    high: float | None = Field(None, description="the greatest number it takes")
    whole: bool | None = Field(None, description="whether it takes whole numbers only")


class FigureItem(BaseModel):
    """One metric of one method over many explanations."""

    method: str = Field(description="the method whose explanations were judged")
    metric: str = Field(description="what was measured")
    better: Literal["higher", "lower", "neither"] = Field(description="which way a figure is better")
    replaced: str | None = Field(description="what stood in the place of removed components; null where none were")
    replaced_by: str | None = Field(description="the same in words")
    options: dict[str, Any] = Field(description="of the metric")
    mean: float | None = Field(description="over the explanations that have a figure; null where none has")
    interval: list[float] | None = Field(description="the bootstrap 95% interval of the mean, both ends")
    explanations: int = Field(description="how many have a figure")
    skipped: dict[str, int] = Field(description="how many have none, by the reason")


class MethodItem(BaseModel):
    """A method that the model can be explained with."""

    name: str = Field(description="as the parameter `method` names it")
    description: str = Field(description="what it does")
    completeness: list[Literal["exact", "asymptotic", "by_construction", "none"]] = Field(
        description="whether attributions sum to the change of the output, and why"
    )
    cost: str = Field(description="in gradient points, in words")
    least_points: int = Field(description="the smallest `max_evaluations` that gives an answer")
    options: list[OptionItem] = Field(description="its own options")
    citation: str = Field(description="the paper")
    measured: list[FigureItem] = Field(
        description="the latest figures of its explanations of this version; metrics disagree, and none ranks methods"
    )


class UnfitItem(BaseModel):
    """A method that the model cannot be explained with."""

    name: str = Field(description="of the method")
    reason: str = Field(description="why, and what to use instead")


class ListedSet(BaseModel):
    """A baseline set that requests can name."""

    name: str = Field(description="of the set")
    version: str = Field(description="of the set")
    digest: str = Field(description="the SHA-256 of its file")
    size: int = Field(description="rows")
    description: str = Field(description="what its rows are")


class DefaultsItem(BaseModel):
    """What a request without these parameters is answered with."""

    model_config = ConfigDict(extra="allow")

    method: str = Field(description="the method")
    baseline: str = Field(description="the baseline")
    tolerance: float = Field(description="the largest error accepted")
    max_evaluations: int = Field(description="the budget, in gradient points")


class ModelReply(BaseModel):
    """One version of a model, and which others there are."""

    name: str = Field(description="of the model")
    version: str = Field(description="the version that is described")
    ready: bool = Field(description="whether it can be asked")
    newest: str | None = Field(description="the version that the bare name means")
    title: str = Field(description="what the model is called for people")
    description: str = Field(description="what it is for")
    owner: str = Field(description="who answers for it")
    versions: list[VersionItem] = Field(description="all, the oldest first")
    inputs: list[InputItem] = Field(description="in their order")
    outputs: OutputsItem = Field(description="what it answers")
    methods: list[MethodItem] = Field(description="those that it can be explained with")
    unavailable_methods: list[UnfitItem] = Field(description="those that it cannot")
    baselines: list[ListedSet] = Field(description="sets that requests can name")
    defaults: DefaultsItem = Field(description="what is taken where a request does not say")
    example: Any = Field(description="a complete, valid instance")
