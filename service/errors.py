"""The errors a user can meet, with the HTTP status and title they are answered with.

    AnswerableError
    ├── MalformedBody        400   not JSON, nested too deep, wrong shape
    ├── Unauthenticated      401   no key, or a wrong one
    ├── Forbidden            403   a key without the scope
    │   └── PolicyForbids    403   what the key's policy does not allow
    ├── NotFound             404   no such model, version or explanation
    ├── InvalidRequest       422   well-formed but impossible
    │   ├── NotConverged     422   `strict` was asked for and the tolerance was not met
    │   └── LoadRefused      422   a version that cannot be loaded; what was served before goes on
    ├── HeldByLaw            409   a legal hold forbids to erase it
    ├── Erased               410   the personal part was erased; the answer holds the tombstone
    ├── ReplayImpossible     409   what a record was computed with is not here
    ├── Conflict             409   what is asked for is not ready, or has ended otherwise
    ├── Gone                 410   what was there is kept no longer
    ├── Overloaded           429   the queue is full; carries Retry-After
    │   └── QuotaSpent       429   the key's quota is spent; Retry-After is the rest of its period
    ├── ClientGone           499   the client closed the connection; nobody reads the answer
    ├── ComputationFailed    500   the model failed on this input
    ├── ModelNotReady        503
    ├── Unkept               503   the data folder takes nothing
    ├── LedgerUnavailable    503   no record can be written, so nothing is answered
    ├── WorkerLost           503   the worker died twice with this request in flight
    ├── DeadlineExceeded     504   the deadline passed before any result
    └── DeviceOutOfMemory    507   the device cannot hold one chunk

A body that is too large, too slow or wrongly encoded never gets this far: `service.api.transport` answers 413, 408, 415
and 400 with FastAPI's own HTTPException.

Errors of the operator's own files (a manifest, an artefact) derive from `CatalogError`; they stop a model from loading
and reach no client but one that asked to load it.
"""

from __future__ import annotations


class AnswerableError(Exception):
    """An error with an HTTP answer. `str(error)` is the sentence the client reads."""

    status = 500
    title = "Internal error"

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to this error."""
        return {}

    @property
    def members(self) -> dict[str, object]:
        """Members of the answer beside those that every problem has."""
        return {}


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


class NotConverged(InvalidRequest):
    title = "Not converged"


class LoadRefused(InvalidRequest):
    title = "Not loaded"


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


class Overloaded(AnswerableError):
    status = 429
    title = "Queue full"

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after)}


class QuotaSpent(Overloaded):
    title = "Quota spent"


class ClientGone(AnswerableError):
    status = 499
    title = "Client gone"


class ComputationFailed(AnswerableError):
    status = 500
    title = "Computation failed"


class ModelNotReady(AnswerableError):
    status = 503
    title = "Model not ready"


class Unkept(AnswerableError):
    status = 503
    title = "Not kept"


class LedgerUnavailable(AnswerableError):
    status = 503
    title = "Ledger not writable"


class WorkerLost(AnswerableError):
    status = 503
    title = "Worker lost"


class DeadlineExceeded(AnswerableError):
    status = 504
    title = "Deadline exceeded"


class DeviceOutOfMemory(AnswerableError):
    status = 507
    title = "Device out of memory"


class CatalogError(Exception):
    """A model folder that cannot be served; the message says which file and why."""


class SetupError(Exception):
    """What a command cannot work with: a setting, a store, a key's file, a port, a package that is missing.

    The message is one sentence that says what to do and repeats no secret; the command prints it and ends with `code`.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
