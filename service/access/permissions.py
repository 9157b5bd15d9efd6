"""What a key may ask for beyond its scopes: how much (`Quota`), how much of an answer it is shown (`Policy`), and
whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OPERATOR_TENANT = "default"
"""The tenant of those who run the service: of the first key, and of every key for which no other is named. Only its
keys change what all tenants share."""
PERIODS: Mapping[str, int] = {"minute": 60, "hour": 3600, "day": 86_400}
"""In seconds. A period begins where the clock, in UTC, has a multiple of it."""
MAX_DIGITS = 15


@dataclass(frozen=True, slots=True)
class Quota:
    """At most so many requests and gradient points in each period; None for as many as wanted. Raises ValueError."""

    requests: int | None
    points: int | None
    period: str

    def __post_init__(self) -> None:
        if self.period not in PERIODS:
            raise ValueError(f"a period is a {', '.join(PERIODS)}, not {self.period!r}")
        if any(limit is not None and limit < 1 for limit in (self.requests, self.points)):
            raise ValueError("a quota is at least 1")

    @property
    def seconds(self) -> int:
        """The length of the period."""
        return PERIODS[self.period]

    def written(self) -> dict[str, Any]:
        """As it is stored and shown."""
        limits = {"requests": self.requests, "points": self.points}
        return {name: limit for name, limit in limits.items() if limit is not None} | {"period": self.period}

    @staticmethod
    def read(stored: Mapping[str, Any]) -> Quota:
        """What `written` gave."""
        return Quota(stored.get("requests"), stored.get("points"), stored["period"])


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits on what of an explanation is disclosed. As it stands, everything is.

    `methods` are those that may be asked for. `top`: only so many attributions, the largest. `digits`: values are
    rounded to a grid on which the largest has so many significant digits. `outputs`: whether the model's outputs are
    shown; the label always is. Raises ValueError.
    """

    methods: frozenset[str] | None = None
    top: int | None = None
    digits: int | None = None
    outputs: bool = True

    def __post_init__(self) -> None:
        if self.methods is not None and not self.methods:
            raise ValueError("a policy allows one method at least")
        if self.top is not None and self.top < 1:
            raise ValueError("top is at least 1")
        if self.digits is not None and not 1 <= self.digits <= MAX_DIGITS:
            raise ValueError(f"digits are from 1 to {MAX_DIGITS}")

    @property
    def limits_values(self) -> bool:
        """Whether a value is kept back or rounded."""
        return self.top is not None or self.digits is not None or not self.outputs

    def written(self) -> dict[str, Any]:
        """As it is stored and shown; empty where it limits nothing."""
        said: dict[str, Any] = {}
        if self.methods is not None:
            said["methods"] = sorted(self.methods)
        if self.top is not None:
            said["top"] = self.top
        if self.digits is not None:
            said["digits"] = self.digits
        if not self.outputs:
            said["outputs"] = False
        return said

    @staticmethod
    def read(stored: Mapping[str, Any]) -> Policy:
        """What `written` gave."""
        methods = stored.get("methods")
        return Policy(
            None if methods is None else frozenset(methods),
            stored.get("top"),
            stored.get("digits"),
            stored.get("outputs", True),
        )


OPEN = Policy()
"""Limits nothing."""
