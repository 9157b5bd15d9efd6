"""The interface of all kinds of output: what the rest of the service asks of them.

A model answers some numbers for a row, its outputs, in one or more output spaces. A target says which single number of
them is explained: one output, or the difference of two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from reprlib import repr as abridged
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.access.visibility import ALWAYS, OUTPUT, Item
from service.catalog.nearest import did_you_mean, known
from service.domain import Floats, OutputSpace, PlanTarget
from service.errors import InvalidRequest, Kind, invalid, pointer_to
from service.numerics.links import Link

if TYPE_CHECKING:
    from service.catalog.inputs.kind import Inputs

PREDICTED = "predicted"
"""The target of a request that leaves it to the model which output is explained; no label can have this name."""
TARGET = pointer_to("parameters", "target")
MIN_FLOOR = 1e-6
PROBABILITY_FLOOR = 0.01
SHARE_OF_SPREAD = 0.01

Outputs = Sequence[float]
"""All outputs for one row, in one output space, all of them finite."""


@dataclass(frozen=True, slots=True)
class KnownOutputs:
    """What is known of the outputs of a model that has no manifest yet.

    `units` are those of values, empty where they are not known; `adverse` is the outcome that is bad news; `tensors`
    are named by output space.
    """

    names: Sequence[str]
    units: Sequence[str]
    adverse: str | None
    tensors: Mapping[str, str]
    has_one_logit: bool = False


Space = Literal["probability", "logit", "value", "similarity", "log_probability"]
TRUNCATED = Field(description="true where a text or a file was longer than the model takes")
"""The configuration of predictions of every kind."""


class PredictionItem(Item):
    """What the deployed artefact answers, as replies and records have it; each kind has a class of its own.

    The marks say what of them a policy shows.
    """

    @property
    def recorded_label(self) -> str | None:
        """The label by which records of it can be searched; None where there is none."""
        return None

    @property
    def further_labels(self) -> tuple[str, ...]:
        """Labels beside that one by which they are found as well."""
        return ()

    def brief(self) -> Self:
        """Without what a request may leave out: long outputs of which nobody reads a number."""
        return self


class TokenItem(Item):
    """A token of a language model, and how likely it is behind what stands before it."""

    token: Annotated[str | None, ALWAYS, Field(description="its text; absent where there is no tokenizer")] = None
    id: Annotated[int, ALWAYS, Field(description="its number in the vocabulary")]
    rather_than: Annotated[
        bool | None, ALWAYS, Field(description="true for one of the continuation that the other is compared with")
    ] = None
    log_probability: Annotated[float | None, OUTPUT, Field(description="natural logarithm")] = None


class LabelTarget(Item):
    """The label whose output is explained, perhaps as compared with another's."""

    index: Annotated[int, ALWAYS, Field(description="its place among the model's labels, from 0")]
    label: Annotated[str, ALWAYS, Field(description="its name")]
    rather_than: Annotated[
        str | None, ALWAYS, Field(description="the label whose output is taken away from this one's")
    ] = None

    @property
    def text(self) -> str:
        """The target in words."""
        return self.label if self.rather_than is None else f"{self.label} rather than {self.rather_than}"


class ValueItem(BaseModel):
    """A number that the model answers."""

    name: str = Field(description="as answers and the parameter `target` have it")
    unit: str = Field(description="of the number; `1` for none")
    title: str = Field(description="what it is called for people")


class BoundItem(BaseModel):
    """From where on a value is bad news: one of both."""

    above: float | None = Field(None, description="more than this is")
    below: float | None = Field(None, description="less than this is")
    value: str | None = Field(None, description="which value, where there are several")


class OutputsItem(BaseModel):
    """What the model answers."""

    kind: Literal["classes", "labels", "values", "embedding", "tokens"] = Field(
        description="`classes`: one of its labels; `labels`: several at once; `values`: numbers; `embedding`: a "
        "vector; `tokens`: what follows a prompt"
    )
    labels: list[str] | None = Field(
        None, description="its labels, in the order of the outputs; absent where there are none"
    )
    thresholds: dict[str, float] | None = Field(
        None, description="of several labels at once: the probability over which each is predicted"
    )
    values: list[ValueItem] | None = Field(None, description="its values, in the order of the outputs")
    dimensions: int | None = Field(None, description="of an embedding: how many numbers it has")
    adverse: str | BoundItem | None = Field(
        description="the label that people have a right to reasons for, or the bound of a value"
    )
    spaces: list[Space] = Field(description="what may be asked for as `output_space`")
    default_space: Space = Field(description="what is taken otherwise")


class OutputKind(BaseModel):
    """A manifest's `outputs`, and all that follows from them.

    An ONNX graph's `tensors` are named by output space, and the twin is cut at that of the `network_space`; the others
    may be left out where the graph has none. Other artefacts answer in the `network_space` and nothing else.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    noun: ClassVar[str]
    """What one output is of, as sentences say it."""
    is_named: ClassVar[bool] = True
    """Whether people have names for its outputs."""
    network_noun: ClassVar[str] = "logits"
    """What the network's own numbers are, as sentences say it."""
    spaces: ClassVar[tuple[OutputSpace, ...]]
    network_space: ClassVar[OutputSpace]
    """The space in which the network itself answers."""
    network_link: ClassVar[Link]
    """The function from the network's numbers to probabilities."""

    kind: str
    tensors: Mapping[OutputSpace, str] = {}
    default_space: OutputSpace

    @model_validator(mode="after")
    def _has_its_spaces(self) -> Self:
        unknown = [space for space in (self.default_space, *self.tensors) if space not in self.spaces]
        if unknown:
            spaces = " and ".join(self.spaces)
            raise ValueError(f"there is no output space {unknown[0].value!r} of {self.kind}; they have {spaces}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of the outputs, in their order."""
        raise NotImplementedError

    @property
    def listed(self) -> str:
        """The names, as people are told them."""
        return ", ".join(self.names)

    @property
    def width(self) -> int:
        """How many numbers the network answers for a row."""
        return len(self.names)

    def with_files(self, folder: Path, inputs: Inputs) -> Self:  # noqa: ARG002
        """The same, with the files of the version in `folder`, where outputs are said with them."""
        return self

    def check_inputs(self, inputs: Inputs) -> None:
        """Checks the declaration against that of the inputs. Raises ValueError."""
        if inputs.are_prompts:
            raise ValueError("prompts are those of a language model: its outputs.kind is tokens")

    @property
    def has_one_logit(self) -> bool:
        """Whether two labels share one number of the network."""
        return False

    @property
    def identity(self) -> str:
        """What the outputs of an artefact depend on besides itself: the link, which the manifest names."""
        return f"{self.network_link.name}, of one logit" if self.has_one_logit else self.network_link.name

    def is_comparable_with(self, other: OutputKind) -> bool:
        """Whether numbers of both, of outputs of the same names, mean the same."""
        return self.spaces == other.spaces and self.network_link == other.network_link

    @property
    def network_tensor(self) -> str:
        """Of an ONNX graph, the tensor at which the twin is cut."""
        return self.tensors[self.network_space]

    def check_format(self, form: str) -> None:
        """Checks the declaration against the format of the artefact. Raises ValueError."""
        if form == "onnx" and self.network_space not in self.tensors:
            others = [space for space in self.spaces if space != self.network_space]
            more = f", and one for `{others[0]}` if there is one" if others else ""
            raise ValueError(f"outputs.tensors names one tensor for `{self.network_space}`{more}")

    def parity_scale(self, deployed: NDArray[np.floating]) -> NDArray[np.floating] | float:  # noqa: ARG002
        """What `deployed` outputs [n, outputs] and the twin's are divided by before they are compared."""
        return 1.0

    def read_space(self, name: str | None) -> OutputSpace:
        """The output space of that name, or the default. Raises InvalidRequest."""
        if name is None:
            return self.default_space
        if name not in self.spaces:
            detail = f"output_space {abridged(name)} is not known; {known('spaces', self.spaces)}"
            pointer = pointer_to("parameters", "output_space")
            raise invalid(Kind.WRONG_VALUE, pointer, detail + did_you_mean(name, self.spaces))
        return OutputSpace(name)

    def read_target(self, requested: object) -> PlanTarget | None:
        """The target that a request asks for; None for what `default_target` says. Raises InvalidRequest."""
        raise NotImplementedError

    def reference_in(self, requested: object) -> tuple[str, object] | None:  # noqa: ARG002
        """The instance that a requested target refers to, and the name that it has there: the artefact has to be asked
        about it before the target can be read. None where there is none. Raises InvalidRequest."""
        return None

    def with_reference(self, requested: object, outputs: Outputs) -> object:  # noqa: ARG002
        """The requested target with the artefact's outputs for that instance in its place."""
        return requested

    def explains_reference(self, requested: object) -> bool:  # noqa: ARG002
        """Whether it is that instance which is explained, and the request's own that it refers to."""
        return False

    def default_target(self, outputs: NDArray[np.floating]) -> PlanTarget:
        """The output [outputs] that is explained where the request leaves it open."""
        return int(np.argmax(outputs))

    @property
    def usual_target(self) -> str:
        """The target of explanations without a request, as in checks, and of those that drift is measured on."""
        raise NotImplementedError

    def usual_request(self, example: object) -> object:  # noqa: ARG002
        """That target as a request has it, where `example` is the manifest's."""
        return self.usual_target

    def is_usual(self, target: PlanTarget | None) -> bool:
        """Whether explanations of this target are comparable with those of the usual one."""
        return target == self.read_target(self.usual_target)

    def adverse_sign(self, target: Any) -> int | None:
        """1 where a larger explained number is bad news, -1 where a smaller one is, None where neither is said."""
        raise NotImplementedError

    def target_item(self, target: Any) -> Any:
        """The target as answers and records have it; its `text` says it in words."""
        raise NotImplementedError

    def token_items(self, target: Any, outputs: Outputs | None) -> tuple[TokenItem, ...]:  # noqa: ARG002
        """The tokens whose log-probabilities the explained number is the sum of; empty where it is no such sum."""
        return ()

    def prediction_item(self, outputs: Outputs | None, space: OutputSpace, truncated: bool | None = None) -> Any:
        """An item of `predictions`; None stands for outputs that are no finite numbers."""
        raise NotImplementedError

    def decision(self, outputs: Outputs, space: OutputSpace) -> str | None:
        """What the outputs decide, in words; None where they decide nothing."""
        raise NotImplementedError

    def is_adverse(self, outputs: Outputs, space: OutputSpace) -> bool:
        """Whether what the outputs decide is bad news."""
        raise NotImplementedError

    def default_floor(self, space: OutputSpace, over_baselines: Floats, target: PlanTarget) -> float:  # noqa: ARG002
        """The least denominator of relative errors, where the manifest names none, in units of the output.

        `over_baselines` [K] are the explained outputs, those of the `target`, over the baseline set.
        """
        if space is OutputSpace.PROBABILITY:
            return PROBABILITY_FLOOR
        return max(SHARE_OF_SPREAD * float(over_baselines.max() - over_baselines.min()), MIN_FLOOR)

    def check_quantity(self, quantity: str, of: str | None) -> None:
        """Whether review rules may name the `quantity`, and `of` which output. Raises ValueError."""
        raise NotImplementedError

    def quantity(self, quantity: str, of: str | None, outputs: Outputs, space: OutputSpace) -> float | None:
        """A quantity of review rules that `check_quantity` accepts."""
        raise NotImplementedError

    def labels_of(self, outputs: Outputs, space: OutputSpace) -> frozenset[str]:
        """The labels that conditions of review rules refer to."""
        raise NotImplementedError

    @classmethod
    def count(cls, numbers: int) -> int:
        """How many outputs there are where a file answers so many numbers for a row."""
        return numbers

    @classmethod
    def usual_names(cls, count: int) -> tuple[str, ...]:
        """Default names for so many outputs."""
        return tuple(f"{cls.noun}_{at}" for at in range(count))

    @classmethod
    def declaration(cls, known: KnownOutputs) -> dict[str, Any]:
        """The `outputs` of a manifest. Raises ValueError where what is known does not fit them."""
        raise NotImplementedError

    @classmethod
    def _adverse_label(cls, names: Sequence[str], adverse: str | None) -> dict[str, str]:
        if adverse is not None and adverse not in names:
            raise ValueError(f"{adverse!r} is not among the {cls.noun}s {', '.join(names)}")
        return {} if adverse is None else {"adverse": adverse}

    def comparison_obstacle(self, other: OutputKind) -> str | None:
        """Why a version with the other outputs answers another question, as "both" go on; None where it does not."""
        if self.names != other.names or self.noun != other.noun:
            return f"have different {self.noun}s"
        if self.spaces != other.spaces or self.network_link != other.network_link:
            return "answer different kinds of output"
        return None

    def described(self) -> OutputsItem:
        """The outputs in the description of a model."""
        raise NotImplementedError

    def _check_names(self, names: Sequence[str]) -> None:
        """Raises ValueError for names that no request could use."""
        twice = [name for at, name in enumerate(names) if name in names[:at]]
        if twice:
            raise ValueError(f"the {self.noun} {twice[0]!r} is there twice, so no request could say which one it means")
        if PREDICTED in names:
            raise ValueError(
                f"a {self.noun} cannot be called {PREDICTED!r}: so a request asks for whatever is predicted"
            )
        if "" in names:
            raise ValueError(f"a {self.noun} has no name")

    def _index(self, requested: object, others: Sequence[str] = ()) -> int:
        """The number of an output, by its number or name; `others` are further words that the request could have used.

        Raises InvalidRequest.
        """
        names = self.names
        if type(requested) is int:
            if not 0 <= requested < len(names):
                allowed = f"lie between 0 and {len(names) - 1}" if len(names) > 1 else "be 0"
                raise self._unknown(f"target {requested} is not a {self.noun}'s index; it must {allowed}")
            return requested
        if requested not in names:
            targets = [*names, *others]
            detail = f"target {abridged(requested)} is not a {self.noun}; {known(f'{self.noun}s', targets)}"
            raise self._unknown(detail + did_you_mean(requested, targets))
        return names.index(str(requested))

    def _unknown(self, detail: str) -> InvalidRequest:
        return invalid(Kind.UNKNOWN_LABEL, TARGET, detail)

    def _no_contrast(self, why: str) -> InvalidRequest:
        return invalid(Kind.WRONG_VALUE, TARGET, f"target: `rather_than` compares two classes; {why}")


def are_finite(outputs: Outputs | None) -> bool:
    """Whether there are outputs, and all of them finite."""
    return outputs is not None and all(map(isfinite, outputs))
