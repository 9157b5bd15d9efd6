"""Classes: one of several labels is right. The network answers their logits, of which the probabilities are the
softmax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
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
from service.domain import Contrast, OutputSpace, PlanTarget, Target
from service.errors import Kind, invalid, pointer_to
from service.numerics.links import SOFTMAX, Link


class ClassPrediction(PredictionItem):
    """What the deployed artefact answers; no label where its numbers are not finite."""

    label: Annotated[str | None, ALWAYS, Field(description="the label of the largest output")] = None
    index: Annotated[int | None, ALWAYS, Field(description="the label's place among the model's labels, from 0")] = None
    outputs: Annotated[
        tuple[float, ...],
        OUTPUTS,
        Field(description="one for each label; empty where they are not finite, or not shown"),
    ]
    output_space: Annotated[Space, ALWAYS, Field(description="what the outputs are")]
    truncated: Annotated[bool | None, ALWAYS, TRUNCATED] = None

    @property
    def recorded_label(self) -> str | None:
        return self.label


class Classes(OutputKind):
    """`link` leads from the logits to the probability.

    With `sigmoid` there is one logit, the second label's, which is its log-odds; those of the first label are the
    negative. The `adverse` label is the one that is bad news for whoever is judged.
    """

    noun: ClassVar[str] = "label"
    spaces: ClassVar[tuple[OutputSpace, ...]] = (OutputSpace.PROBABILITY, OutputSpace.LOGIT)
    network_space: ClassVar[OutputSpace] = OutputSpace.LOGIT
    network_link: ClassVar[Link] = SOFTMAX

    kind: Literal["classes"] = "classes"
    labels: tuple[str, ...] = Field(min_length=2)
    adverse: str | None = None
    link: Literal["softmax", "sigmoid"]
    default_space: OutputSpace = OutputSpace.PROBABILITY

    @model_validator(mode="after")
    def _consistent(self) -> Classes:
        self._check_names(self.labels)
        if self.adverse is not None and self.adverse not in self.labels:
            raise ValueError(f"the adverse label {self.adverse!r} is not among the labels")
        if self.has_one_logit and not self._is_pair:
            raise ValueError("the link 'sigmoid' is between one logit and two labels")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return self.labels

    @property
    def _is_pair(self) -> bool:
        return len(self.labels) == 2

    @property
    def has_one_logit(self) -> bool:
        return self.link == "sigmoid"

    def check_format(self, form: str) -> None:
        super().check_format(form)
        if form != "onnx" and self.has_one_logit:
            raise ValueError(f"the link 'sigmoid' is for ONNX: an artefact in the format {form} answers two logits")

    def read_target(self, requested: object) -> Target | None:
        if requested == PREDICTED:
            return None
        if not isinstance(requested, Mapping):
            return self._index(requested, [PREDICTED])
        index, other = (self._index(requested[name]) for name in ("label", "rather_than"))
        if index == other:
            detail = "target: `rather_than` is the label itself; name another"
            raise invalid(Kind.WRONG_VALUE, pointer_to("parameters", "target", "rather_than"), detail)
        return Contrast(index, other)

    @property
    def usual_target(self) -> str:
        return self.adverse or PREDICTED

    def is_usual(self, target: PlanTarget | None) -> bool:
        if self._is_pair and not isinstance(target, Contrast):
            return True  # they mirror each other
        return super().is_usual(target)

    def adverse_sign(self, target: Target) -> int | None:
        if self.adverse is None:
            return None
        adverse = self.labels.index(self.adverse)
        own, other = (target.index, target.rather_than) if isinstance(target, Contrast) else (target, None)
        if own == adverse:
            return 1
        return -1 if other == adverse or self._is_pair else None

    def target_item(self, target: Target) -> LabelTarget:
        if isinstance(target, Contrast):
            label, other = self.labels[target.index], self.labels[target.rather_than]
            return LabelTarget(index=target.index, label=label, rather_than=other)
        assert isinstance(target, int)
        return LabelTarget(index=target, label=self.labels[target])

    def prediction_item(
        self, outputs: Outputs | None, space: OutputSpace, truncated: bool | None = None
    ) -> ClassPrediction:
        if outputs is None or not are_finite(outputs):
            return ClassPrediction(outputs=(), output_space=space.value, truncated=truncated)
        index = max(range(len(outputs)), key=outputs.__getitem__)
        return ClassPrediction(
            label=self.labels[index],
            index=index,
            outputs=tuple(outputs),
            output_space=space.value,
            truncated=truncated,
        )

    def decision(self, outputs: Outputs, space: OutputSpace) -> str | None:  # noqa: ARG002 - the same in both
        return self.labels[int(np.argmax(outputs))]

    def is_adverse(self, outputs: Outputs, space: OutputSpace) -> bool:
        return self.decision(outputs, space) == self.adverse

    def check_quantity(self, quantity: str, of: str | None) -> None:
        if quantity == "value":
            raise ValueError("`value` is for values; classes have `probability`, `label` and `margin`")
        if of is not None and quantity == "margin":
            raise ValueError("`margin` is between the two largest outputs, so nothing stands in brackets behind it")
        if of is not None and of not in self.labels:
            raise ValueError(f"{of!r} is not among the labels {', '.join(self.labels)}")

    def quantity(self, quantity: str, of: str | None, outputs: Outputs, space: OutputSpace) -> float | None:
        if quantity == "margin":
            first, second = sorted(outputs, reverse=True)[:2]
            return first - second
        probabilities = self._probabilities(np.array(outputs), space)
        return float(probabilities.max() if of is None else probabilities[self.labels.index(of)])

    def _probabilities(self, outputs: Any, space: OutputSpace) -> Any:
        if space is OutputSpace.PROBABILITY:
            return outputs
        if self.has_one_logit:  # each label's own log-odds
            return 0.5 * (1 + np.tanh(outputs / 2))
        exponents = np.exp(outputs - outputs.max())
        return exponents / exponents.sum()

    def labels_of(self, outputs: Outputs, space: OutputSpace) -> frozenset[str]:  # noqa: ARG002
        return frozenset({self.labels[int(np.argmax(outputs))]})

    @classmethod
    def count(cls, numbers: int) -> int:
        """One number alone is of the second of two labels."""
        return max(numbers, 2)

    @classmethod
    def declaration(cls, known: KnownOutputs) -> dict[str, Any]:
        return {
            "labels": list(known.names),
            **cls._adverse_label(known.names, known.adverse),
            "link": "sigmoid" if known.has_one_logit else "softmax",
            "tensors": dict(known.tensors),
            "default_space": "probability",
        }

    def described(self) -> OutputsItem:
        return OutputsItem(
            kind=self.kind,
            labels=list(self.labels),
            adverse=self.adverse,
            spaces=[space.value for space in self.spaces],
            default_space=self.default_space.value,
        )
