"""How busy the devices were recently. Reading the figure does not change it, so several scrapers may."""

from __future__ import annotations

from collections.abc import Callable

WINDOW_SECONDS = 60
"""Longer than the usual interval between scrapes, so that all that happened between two of them is seen."""


class BusySeconds:
    """Seconds of computing chunks in the last minute, by whole seconds of `clock`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._by_second: dict[int, float] = {}

    def add(self, seconds: float) -> None:
        """Counts a chunk that has just ended."""
        second = int(self._clock())
        if second not in self._by_second:
            oldest = second - WINDOW_SECONDS
            self._by_second = {at: busy for at, busy in self._by_second.items() if at > oldest} | {second: 0.0}
        self._by_second[second] += seconds

    @property
    def share(self) -> float:
        """Seconds of chunks per second, over the last minute, or since the start if that is shorter."""
        now = self._clock()
        busy = sum(busy for at, busy in self._by_second.items() if at > int(now) - WINDOW_SECONDS)
        elapsed = min(now - self._began, float(WINDOW_SECONDS))
        return busy / elapsed if elapsed > 0 else 0.0
