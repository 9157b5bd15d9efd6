"""Targets as requests have them: a name, an index, or an object of one of these shapes. A further shape is a class
here, and its place in the list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, StrictBool, StrictInt, StrictStr
from pydantic_core import PydanticCustomError

from service.wording import SENTENCE

LABEL = (str, int)
"""The types of a label, or of its index."""
Number = Annotated[FiniteFloat, Field(strict=True)]


class TargetBody(BaseModel):
    """A target that is an object."""

    model_config = ConfigDict(extra="forbid")

    told_by: ClassVar[str]
    """The member by which it is told from the other shapes."""
    types: ClassVar[Mapping[str, tuple[type, ...]]]
    """Those that each member may have; none where any may be there."""
    offered: ClassVar[str]
    """What it is, for whoever may send one."""
    refused: ClassVar[str]
    """What it must be, for whoever sent another."""

    @classmethod
    def fits(cls, value: Mapping[str, Any]) -> bool:
        """Whether it has the members that it needs and no others, of their types."""
        needed = {name for name, field in cls.model_fields.items() if field.is_required()}
        return needed <= value.keys() <= cls.types.keys() and all(
            not cls.types[name] or type(part) in cls.types[name] for name, part in value.items()
        )

    def as_sent(self) -> list[dict[str, Any]]:
        """The targets that it stands for, one for each explanation."""
        return [vars(self)]


class Rather(TargetBody):
    """Two labels, of which the difference is explained."""

    told_by = "rather_than"
    types = {"label": LABEL, "rather_than": LABEL}
    offered = "of classes also an object of `label` and `rather_than`"
    refused = "must hold `label` and `rather_than`, each a label or its index"

    label: StrictStr | StrictInt = Field(description="a label, or its index")
    rather_than: StrictStr | StrictInt = Field(description="the label that it is compared with, or its index")


class SimilarTo(TargetBody):
    """Of an embedding: what the instance is similar to, and how that is measured."""

    told_by = "similar_to"
    types = {"similar_to": (), "measure": (str,), "both": (bool,)}
    offered = "of embeddings one with `similar_to`"
    refused = (
        "must hold `similar_to`, and may hold `measure`, `cosine` or `dot`, and `both`, true or false; nothing else"
    )

    similar_to: Any = Field(description="another instance, or an embedding: as many numbers as the model answers")
    measure: StrictStr = Field("cosine", description="`cosine`, that of the angle, or `dot`, the product")
    both: StrictBool = Field(
        False,
        description="explains both sides: a second explanation is of the other instance, by its similarity to the "
        "request's own",
    )

    def as_sent(self) -> list[dict[str, Any]]:
        own = {"similar_to": self.similar_to, "measure": self.measure}
        return [own, {**own, "side": "reference"}] if self.both else [own]


class ContinuationBody(TargetBody):
    """A text behind the prompt of a language model, of which the log-probability is explained."""

    told_by = "continuation"
    types = {"continuation": (str,), "rather_than": (str,), "per_token": (bool,)}
    offered = "of language models one with `continuation`"
    refused = "must hold a text as `continuation`, perhaps one as `rather_than`, and `per_token` as true or false"

    continuation: StrictStr = Field(description="the text, with the space that it begins with")
    rather_than: StrictStr | None = Field(None, description="the text whose log-probability is taken away")
    per_token: StrictBool = Field(False, description="attributions of each token's log-probability, too")


class Box(TargetBody):
    """A box of a map, of which one label's logits are summed."""

    told_by = "box"
    types = {"box": (list,), "label": LABEL}
    offered = "of maps one with `box`"
    refused = "must hold `box`, four numbers, and perhaps `label`, a label or its index"

    box: list[Number] = Field(
        min_length=4, max_length=4, description="left, top, right and bottom, in pixels of the image, from 0"
    )
    label: StrictStr | StrictInt | None = Field(
        None, description="a label, or its index; needed where there are several"
    )

    @classmethod
    def fits(cls, value: Mapping[str, Any]) -> bool:
        return (
            super().fits(value) and len(value["box"]) == 4 and all(type(edge) in (int, float) for edge in value["box"])
        )


BODIES: tuple[type[TargetBody], ...] = (SimilarTo, ContinuationBody, Box, Rather)
"""In the order in which they are told apart; what is none of the others is taken for the last."""
TARGETS = "a label or a value, by its name or index, or `predicted`; " + ", ".join(
    body.offered for body in (Rather, SimilarTo, ContinuationBody, Box)
)


def _checked(value: object) -> object:
    if type(value) in LABEL:
        return value
    if not isinstance(value, dict):
        raise PydanticCustomError(SENTENCE, f"must be {TARGETS}")
    body = next((body for body in BODIES if body.told_by in value), BODIES[-1])
    if not body.fits(value):
        raise PydanticCustomError(SENTENCE, body.refused)
    return value


Target = Annotated[str | int | Rather | SimilarTo | ContinuationBody | Box, BeforeValidator(_checked)]


def as_sent(target: str | int | TargetBody) -> list[str | int | dict[str, Any]]:
    """The targets that one stands for, as planning takes them."""
    return [*target.as_sent()] if isinstance(target, TargetBody) else [target]
