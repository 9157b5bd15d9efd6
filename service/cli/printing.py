"""What commands print for people: tables with headings, bars, and local times."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime

BAR = 24
"""Columns of the longest bar."""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], otherwise: str) -> str:
    """Rows under headings, in columns as wide as their widest cell; `otherwise` if there are no rows."""
    if not rows:
        return otherwise
    lines = [[heading.upper() for heading in headings], *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(headings))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def local_time(microseconds: int) -> str:
    """A time, given since the epoch, in this machine's time zone, with the zone's name."""
    return datetime.fromtimestamp(microseconds / 1e6).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def one_line(text: str) -> str:
    """The text with control characters escaped, which could break lines or move the cursor: others wrote it."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shortened(text: str, width: int) -> str:
    """The text in exactly so many columns, the last of them empty."""
    return (text if len(text) < width else text[: width - 2] + "…").ljust(width)


def bar(share: float) -> str:
    """A bar as long as the share of its greatest length, and never nothing."""
    full = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    return full * max(1, round(min(max(share, 0.0), 1.0) * BAR))
