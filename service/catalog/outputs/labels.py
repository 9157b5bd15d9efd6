"""Labels: several may be right at once. The network answers a logit for each, of which the probability is the
sigmoid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from service.access.visibility import ALWAYS, OUTPUTS
from service.catalog.outputs.kind import (
    PREDICTED,
    TRUNCATED,
    KnownOutputs,
    LabelTarget,
    OutputKind,
    Outputs,
    OutputsItem,
    PredictionItem,
    Space,
    are_finite,
)
from service.domain import OutputSpace, Target
from service.numerics.links import SIGMOID, Link

THRESHOLD = 0.5
Threshold = Annotated[float, Field(gt=0, lt=1)]


class LabelsPrediction(PredictionItem):
    """What the deployed artefact answers where several labels may be right at once."""

    label: Annotated[str | None, ALWAYS, Field(description="the likeliest of `labels`; absent for none")] = None
    labels: Annotated[
        tuple[str, ...], ALWAYS, Field(description="those over their thresholds, the likeliest first; perhaps none")
    ]
    outputs: Annotated[
        tuple[float, ...],
        OUTPUTS,
        Field(description="one for each label of the model; empty where they are not finite, or not shown"),
    ]
    output_space: Annotated[Space, ALWAYS, Field(description="what the outputs are")]
    truncated: Annotated[bool | None, ALWAYS, TRUNCATED] = None

    @property
    def recorded_label(self) -> str | None:
        return self.label

    @property
    def further_labels(self) -> tuple[str, ...]:
        return self.labels[1:]


class Labels(OutputKind):
    """A label is predicted where its probability is over its threshold, which is 0.5 where `thresholds` has none.

    The `adverse` label is the one that is bad news for whoever is judged.
    """

    noun: ClassVar[str] = "label"
    spaces: ClassVar[tuple[OutputSpace, ...]] = (OutputSpace.PROBABILITY, OutputSpace.LOGIT)
    network_space: ClassVar[OutputSpace] = OutputSpace.LOGIT
    network_link: ClassVar[Link] = SIGMOID

    kind: Literal["labels"]
    labels: tuple[str, ...] = Field(min_length=1)
    thresholds: Mapping[str, Threshold] = {}
    adverse: str | None = None
    default_space: OutputSpace = OutputSpace.PROBABILITY

    @model_validator(mode="after")
    def _consistent(self) -> Labels:
        self._check_names(self.labels)
        unknown = [label for label in (*self.thresholds, self.adverse) if label not in {*self.labels, None}]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not among the labels")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return self.labels

    def read_target(self, requested: object) -> Target | None:
        if requested == PREDICTED:
            return None
        if isinstance(requested, Mapping):
            raise self._no_contrast("here each label is right or wrong on its own, so name one label or its index")
        return self._index(requested, [PREDICTED])

    @property
    def usual_target(self) -> str:
        return self.adverse or PREDICTED

    def adverse_sign(self, target: Target) -> int | None:
        return 1 if self.adverse is not None and target == self.labels.index(self.adverse) else None

    def target_item(self, target: Target) -> LabelTarget:
        assert isinstance(target, int)
        return LabelTarget(index=target, label=self.labels[target])

    def prediction_item(
        self, outputs: Outputs | None, space: OutputSpace, truncated: bool | None = None
    ) -> LabelsPrediction:
        if outputs is None or not are_finite(outputs):
            return LabelsPrediction(labels=(), outputs=(), output_space=space.value, truncated=truncated)
        labels = tuple(self._predicted(outputs, space))
        return LabelsPrediction(
            label=labels[0] if labels else None,
            labels=labels,
            outputs=tuple(outputs),
            output_space=space.value,
            truncated=truncated,
        )

    def decision(self, outputs: Outputs, space: OutputSpace) -> str | None:
        predicted = set(self._predicted(outputs, space))
        return ", ".join(label for label in self.labels if label in predicted) or "no label"

    def is_adverse(self, outputs: Outputs, space: OutputSpace) -> bool:
        return self.adverse in self._predicted(outputs, space)

    def check_quantity(self, quantity: str, of: str | None) -> None:
        if quantity not in {"probability", "label"}:
            raise ValueError(f"`{quantity}` is not told of labels; they have `probability` and `label`")
        if of is not None and of not in self.labels:
            raise ValueError(f"{of!r} is not among the labels {', '.join(self.labels)}")

    def quantity(self, quantity: str, of: str | None, outputs: Outputs, space: OutputSpace) -> float | None:  # noqa: ARG002
        wanted = max(outputs) if of is None else outputs[self.labels.index(of)]
        return wanted if space is OutputSpace.PROBABILITY else 0.5 * (1 + math.tanh(wanted / 2))

    def labels_of(self, outputs: Outputs, space: OutputSpace) -> frozenset[str]:
        return frozenset(self._predicted(outputs, space))

    def _predicted(self, outputs: Outputs, space: OutputSpace) -> list[str]:
        """The labels over their thresholds, the likeliest first."""
        ranked = sorted(range(len(outputs)), key=lambda at: -outputs[at])
        return [self.labels[at] for at in ranked if outputs[at] > self._threshold(self.labels[at], space)]

    def _threshold(self, label: str, space: OutputSpace) -> float:
        threshold = self.thresholds.get(label, THRESHOLD)
        return threshold if space is OutputSpace.PROBABILITY else math.log(threshold / (1 - threshold))

    @classmethod
    def declaration(cls, known: KnownOutputs) -> dict[str, Any]:
        return {
            "kind": "labels",
            "labels": list(known.names),
            **cls._adverse_label(known.names, known.adverse),
            "tensors": dict(known.tensors),
            "default_space": "probability",
        }

    def described(self) -> OutputsItem:
        return OutputsItem(
            kind=self.kind,
            labels=list(self.labels),
            thresholds={label: self.thresholds.get(label, THRESHOLD) for label in self.labels},
            adverse=self.adverse,
            spaces=[space.value for space in self.spaces],
            default_space=self.default_space.value,
        )
