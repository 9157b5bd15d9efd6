"""Tables for a model: rows of a file, the names of features, and the ranges that the manifest says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.domain import Floats
from service.errors import CatalogError
from service.lifecycle.adding.added_inputs import AddedInputs, Ask
from service.lifecycle.adding.rows import Column, Rows, comma_separated, names_of, read_rows, renames

if TYPE_CHECKING:
    from service.lifecycle.adding.adding import Asked
    from service.lifecycle.adding.manifests import Answers

UNKNOWN_RANGE = (-100.0, 100.0)
"""Of a feature of which no value is known."""


class AddedTable(AddedInputs):
    """Rows [features]; see `AddedInputs`."""

    def read(self, data: Path, asked: Asked, ask: Ask) -> Rows:
        """By the header, where there is one."""
        names = asked.features or ()
        inputs = [] if renames(data, names) else [Column(name) for name in names]
        return read_rows(data, self.given.shape, asked.dropped, inputs)

    def name_features(self, asked: Asked, rows: Rows | None, ask: Ask) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """As they are given, or else stand in the header, or else are asked for."""
        (columns,) = self.given.shape
        headers: tuple[str, ...] = asked.features or (rows.names if rows is not None else ())
        if not headers:
            given = ask(f"names of the {columns} features, separated by commas", "")
            headers = comma_separated(given) or tuple(f"feature_{at}" for at in range(1, columns + 1))
        if len(headers) != columns:
            raise CatalogError(
                f"the model takes {columns} features, {len(headers)} are named; give all with --features"
            )
        return names_of(headers, columns), headers

    def declared(self, rows: Floats | None, missing: Sequence[float | None], answers: Answers) -> dict[str, Any]:
        """Ranges around what was seen."""
        features = []
        for at, (name, title) in enumerate(zip(answers.features, answers.titles, strict=True)):
            low, high = UNKNOWN_RANGE if rows is None else _range(rows[:, at])
            feature: dict[str, Any] = {"name": name, "title": title, "range": [low, high]}
            if missing[at] is not None:
                feature["missing"] = missing[at]
            features.append(feature)
        return {"kind": "tabular", "tensor": self.given.name, "features": features}

    def example(self, rows: Floats | None, baseline: Floats, declared: dict[str, Any]) -> dict[str, float]:
        """The median of every column; ones where none is known."""
        names = [feature["name"] for feature in declared["features"]]
        middle = np.ones(len(names)) if rows is None or not len(rows) else np.median(rows, axis=0)
        return {name: float(f"{value:.12g}") for name, value in zip(names, middle, strict=True)}


def _range(values: Floats) -> tuple[float, float]:
    """What was seen, and as much again to either side; what was never negative stays so, and shares stay shares."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    spread = (high - low) or max(abs(high), 1.0)
    digits = 2 - math.floor(math.log10(spread))
    return (0.0 if low >= 0 else _outwards(low - spread, digits, math.floor)), _outwards(
        high + spread, digits, math.ceil
    )


def _outwards(value: float, digits: int, whole: Callable[[float], int]) -> float:
    """Rounded to so many digits after the point, or before it where they are negative, away from what was seen."""
    return round(whole(value * 10.0**digits) / 10.0**digits, digits)
