"""What commands print for people: tables with headings, and times of the clock on the wall."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], otherwise: str) -> str:
    """Rows under headings, in columns as wide as their widest cell; the word for it where there are none."""
    if not rows:
        return otherwise
    lines = [[heading.upper() for heading in headings], *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(headings))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def local_time(microseconds: int) -> str:
    """A moment by the clock of this machine, and the zone of that clock."""
    return datetime.fromtimestamp(microseconds / 1e6).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def one_line(text: str) -> str:
    """The text without what would break a line or move the cursor: names and reasons are others' words."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
