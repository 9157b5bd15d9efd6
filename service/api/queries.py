"""Queries of requests: only names that the route knows, each at most once."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError

from service.catalog.nearest import Searches
from service.errors import MAX_FAULTS, Fault, InvalidRequest, Kind

MAX_SHOWN = 64
"""Characters of an unknown name that the answer quotes."""


class QueryModel(BaseModel):
    """The parameters of a route's query, as fields; a route without parameters has this class itself.

    Names that begin with `prefix` are the handler's own to read. `noun` is what errors call a parameter.
    """

    model_config = ConfigDict(frozen=True)

    prefix: ClassVar[str | None] = None
    noun: ClassVar[str] = "parameter"

    @classmethod
    def names(cls) -> set[str]:
        """What the parameters are called in a query."""
        return {field.alias or name for name, field in cls.model_fields.items()}


Q = TypeVar("Q", bound=QueryModel)


def read_query(request: Request, model: type[Q]) -> Q:
    """The query of a request. Raises InvalidRequest, RequestValidationError."""
    values = {}
    if request.scope["query_string"]:
        counts = Counter(name for name, _ in request.query_params.multi_items())
        _refuse_repeated(counts)
        _refuse_unknown(counts, model)
        values = {name: request.query_params[name] for name in model.names() & counts.keys()}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise RequestValidationError([{**fault, "loc": ("query", *fault["loc"])} for fault in faults]) from None


def _refuse_unknown(counts: Counter[str], model: type[QueryModel]) -> None:
    known = model.names()
    unknown = [name for name in counts if name not in known and not (model.prefix and name.startswith(model.prefix))]
    if not unknown:
        return
    listed = ", ".join([*sorted(known), *([f"{model.prefix}*"] if model.prefix else [])])
    hint = f"; known are {listed}" if listed else "; this path takes none"
    searches = Searches()
    faults = [
        Fault(
            Kind.UNKNOWN_PARAMETER,
            "",
            f"{name[:MAX_SHOWN]!r} is not a {model.noun}{hint}{searches.hint(name, known)}",
            name[:MAX_SHOWN],
        )
        for name in unknown[:MAX_FAULTS]
    ]
    raise InvalidRequest(faults[0].detail, *faults)


def _refuse_repeated(counts: Counter[str]) -> None:
    """Refuses a parameter with several values: it is unknown which of them counts."""
    faults = [
        Fault(
            Kind.REPEATED_PARAMETER,
            "",
            f"{name[:MAX_SHOWN]} is given {count} times; send one value",
            name[:MAX_SHOWN],
        )
        for name, count in counts.items()
        if count > 1
    ]
    if faults:
        raise InvalidRequest(faults[0].detail, *faults)
