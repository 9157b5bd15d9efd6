"""What is asked for behind the question mark."""

from __future__ import annotations

from collections import Counter

from fastapi import Request

from service.errors import Fault, InvalidRequest, Kind


def refuse_repeated(request: Request) -> None:
    """Raises InvalidRequest where a parameter is there twice: which value is meant cannot be known."""
    if b"&" not in request.scope["query_string"]:
        return
    counts = Counter(name for name, _ in request.query_params.multi_items())
    faults = [
        Fault(Kind.REPEATED_PARAMETER, "", f"{name[:64]} is given {count} times; send one value", name[:64])
        for name, count in counts.items()
        if count > 1
    ]
    if faults:
        raise InvalidRequest(faults[0].detail, *faults)


async def repeated_are_refused(request: Request) -> None:
    """The same, for routes that FastAPI runs."""
    refuse_repeated(request)
