"""What limits a key besides its scopes: how much it may ask for (`Quota`), and how much of an answer it is shown
(`Policy`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OPERATOR_TENANT = "default"
"""The tenant of those who run the service, and of every key created without naming a tenant. Only its keys can change
what all tenants share."""
PERIODS: Mapping[str, int] = {"minute": 60, "hour": 3600, "day": 86_400}
"""Lengths in seconds. A period begins where the time since the epoch, UTC, is a multiple of its length."""
MAX_DIGITS = 15


@dataclass(frozen=True, slots=True)
class Quota:
    """The most requests and gradient points allowed in each period; None for no limit. Raises ValueError."""

    requests: int | None
    points: int | None
    period: str

    def __post_init__(self) -> None:
        if self.period not in PERIODS:
            raise ValueError(f"a period is one of {', '.join(PERIODS)}, not {self.period!r}")
        if any(limit is not None and limit < 1 for limit in (self.requests, self.points)):
            raise ValueError("a quota is at least 1")

    @property
    def seconds(self) -> int:
        """The length of the period."""
        return PERIODS[self.period]

    def written(self) -> dict[str, Any]:
        """The quota as JSON, as it is stored and shown."""
        limits = {"requests": self.requests, "points": self.points}
        return {name: limit for name, limit in limits.items() if limit is not None} | {"period": self.period}

    @staticmethod
    def read(stored: Mapping[str, Any]) -> Quota:
        """The quota that `written` returned."""
        return Quota(stored.get("requests"), stored.get("points"), stored["period"])


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits on how much of an explanation is disclosed; by default, everything is.

    `methods` are those that may be asked for. `top` is how many attributions are shown, the largest ones. Values are
    rounded to a grid on which the largest has `digits` significant digits. `outputs` is whether the model's outputs
    are shown; the label always is. Raises ValueError.
    """

    methods: frozenset[str] | None = None
    top: int | None = None
    digits: int | None = None
    outputs: bool = True

    def __post_init__(self) -> None:
        if self.methods is not None and not self.methods:
            raise ValueError("a policy allows at least one method")
        if self.top is not None and self.top < 1:
            raise ValueError("top is at least 1")
        if self.digits is not None and not 1 <= self.digits <= MAX_DIGITS:
            raise ValueError(f"digits are from 1 to {MAX_DIGITS}")

    @property
    def limits_values(self) -> bool:
        """Whether any value is withheld or rounded."""
        return self.top is not None or self.digits is not None or not self.outputs

    def written(self) -> dict[str, Any]:
        """The policy as JSON, as it is stored and shown; empty where it limits nothing."""
        limits: dict[str, Any] = {}
        if self.methods is not None:
            limits["methods"] = sorted(self.methods)
        if self.top is not None:
            limits["top"] = self.top
        if self.digits is not None:
            limits["digits"] = self.digits
        if not self.outputs:
            limits["outputs"] = False
        return limits

    @staticmethod
    def read(stored: Mapping[str, Any]) -> Policy:
        """The policy that `written` returned."""
        methods = stored.get("methods")
        return Policy(
            None if methods is None else frozenset(methods),
            stored.get("top"),
            stored.get("digits"),
            stored.get("outputs", True),
        )


OPEN = Policy()
"""The policy that limits nothing."""
