"""Targets as records keep them: an output's index, or what it takes to read several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from service.access.visibility import ALWAYS, Item
from service.domain import Contrast, Region, Target


class RecordedContrast(Item):
    """Two labels of which the difference is explained."""

    index: Annotated[int, ALWAYS, Field(description="of the label that is explained")]
    rather_than: Annotated[int, ALWAYS, Field(description="the index of the label that it is compared with")]


class RecordedRegion(Item):
    """Places of a map, of which the sum is explained."""

    start: Annotated[int, ALWAYS, Field(description="the index of the map's first output")]
    width: Annotated[int, ALWAYS, Field(description="of the map, in places")]
    places: Annotated[tuple[int, ...], ALWAYS, Field(description="the first column and row, and those behind the last")]


AnyRecordedTarget = int | RecordedContrast | RecordedRegion


def as_recorded(target: Target | None) -> AnyRecordedTarget | None:
    """What a record keeps of a target; None for one that was left to the model."""
    if isinstance(target, Contrast):
        return RecordedContrast(index=target.index, rather_than=target.rather_than)
    if isinstance(target, Region):
        return RecordedRegion(start=target.start, width=target.width, places=target.places)
    return target


def as_target(recorded: AnyRecordedTarget | None) -> Target | None:
    """The target that a record keeps."""
    if isinstance(recorded, RecordedContrast):
        return Contrast(recorded.index, recorded.rather_than)
    if isinstance(recorded, RecordedRegion):
        left, top, right, bottom = recorded.places
        return Region(recorded.start, recorded.width, (left, top, right, bottom))
    return recorded


def recorded_kind(content: Mapping[str, Any]) -> type[RecordedContrast | RecordedRegion]:
    """Which of the kinds a recorded target is of."""
    return RecordedRegion if "places" in content else RecordedContrast
