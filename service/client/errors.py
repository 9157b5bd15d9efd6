"""What a request can end in other than its answer.

ClientError
├── Unreachable          no answer came: nothing listens there, or the connection was lost
├── UnexpectedAnswer     what answered is not the service, or another version of it
├── DamagedRecord        the record was changed behind the ledger's back and cannot be read
└── Refused              the service's own refusal (RFC 9457)
    ├── ImpossibleRequest  400, 422   `faults` say which values, and what to send instead
    ├── Unauthenticated    401
    ├── Forbidden          403        the key lacks the scope, or its policy forbids it
    ├── NotFound           404
    ├── Erased             410        `tombstone` says what the log has of it
    └── TryLater           429, 503   `retry_after` says in how many seconds
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

KIND = "urn:answerable:problem:"
INSTANCES = "/instances/"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a request.

    `pointer` (RFC 6901) leads to the value in the body; of a query or a path, `parameter` is the name instead.
    """

    kind: str
    detail: str
    pointer: str | None = None
    parameter: str | None = None

    @property
    def instance(self) -> int | None:
        """The number of the instance that is wrong, from 0; None where it is something else."""
        number = (self.pointer or "").removeprefix(INSTANCES).partition("/")[0]
        return int(number) if (self.pointer or "").startswith(INSTANCES) and number.isdecimal() else None

    def after(self, instances: int) -> Fault:
        """The same fault of a list that has so many more instances before those that were sent."""
        if self.instance is None:
            return self
        _, slash, within = (self.pointer or "").removeprefix(INSTANCES).partition("/")
        return replace(self, pointer=f"{INSTANCES}{self.instance + instances}{slash}{within}")


class ClientError(Exception):
    """The request has no answer; the message says why."""


class Unreachable(ClientError):
    """No answer came."""


class UnexpectedAnswer(ClientError):
    """What answered is not what this client knows."""


class DamagedRecord(ClientError):
    """The record was changed behind the ledger's back, and cannot be read."""


class Refused(ClientError):
    """The service refused the request. `kind` is the stable name of the refusal, `str(error)` a sentence."""

    statuses: ClassVar[tuple[int, ...]] = ()

    def __init__(
        self,
        detail: str,
        *,
        status: int,
        kind: str,
        faults: tuple[Fault, ...] = (),
        request_id: str | None = None,
        retry_after: float | None = None,
        tombstone: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.faults = faults
        self.request_id = request_id
        self.retry_after = retry_after
        self.tombstone = tombstone

    def after(self, instances: int) -> Refused:
        """The same refusal of a list that has so many more instances before those that were sent."""
        return type(self)(
            str(self),
            status=self.status,
            kind=self.kind,
            faults=tuple(fault.after(instances) for fault in self.faults),
            request_id=self.request_id,
            retry_after=self.retry_after,
            tombstone=self.tombstone,
        )


class ImpossibleRequest(Refused):
    """The request cannot be answered as it is."""

    statuses = (400, 422)


class Unauthenticated(Refused):
    """There is no key, or a wrong one."""

    statuses = (401,)


class Forbidden(Refused):
    """The key may not do this."""

    statuses = (403,)


class NotFound(Refused):
    """There is no such model, version or explanation."""

    statuses = (404,)


class Erased(Refused):
    """What was recorded of the person was erased."""

    statuses = (410,)


class TryLater(Refused):
    """The service is busy or not ready, or the key's quota is spent."""

    statuses = (429, 503)


def refusal(status: int, content: Any, retry_after: float | None) -> Refused:
    """The refusal that an answer of this status and JSON is."""
    problem = content if isinstance(content, Mapping) else {}
    kinds = [kind for kind in Refused.__subclasses__() if status in kind.statuses]
    return (kinds[0] if kinds else Refused)(
        str(problem.get("detail") or f"the server answered {status}"),
        status=status,
        kind=_kind(problem),
        faults=_faults(problem.get("errors")),
        request_id=problem.get("request_id"),
        retry_after=retry_after,
        tombstone=problem.get("tombstone"),
    )


def _faults(listed: Any) -> tuple[Fault, ...]:
    """None where it is not the service's list: a proxy's refusals have forms of their own."""
    return tuple(
        Fault(_kind(fault), str(fault.get("detail", "")), fault.get("pointer"), fault.get("parameter"))
        for fault in (listed if isinstance(listed, list) else ())
        if isinstance(fault, Mapping)
    )


def _kind(problem: Mapping[str, Any]) -> str:
    return str(problem.get("type", "")).removeprefix(KIND)
