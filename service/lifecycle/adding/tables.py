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
    from service.lifecycle.adding.adding import AddOptions
    from service.lifecycle.adding.manifests import ManifestChoices

UNKNOWN_RANGE = (-100.0, 100.0)
"""The range of a feature for which there are no data."""


class AddedTable(AddedInputs):
    """Rows [features]; see `AddedInputs`."""

    def read(self, data: Path, options: AddOptions, ask: Ask) -> Rows:
        """Columns are matched by the header, where there is one."""
        names = options.features or ()
        inputs = [] if renames(data, names) else [Column(name) for name in names]
        return read_rows(data, self.input.shape, options.dropped, inputs)

    def name_features(
        self, options: AddOptions, rows: Rows | None, ask: Ask
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """From the command, or else the header, or else the user's answer."""
        (columns,) = self.input.shape
        return named_features(columns, options.features or (rows.names if rows is not None else ()), ask)

    def declared(
        self, rows: Floats | None, missing: Sequence[float | None], choices: ManifestChoices
    ) -> dict[str, Any]:
        """Features with ranges around their values in the data."""
        features = []
        for at, (name, title) in enumerate(zip(choices.features, choices.titles, strict=True)):
            low, high = UNKNOWN_RANGE if rows is None else range_around(rows[:, at])
            feature: dict[str, Any] = {"name": name, "title": title, "range": [low, high]}
            if missing[at] is not None:
                feature["missing"] = missing[at]
            features.append(feature)
        return {"kind": "tabular", "tensor": self.input.name, "features": features}

    def example(self, rows: Floats | None, baseline: Floats, declared: dict[str, Any]) -> dict[str, float]:
        """The median of every column; ones where there are no data."""
        names = [feature["name"] for feature in declared["features"]]
        middle = np.ones(len(names)) if rows is None or not len(rows) else np.median(rows, axis=0)
        return {name: float(f"{value:.12g}") for name, value in zip(names, middle, strict=True)}


def named_features(count: int, headers: tuple[str, ...], ask: Ask) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names and titles of so many features by their headers, or by the user's answer. Raises CatalogError."""
    if not headers:
        names = ask(f"names of the {count} features, separated by commas", "")
        headers = comma_separated(names) or tuple(f"feature_{at}" for at in range(1, count + 1))
    if len(headers) != count:
        raise CatalogError(f"the model takes {count} features, {len(headers)} are named; give all with --features")
    return names_of(headers, count), headers


def range_around(values: Floats) -> tuple[float, float]:
    """The range of the values, and as much more on either side; not below zero if no value is, and [0, 1] for
    shares."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    spread = (high - low) or max(abs(high), 1.0)
    digits = 2 - math.floor(math.log10(spread))
    return (0.0 if low >= 0 else _outwards(low - spread, digits, math.floor)), _outwards(
        high + spread, digits, math.ceil
    )


def _outwards(value: float, digits: int, whole: Callable[[float], int]) -> float:
    """Rounded outwards by `whole` (floor or ceil) to so many digits after the point, or before it if negative."""
    return round(whole(value * 10.0**digits) / 10.0**digits, digits)
