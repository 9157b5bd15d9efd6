"""How long the parts of one request took: noted by the use case, reported by the log and the traces."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.domain import Timings


@dataclass(slots=True)
class RequestTimings:
    """When the parts of one request began and ended, on the monotonic clock, in seconds.

    The engine was given the work at `submitted`. `computed` has, for each explanation that was not in the cache, its
    timings and its gradient points. `recorded` is when writing to the ledger began, and when it was done.
    """

    version: str = ""
    explanations: int = 0
    submitted: float = 0.0
    computed: list[tuple[Timings, int]] = field(default_factory=list)
    recorded: tuple[float, float] | None = None

    @property
    def milliseconds(self) -> dict[str, float]:
        """The longest time in the queue and on the device, and that of the ledger; what did not happen is left out."""
        parts = {}
        if self.computed:
            parts["queue"] = round(max(timings.queue for timings, _ in self.computed) * 1e3, 3)
            parts["compute"] = round(max(timings.compute for timings, _ in self.computed) * 1e3, 3)
        if self.recorded is not None:
            parts["ledger"] = round((self.recorded[1] - self.recorded[0]) * 1e3, 3)
        return parts
