"""Connections to PostgreSQL that do not wait for ever."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

SILENCE_SECONDS = 30.0
"""How long a connection waits for the server's answer to a statement."""
_LOOK_SECONDS = 0.1
"""Between two looks for Ctrl-C, as in psycopg."""

RV = TypeVar("RV")


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that waits so long for each answer, and is closed after that."""

    def wait(self, gen: Generator[Any, Any, RV], interval: float = _LOOK_SECONDS, timeout: float | None = None) -> RV:
        """What the server answers. Raises OperationalError."""
        try:
            return super().wait(gen, interval, SILENCE_SECONDS if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:  # it was still to answer
                self.pgconn.finish()
            raise
