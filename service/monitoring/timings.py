"""Where the time of one request went: noted by the use case, told by the log and by the traces."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.domain import Timings


@dataclass(slots=True)
class Spent:
    """Moments are on the monotonic clock, in seconds.

    `computed` are the timings of the explanations that were computed, and their gradient points; all were asked of the
    engine at `asked`. `recorded` are the moments at which the ledger was asked and had written.
    """

    version: str = ""
    explanations: int = 0
    asked: float = 0.0
    computed: list[tuple[Timings, int]] = field(default_factory=list)
    recorded: tuple[float, float] | None = None

    @property
    def milliseconds(self) -> dict[str, float]:
        """What the slowest explanation waited for and took, and the ledger; what did not happen is left out."""
        found = {}
        if self.computed:
            found["queue"] = round(max(timings.queue for timings, _ in self.computed) * 1e3, 3)
            found["compute"] = round(max(timings.compute for timings, _ in self.computed) * 1e3, 3)
        if self.recorded is not None:
            found["ledger"] = round((self.recorded[1] - self.recorded[0]) * 1e3, 3)
        return found
