"""How busy the devices were of late, whoever asks and however often."""

from __future__ import annotations

from collections.abc import Callable

WINDOW_SECONDS = 60
"""Longer than the usual pause between scrapes, so that none misses what happened before it."""


class BusySeconds:
    """What was spent on chunks in the last minute, by whole seconds of `clock`. Reading it changes nothing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._spent: dict[int, float] = {}

    def add(self, seconds: float) -> None:
        """Counts a chunk that has just ended."""
        second = int(self._clock())
        if second not in self._spent:
            oldest = second - WINDOW_SECONDS
            self._spent = {at: spent for at, spent in self._spent.items() if at > oldest} | {second: 0.0}
        self._spent[second] += seconds

    @property
    def share(self) -> float:
        """Seconds of chunks a second: of the last minute, or of the time there was."""
        now = self._clock()
        spent = sum(spent for at, spent in self._spent.items() if at > int(now) - WINDOW_SECONDS)
        elapsed = min(now - self._began, float(WINDOW_SECONDS))
        return spent / elapsed if elapsed > 0 else 0.0
