"""The errors a user can meet, with the HTTP status and title they are answered with.

    AnswerableError
    ├── NotHttp              400   what was sent is no request
    ├── MalformedBody        400   not JSON, nested too deep, wrong shape
    ├── Unauthenticated      401   no key, or a wrong one
    ├── Forbidden            403   a key without the scope
    │   └── PolicyForbids    403   what the key's policy does not allow
    ├── NotFound             404   no such model, version or explanation
    ├── InvalidRequest       422   well-formed but impossible
    │   ├── NotConverged     422   `strict` was asked for and the tolerance was not met
    │   ├── LoadRefused      422   a version that cannot be loaded; what was served before goes on
    │   ├── WrongIdempotencyKey    422   not 1 to 200 visible characters, or given twice
    │   └── IdempotencyKeyReused   422   it was sent with another request, within a day
    ├── HeadTooSlow          408   the address and the headers did not arrive in time
    ├── HeldByLaw            409   a legal hold forbids to erase it
    ├── Erased               410   the personal part was erased; the answer holds the tombstone
    ├── ReplayImpossible     409   what a record was computed with is not here
    ├── Conflict             409   what is asked for is not ready, or has ended otherwise
    ├── Gone                 410   what was there is no longer kept
    ├── AddressTooLong       414
    ├── Overloaded           429   the queue is full, or too many large bodies; carries Retry-After
    │   ├── LedgerFull       429   the ledger's queue is full
    │   ├── QuotaSpent       429   the key's quota is spent; Retry-After is the rest of its period
    │   └── TooManyWrongKeys 429   too many wrong keys came from this address; Retry-After is the rest of its minute
    ├── HeadersTooLarge      431
    ├── ClientGone           499   the client closed the connection; nobody reads the answer
    ├── ComputationFailed    500   the model failed on this input
    ├── ModelNotReady        503   the version is not loaded; like all of 503, carries Retry-After
    ├── RegistryUnavailable  503   the registry of models cannot be reached; what was served before goes on
    ├── Unkept               503   the data folder cannot be written to
    ├── LedgerUnavailable    503   no record can be written, so nothing is answered
    ├── IssuerUnavailable    503   the issuer of tokens does not answer, and its keys are not known
    ├── TooManyConnections   503   all have a request under way; carries Retry-After
    ├── WorkerLost           503   the worker died twice with this request in flight
    ├── DeadlineExceeded     504   the deadline passed before any result
    └── DeviceOutOfMemory    507   the device cannot hold one chunk

Every answer of 429 and 503 says in Retry-After when to come back; so the base class sees to it.

A body that is too large, too slow or wrongly encoded never gets this far: `service.api.transport` answers 413, 408, 415
and 400 with FastAPI's own HTTPException.

Errors of the operator's own files (a manifest, an artefact) derive from `CatalogError`; they stop a model from loading
and reach no client but one that asked to load it. `SetupError` ends a command with a sentence, and reaches no client.

An error's `kind` is the last part of the problem's `type`, which clients may depend on: that of its first fault, or
else the name of its class. So neither is renamed without need.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

MAX_FAULTS = 20
"""How many faults of one request are reported."""

COME_BACK = frozenset({429, 503})
"""Statuses that say that the same request may be answered later."""


class Kind(StrEnum):
    """What can be wrong with one place of a request."""

    WRONG_SHAPE = "wrong-shape"
    MISSING_FIELD = "missing-field"
    UNKNOWN_FIELD = "unknown-field"
    WRONG_VALUE = "wrong-value"
    DUPLICATE_NAME = "duplicate-name"
    NOT_FINITE = "not-finite"
    MISSING_FEATURE = "missing-feature"
    UNKNOWN_FEATURE = "unknown-feature"
    UNKNOWN_CATEGORY = "unknown-category"
    NOT_A_NUMBER = "not-a-number"
    OUT_OF_RANGE = "out-of-range"
    WRONG_INSTANCE = "wrong-instance"
    UNKNOWN_METHOD = "unknown-method"
    UNFIT_METHOD = "unfit-method"
    UNKNOWN_LABEL = "unknown-label"
    UNKNOWN_BASELINE = "unknown-baseline"
    UNKNOWN_OPTION = "unknown-option"
    REPEATED_PARAMETER = "repeated-parameter"
    UNKNOWN_PARAMETER = "unknown-parameter"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a request, and where.

    `pointer` is a JSON pointer (RFC 6901) into the body; of a query or a path, `parameter` is the name instead.
    """

    kind: Kind
    pointer: str
    detail: str
    parameter: str | None = None

    def under(self, pointer: str) -> Fault:
        """The same fault of an enclosing value, in which the faulty one lies at `pointer`."""
        return replace(self, pointer=pointer + self.pointer)


def pointer_to(*places: str | int) -> str:
    """The JSON pointer (RFC 6901, section 3) to a value by the names and numbers that lead to it, cut to be read."""
    return "".join("/" + str(place)[:64].replace("~", "~0").replace("/", "~1") for place in places)


class AnswerableError(Exception):
    """An error with an HTTP answer. `str(error)` is a sentence for the client, `faults` are the places it is about."""

    status = 500
    title = "Internal error"
    retry_after = 1
    """Seconds after which a client may try again; sent with the statuses in `COME_BACK` only."""

    def __init__(self, detail: str, *faults: Fault) -> None:
        super().__init__(detail)
        self.faults = faults

    @property
    def kind(self) -> str:
        """What the problem's type ends in."""
        return self.faults[0].kind if self.faults else kind_of(type(self))

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to this error."""
        return {"Retry-After": str(self.retry_after)} if self.status in COME_BACK else {}

    @property
    def members(self) -> dict[str, object]:
        """Members of the answer beside those that every problem has."""
        return {}


class NotHttp(AnswerableError):
    status = 400
    title = "Not HTTP"


class MalformedBody(AnswerableError):
    status = 400
    title = "Malformed body"


class Unauthenticated(AnswerableError):
    status = 401
    title = "No valid key"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(AnswerableError):
    status = 403
    title = "Key without the scope"


class PolicyForbids(Forbidden):
    title = "Not allowed by the key's policy"


class NotFound(AnswerableError):
    status = 404
    title = "Not found"


class InvalidRequest(AnswerableError):
    status = 422
    title = "Impossible request"

    def under(self, pointer: str, named: str = "") -> InvalidRequest:
        """The same error of an enclosing value, in which the faulty one is called `named` and lies at `pointer`."""
        faults = self.faults or (Fault(Kind.WRONG_INSTANCE, "", str(self)),)
        detail = f"{named}: {self}" if named else str(self)
        return InvalidRequest(detail, *(fault.under(pointer) for fault in faults))


class NotConverged(InvalidRequest):
    title = "Not converged"


class LoadRefused(InvalidRequest):
    title = "Not loaded"


class WrongIdempotencyKey(InvalidRequest):
    title = "Wrong idempotency key"


class IdempotencyKeyReused(InvalidRequest):
    title = "Idempotency key reused"


class HeadTooSlow(AnswerableError):
    status = 408
    title = "Headers too slow"


class HeldByLaw(AnswerableError):
    status = 409
    title = "Under a legal hold"


class Erased(AnswerableError):
    """`tombstone` is what the log says of the erasure."""

    status = 410
    title = "Erased"

    def __init__(self, tombstone: dict[str, object]) -> None:
        super().__init__("what was recorded of the person was erased; the proof of the record still holds")
        self.tombstone = tombstone

    @property
    def members(self) -> dict[str, object]:
        return {"tombstone": self.tombstone}


class ReplayImpossible(AnswerableError):
    status = 409
    title = "Replay impossible"


class Conflict(AnswerableError):
    status = 409
    title = "Not now"


class Gone(AnswerableError):
    status = 410
    title = "Gone"


class AddressTooLong(AnswerableError):
    status = 414
    title = "Address too long"


class Overloaded(AnswerableError):
    status = 429
    title = "Queue full"

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class LedgerFull(Overloaded):
    title = "Ledger's queue full"


class QuotaSpent(Overloaded):
    title = "Quota spent"


class TooManyWrongKeys(Overloaded):
    title = "Too many wrong keys"


class HeadersTooLarge(AnswerableError):
    status = 431
    title = "Headers too large"


class ClientGone(AnswerableError):
    status = 499
    title = "Client gone"


class ComputationFailed(AnswerableError):
    status = 500
    title = "Computation failed"


class ModelNotReady(AnswerableError):
    status = 503
    title = "Model not ready"
    retry_after = 5


class RegistryUnavailable(AnswerableError):
    status = 503
    title = "Registry unavailable"
    retry_after = 5


class Unkept(AnswerableError):
    status = 503
    title = "Not kept"
    retry_after = 60


class LedgerUnavailable(AnswerableError):
    status = 503
    title = "Ledger not writable"
    retry_after = 2


class IssuerUnavailable(AnswerableError):
    status = 503
    title = "Issuer of tokens not reachable"
    retry_after = 10


class TooManyConnections(AnswerableError):
    status = 503
    title = "Too many connections"


class WorkerLost(AnswerableError):
    status = 503
    title = "Worker lost"


class DeadlineExceeded(AnswerableError):
    status = 504
    title = "Deadline exceeded"


class DeviceOutOfMemory(AnswerableError):
    status = 507
    title = "Device out of memory"


def invalid(kind: Kind, pointer: str, detail: str) -> InvalidRequest:
    """The error of a request with one fault."""
    return InvalidRequest(detail, Fault(kind, pointer, detail))


def kind_of(error: type[AnswerableError]) -> str:
    """`malformed-body` of MalformedBody."""
    return re.sub(r"\B[A-Z]", lambda letter: "-" + letter[0], error.__name__).lower()


class CatalogError(Exception):
    """A model folder that cannot be served; the message says which file and why."""


class SetupError(Exception):
    """What a command cannot work with: a setting, a store, a key's file, a port, a package that is missing.

    The message is one sentence that says what to do and repeats no secret; the command prints it and ends with `code`.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class UsageError(SetupError):
    """A command was used wrongly; the message says what to type."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=2)


class NoLedger(SetupError):
    """A command was asked about a ledger that is not there; the message says where it looked and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=2)


class OtherSchema(NoLedger):
    """A ledger of another version of this program; the message says which and what to do."""
