"""How sentences tell numbers."""

from __future__ import annotations


def number_of(count: int, noun: str, plural: str | None = None) -> str:
    """`1 row`, `2 rows`; `plural` where it is not the noun with an s."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"
