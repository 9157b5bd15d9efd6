"""Which stored explanations are meant, in a body: the conditions of `GET /v1/explanations`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

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

    model: StrictStr | None = None
    version: StrictStr | None = None
    subject: StrictStr | None = None
    decision_id: StrictStr | None = None
    created_from: Moment | None = Field(None, alias="from", description="included")
    created_to: Moment | None = Field(None, alias="to", description="excluded")
    converged: StrictBool | None = None
    flag: StrictStr | None = None
    label: StrictStr | None = None
    cohort: Tags = Field(default_factory=dict)

    def search(self, model: str | None = None) -> Search:
        """As the ledger takes them; `model` where none is named. Raises InvalidRequest."""
        return Search(
            model=self.model or model,
            version=self.version,
            subject=self.subject,
            decision_id=self.decision_id,
            created_from=_microseconds(self.created_from),
            created_to=_microseconds(self.created_to),
            converged=self.converged,
            flag=self.flag,
            label=self.label,
            cohort=tuple(self.cohort.items()),
        )


def _microseconds(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1e6)
