"""Which stored explanations are meant: the conditions of `GET /v1/explanations`, of jobs and of exports."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictBool, StrictStr
from pydantic_core import PydanticCustomError

from service.api.schemas import Strict, Tags
from service.ledger.entries import Search


def _with_zone(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise PydanticCustomError("time_zone", "needs a time zone, for instance 2026-01-31T12:00:00Z")
    return moment


Moment = Annotated[datetime, AfterValidator(_with_zone)]


class FilterBody(Strict):
    """Conditions that all hold; none means all explanations."""

    model: StrictStr | None = Field(None, description="the model's name")
    version: StrictStr | None = Field(None, description="the model's version; needs `model`")
    subject: StrictStr | None = Field(None, description="the person")
    decision_id: StrictStr | None = Field(None, description="the decision")
    created_from: Moment | None = Field(None, alias="from", description="included")
    created_to: Moment | None = Field(None, alias="to", description="excluded")
    converged: StrictBool | None = Field(None, description="whether the tolerance was met")
    flag: StrictStr | None = Field(None, description="a review rule that fired")
    label: StrictStr | None = Field(None, description="the predicted label")
    reviewed: StrictBool | None = Field(None, description="whether a person has reviewed it")
    cohort: Tags = Field(default_factory=dict, description="tags, by name")

    def search(self, model: str | None = None) -> Search:
        """As the ledger takes them; `model` where none is named. Raises InvalidRequest."""
        return search_of(**{**dict(self), "model": self.model or model})


QUERY_NAMES = frozenset(field.alias or name for name, field in FilterBody.model_fields.items()) - {"cohort"}
"""What the conditions are called in a query; tags are `cohort.<name>` there."""


def search_of(
    *, created_from: datetime | None, created_to: datetime | None, cohort: Mapping[str, str], **others: Any
) -> Search:
    """As the ledger takes them; `others` are fields of a `FilterBody` that stay as they are. Raises InvalidRequest."""
    times = microseconds(created_from), microseconds(created_to)
    return Search(created_from=times[0], created_to=times[1], cohort=tuple(cohort.items()), **others)


def microseconds(moment: datetime | None) -> int | None:
    """A moment, since the epoch."""
    return None if moment is None else round(moment.timestamp() * 1e6)
