"""For errors: the names that exist, and the one that was probably meant. Bounded, since anybody can send anything."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import islice

MAX_CHARACTERS_SHOWN = 64
MAX_COMPARED = 200
"""The most names that one search compares, at some ten microseconds each."""
MAX_SEARCHES = 8
"""The most searches for one request, since they run on the event loop: more wrong names than that are no
misspellings."""


def known(what: str, names: Iterable[object]) -> str:
    """The names that exist, as an error lists them."""
    listed_names = ", ".join(str(name) for name in names)
    return f"the {what} are {listed_names}" if listed_names else f"there are no {what}"


def did_you_mean(unknown: object, names: Iterable[object]) -> str:
    """`; did you mean age?`, with the name nearest to the unknown one, or nothing where none is near."""
    if not isinstance(unknown, str) or not 0 < len(unknown) <= MAX_CHARACTERS_SHOWN:
        return ""
    near = difflib.get_close_matches(unknown, _compared(unknown, names), 1)
    return f"; did you mean {near[0]}?" if near else ""


class Searches:
    """`did_you_mean`, at most `MAX_SEARCHES` times for one request."""

    def __init__(self) -> None:
        self._remaining = MAX_SEARCHES

    def hint(self, unknown: object, names: Iterable[object]) -> str:
        """The nearest name, as long as searches are left."""
        self._remaining -= 1
        return did_you_mean(unknown, names) if self._remaining >= 0 else ""


def _compared(unknown: str, names: Iterable[object]) -> list[str]:
    """The names to compare: where there are more than `MAX_COMPARED`, those with the same first letter."""
    texts = [name for name in names if isinstance(name, str) and len(name) <= MAX_CHARACTERS_SHOWN]
    if len(texts) <= MAX_COMPARED:
        return texts
    return list(islice((name for name in texts if name[0:1].casefold() == unknown[0].casefold()), MAX_COMPARED))


def listed(names: Sequence[object], most: int = 5, count: int | None = None) -> str:
    """The first names, and how many more there are of `count` in all."""
    first = ", ".join(str(name)[:MAX_CHARACTERS_SHOWN] for name in names[:most])
    more = (len(names) if count is None else count) - most
    return first if more <= 0 else f"{first} and {more} more"
