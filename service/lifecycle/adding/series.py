"""Series for a model: which axis holds the features, and what the manifest says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto

from service.domain import Floats
from service.errors import CatalogError
from service.lifecycle.adding.added_inputs import AddedInputs, Ask
from service.lifecycle.adding.layout import channel_axis
from service.lifecycle.adding.rows import Rows, load_array
from service.lifecycle.adding.tables import UNKNOWN_RANGE, named_features, range_around

if TYPE_CHECKING:
    from service.lifecycle.adding.adding import AddOptions
    from service.lifecycle.adding.manifests import ManifestChoices


class AddedSeries(AddedInputs):
    """Rows [steps, features] or [features, steps]; see `AddedInputs`."""

    is_features_first: bool | None = None

    def check_graph(self, model: ModelProto, options: AddOptions, ask: Ask) -> None:
        """Finds the axis of the features: in the graph, in the command, or in the user's answer."""
        stated = None if options.channels is None else 1 if options.channels == "first" else 2
        axis = stated or channel_axis(model, self.input.name, 3)
        sizes = " x ".join(map(str, self.input.shape))
        if axis is None:
            answer = ask(f"is a row of {sizes} a series, and are its features the first axis or the last?", "")
            axis = 1 if answer.startswith("f") else 2 if answer.startswith("l") else None
        if axis is None:
            raise CatalogError(
                f"rows of {sizes} may be a series, and the file does not say which axis holds the features: add "
                "`--channels first` for [features, steps], as convolutions take it, or `--channels last` for [steps, "
                "features]. If it is a picture without channels, export the model behind nn.Flatten(1, 2), from "
                f"[rows, 1, {self.input.shape[0]}, {self.input.shape[1]}]"
            )
        self.is_features_first = axis == 1

    def read(self, data: Path, options: AddOptions, ask: Ask) -> Rows:
        """Series of the shape, in the order of the artefact."""
        array = load_array(data)
        if tuple(array.shape[1:]) != self.input.shape:
            wanted = ", ".join(map(str, self.input.shape))
            raise CatalogError(f"{data.name} holds an array of shape {list(array.shape)}; rows are [rows, {wanted}]")
        values: Floats = array.reshape(len(array), self._steps * self._features).astype(np.float64)
        if not len(values) or not np.isfinite(values).all():
            raise CatalogError(f"{data.name} holds no rows, or values that are infinite or no numbers")
        return Rows(values)

    def name_features(
        self, options: AddOptions, rows: Rows | None, ask: Ask
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """From the command, or the user's answer."""
        return named_features(self._features, options.features or (), ask)

    def declared(
        self, rows: Floats | None, missing: Sequence[float | None], choices: ManifestChoices
    ) -> dict[str, Any]:
        """Features with ranges around their values in the data, over all steps."""
        by_feature = None if rows is None or not len(rows) else self._by_feature(rows)
        features = []
        for at, (name, title) in enumerate(zip(choices.features, choices.titles, strict=True)):
            low, high = UNKNOWN_RANGE if by_feature is None else range_around(by_feature[at])
            features.append({"name": name, "title": title, "range": [low, high]})
        order = {"order": "features first"} if self.is_features_first else {}
        return {"kind": "series", "tensor": self.input.name, "steps": self._steps, "features": features, **order}

    def example(self, rows: Floats | None, baseline: Floats, declared: dict[str, Any]) -> Any:
        """The median at every step and of every feature; ones where there are no data."""
        middle = np.ones(baseline.shape[1]) if rows is None or not len(rows) else np.median(rows, axis=0)
        shaped = middle.reshape(self.input.shape)
        by_step = shaped.T if self.is_features_first else shaped
        return [[float(f"{value:.12g}") for value in step] for step in by_step]

    @property
    def _features(self) -> int:
        return self.input.shape[0 if self.is_features_first else 1]

    @property
    def _steps(self) -> int:
        return self.input.shape[1 if self.is_features_first else 0]

    def _by_feature(self, rows: Floats) -> Floats:
        """All values of each feature: [features, values]."""
        shaped = rows.reshape(-1, *self.input.shape)
        turned: Floats = np.moveaxis(shaped, 1 if self.is_features_first else 2, 0)
        return turned.reshape(self._features, -1)
