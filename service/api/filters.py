"""Filters of stored explanations: the conditions of `GET /v1/explanations`, of jobs and of exports."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictBool, StrictStr, WithJsonSchema
from pydantic_core import PydanticCustomError

from service.api.schemas import Strict, Tags
from service.ledger.moments import A_MOMENT, EXAMPLE_DAY, EXAMPLE_TIME, read_moment
from service.ledger.searches import Search
from service.wording import SENTENCE


def _read_moment(value: object, *, is_end: bool) -> object:
    if value is None:
        return None
    if not isinstance(value, str):
        raise PydanticCustomError(SENTENCE, "must be {moment}", {"moment": A_MOMENT})
    try:
        return read_moment(value, is_end=is_end)
    except ValueError as error:
        raise PydanticCustomError(SENTENCE, "{advice}", {"advice": str(error)}) from None


def _described(included: str) -> WithJsonSchema:
    description = f"{A_MOMENT}; {included}"
    return WithJsonSchema({"type": "string", "description": description, "examples": [EXAMPLE_DAY, EXAMPLE_TIME]})


From = Annotated[
    int | None, BeforeValidator(partial(_read_moment, is_end=False)), _described("what is of that moment is included")
]
To = Annotated[
    int | None,
    BeforeValidator(partial(_read_moment, is_end=True)),
    _described("the whole of a day is included; what is of a time is not"),
]
"""The ends of a period, in microseconds since the epoch."""

FROM = "at or after this time, with its zone, for instance 2026-01-31T12:00:00Z"
TO = "before this time, with its zone"
"""The same ends, as parameters of a query are described."""


class FilterBody(Strict):
    """Conditions that all hold; none means all explanations."""

    model: StrictStr | None = Field(None, description="the model's name")
    version: StrictStr | None = Field(None, description="the model's version; needs `model`")
    subject: StrictStr | None = Field(None, description="the person")
    decision_id: StrictStr | None = Field(None, description="the decision")
    created_from: From = Field(None, alias="from")
    created_to: To = Field(None, alias="to")
    converged: StrictBool | None = Field(None, description="whether the tolerance was met")
    flag: StrictStr | None = Field(None, description="a review rule that fired")
    label: StrictStr | None = Field(None, description="the predicted label")
    reviewed: StrictBool | None = Field(None, description="whether a person has reviewed it")
    cohort: Tags = Field(default_factory=dict, description="tags, by name")

    def search(self, model: str | None = None) -> Search:
        """As the ledger takes them; `model` where none is named. Raises InvalidRequest."""
        return search_of(**{**dict(self), "model": self.model or model})


def search_of(*, cohort: Mapping[str, str], **others: Any) -> Search:
    """As the ledger takes them; `others` are fields of a `FilterBody` that stay as they are. Raises InvalidRequest."""
    return Search(cohort=tuple(cohort.items()), **others)
