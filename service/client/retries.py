"""When a request is sent again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from .errors import ClientError, TryLater, Unreachable


@dataclass(frozen=True, slots=True)
class Retries:
    """A request that got no answer, or 429 or 503, is sent again, `attempts` times in all.

    The pause before it is what the service asks for (`Retry-After`), and on top a random part of `backoff` seconds,
    doubled each time, so that clients refused together do not come back together. One with which the pauses would come
    to more than `patience` seconds is not begun.
    """

    attempts: int = 4
    backoff: float = 0.5
    patience: float = 60.0


NO_RETRIES = Retries(attempts=1)


class Attempts:
    """The attempts at one request so far."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._failed = 0
        self._paused = 0.0

    def pause_after(self, error: ClientError) -> float:
        """Seconds until the next attempt. Raises the error itself where there is none, or it would not help."""
        self._failed += 1
        if not isinstance(error, Unreachable | TryLater) or self._failed >= self._retries.attempts:
            raise error
        asked = (error.retry_after or 0.0) if isinstance(error, TryLater) else 0.0
        pause = asked + random.random() * self._retries.backoff * 2.0 ** (self._failed - 1)  # noqa: S311 - no secret
        self._paused += pause
        if self._paused > self._retries.patience:
            raise error
        return pause


def read_retry_after(header: str | None) -> float | None:
    """The seconds of a `Retry-After`, which is a number or a date (RFC 9110); None where it is neither."""
    if header is None:
        return None
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
