"""Values of labels: few, and all known beforehand, whatever clients send."""

from __future__ import annotations

UNKNOWN = "unknown"
"""The model or method of a request that was refused before it was known."""
PREDICT = "predict"
OTHER = "other"
"""Methods beyond those that a model's figures tell apart."""
OWN_METHODS = 3
"""How many methods of a model have a label of their own: its default, and the first two others."""

REASONS = ("budget", "deadline", "precision", "steps", "non_finite")
CACHES = ("results", "baselines")
CACHE_RESULTS = ("hit", "miss", "error", "foreign")
RESTARTS = ("died",)
VERDICTS = ("accepted", "rejected", "escalated")
STATUSES = frozenset({400, 401, 403, 404, 422, 429, 499, 500, 503, 504, 507})


def outcome(status: int) -> str:
    """`ok`, or the status; for rare ones their class, such as `4xx`."""
    if status == 200:
        return "ok"
    return str(status) if status in STATUSES else f"{status // 100}xx"


class MethodLabels:
    """The `method` label, of at most `OWN_METHODS` + 3 values a model.

    A client that asks for every method there is would otherwise add hundreds of series. The default method's place is
    reserved, so that nobody can take it.
    """

    def __init__(self) -> None:
        self._own: dict[str, set[str]] = {}

    def reserve(self, model: str, method: str) -> None:
        """Gives a model's default method a label of its own, whatever was asked for before."""
        self._own.setdefault(model, set()).add(method)

    def label(self, model: str, method: str) -> str:
        """The label of a method: its name, or `other`."""
        if method in (UNKNOWN, PREDICT):
            return method
        own = self._own.setdefault(model, set())
        if method not in own:
            if len(own) >= OWN_METHODS:
                return OTHER
            own.add(method)
        return method
