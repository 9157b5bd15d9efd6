"""Proof that what is stored is what was recorded: proofs, checkpoints, verification, and the log's events."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import Query
from pydantic import BaseModel, Field

from service.access.permissions import Policy
from service.answers.record import RecordItem, in_clear
from service.api.auth import needs
from service.api.explanations import find_stored
from service.api.filters import FROM, TO, From, To
from service.api.problems import answers
from service.api.queries import QueryModel
from service.api.requests import ApiRequest
from service.api.routing import new_router
from service.api.schemas import NOTHING, Nothing
from service.errors import NotFound
from service.ledger.checkpoints import Checkpoint
from service.ledger.entries import Stored
from service.ledger.export_checking import checkpoint_faults
from service.ledger.merkle import is_included
from service.ledger.searches import EventSearch
from service.ledger.signing import chain_faults

router = new_router("Evidence")


class ConsistencyQuery(QueryModel):
    """Two states of the log."""

    first: int = Field(alias="from", ge=1, le=2**53, description="the size of the log at the earlier checkpoint")
    second: int = Field(alias="to", ge=1, le=2**53, description="the size of the log at the later checkpoint")


class EventsQuery(QueryModel):
    """Which events; all conditions hold."""

    kind: str | None = Field(None, description="what happened")
    about: str | None = Field(None, description="the id of an explanation or a job, or the token of a subject")
    created_from: From = Field(None, alias="from", description=FROM)
    created_to: To = Field(None, alias="to", description=TO)
    limit: int = Field(50, ge=1, le=200, description="at most so many")
    cursor: str | None = Field(None, description="the `next_cursor` of the page before")


class CheckpointItem(BaseModel):
    """A signed state of the log. The signature (Ed25519, hexadecimal) is over the bytes of `body`."""

    size: int = Field(description="rows of the log")
    root: str = Field(description="of the tree over them, in hexadecimal")
    created: int = Field(description="microseconds since the epoch, UTC")
    previous: str | None = Field(description="the SHA-256 of the body before")
    key: str = Field(description="the public key that signed it")
    body: str = Field(description="the text that is signed")
    signature: str = Field(description="in hexadecimal")


class ProofReply(BaseModel):
    """RFC 9162: the leaf is SHA-256(0x00 || record), `path` leads from it to the checkpoint's root."""

    id: str = Field(description="of the explanation")
    leaf_index: int = Field(description="from 0")
    leaf: str = Field(description="in hexadecimal")
    record: str | None = Field(description="the text that the leaf is the hash of; null where it is gone or not shown")
    path: list[str] = Field(description="hashes, from the leaf up, in hexadecimal")
    checkpoint: CheckpointItem = Field(description="the signed state that the path ends in")


class ConsistencyReply(BaseModel):
    """RFC 9162: that the log at `to` begins with all of the log at `from`."""

    proof: list[str] = Field(description="hashes, in hexadecimal")
    first: CheckpointItem = Field(description="the earlier state")
    second: CheckpointItem = Field(description="the later state")


class VerifyReply(BaseModel):
    """Whether all that is stored of an explanation is as it was recorded, and signed."""

    id: str = Field(description="of the explanation")
    valid: bool = Field(description="whether there is no fault")
    erased: bool = Field(description="its personal part was erased, which a tombstone in the log says")
    faults: list[str] = Field(description="what is not as it was recorded")
    size: int = Field(description="of the log at the checkpoint it was held against")
    signed: int = Field(description="when that was signed, in microseconds since the epoch, UTC")


class EventItem(BaseModel):
    """An event of the log."""

    sequence: int = Field(description="its row in the log, from 1")
    kind: str = Field(description="what happened")
    created: int = Field(description="microseconds since the epoch, UTC")
    key_id: str = Field(description="of the key that did it")
    about: str | None = Field(description="the id of an explanation or a job, or the token of a subject")
    details: dict[str, Any] = Field(description="what else is known, by kind")


class EventsReply(BaseModel):
    """A page of events, the newest first."""

    events: list[EventItem] = Field(description="those that meet all conditions")
    next_cursor: str | None = Field(description="where the next page begins; null after the last")


@router.get("/v1/explanations/{explanation}/proof", responses=answers(404, 503))
@needs("ledger:read")
async def prove_explanation(request: ApiRequest, explanation: str) -> ProofReply:
    """The inclusion proof of an explanation, erased or not, and the signed checkpoint that it ends in.

    A key whose policy limits values gets no `record` of before records had a schema: its text holds the whole answer.
    """
    stored = await find_stored(request, explanation, erased_too=True)
    path, checkpoint = await request.services.need_ledger().ledger.inclusion(stored.seq)
    return ProofReply(
        id=stored.id,
        leaf_index=stored.seq - 1,
        leaf=stored.leaf.hex(),
        record=stored.logged.decode() or None if _is_shown(request.caller.policy, stored) else None,
        path=[digest.hex() for digest in path],
        checkpoint=_checkpoint(checkpoint),
    )


@router.post("/v1/explanations/{explanation}:verify", responses=answers(404, 503))
@needs("ledger:read")
async def verify_explanation(
    request: ApiRequest,
    explanation: str,
    body: Nothing = NOTHING,  # noqa: ARG001
) -> VerifyReply:
    """Checks every stored column of an explanation against its record in the log, and that against a signature."""
    stored = await find_stored(request, explanation, erased_too=True, opened=False)
    with_ledger = request.services.need_ledger()
    faults = await with_ledger.maintenance.verify_one(stored.seq)
    path, checkpoint = await with_ledger.ledger.inclusion(stored.seq)
    keys = await with_ledger.ledger.signing_keys()
    faults += [*chain_faults(keys), *checkpoint_faults(checkpoint, keys)]
    if not is_included(stored.leaf, stored.seq - 1, checkpoint.size, path, bytes.fromhex(checkpoint.root)):
        faults.append(f"row {stored.seq} is not in the log that was signed")
    return VerifyReply(
        id=stored.id,
        valid=not faults,
        erased=stored.tombstone is not None,
        faults=faults,
        size=checkpoint.size,
        signed=checkpoint.created,
    )


@router.get("/v1/checkpoint", responses=answers(404, 503))
@needs("ledger:read")
async def show_checkpoint(request: ApiRequest) -> CheckpointItem:
    """The newest signed state of the log; signed now, if something came since the last one."""
    checkpoint = await request.services.need_ledger().ledger.checkpoint()
    if checkpoint is None:
        raise NotFound("the log is empty, so nothing is signed yet")
    return _checkpoint(checkpoint)


@router.get("/v1/consistency", responses=answers(404, 503))
@needs("ledger:read")
async def prove_consistency(request: ApiRequest, query: Annotated[ConsistencyQuery, Query()]) -> ConsistencyReply:
    """That a later state of the log begins with all of an earlier one; both are sizes of checkpoints."""
    proof, first, second = await request.services.need_ledger().ledger.consistency(query.first, query.second)
    digests = [digest.hex() for digest in proof]
    return ConsistencyReply(proof=digests, first=_checkpoint(first), second=_checkpoint(second))


@router.get("/v1/events", responses=answers(404, 503))
@needs("ledger:read")
async def list_events(request: ApiRequest, query: Annotated[EventsQuery, Query()]) -> EventsReply:
    """What else happened, the newest first: `lookup`, `erasure`, `retention`, `hold`, `release`, `review` ..."""
    search = EventSearch(
        kind=query.kind, about=query.about, created_from=query.created_from, created_to=query.created_to
    )
    ledger = request.services.need_ledger().ledger
    page = await ledger.events(request.caller.tenant, search, query.limit, query.cursor)
    items = [
        EventItem(
            sequence=event.seq,
            kind=event.kind,
            created=event.created,
            key_id=event.key_id,
            about=event.about,
            details=event.details,
        )
        for event in page.events
    ]
    return EventsReply(events=items, next_cursor=page.next_cursor)


def _is_shown(policy: Policy, stored: Stored) -> bool:
    """Whether the text in the log may be read under the policy: it holds nothing but what is for everybody."""
    if not policy.limits_values:
        return True
    try:
        return set(orjson.loads(stored.record)) <= in_clear(RecordItem)
    except ValueError:
        return False


def _checkpoint(checkpoint: Checkpoint) -> CheckpointItem:
    return CheckpointItem(
        size=checkpoint.size,
        root=checkpoint.root,
        created=checkpoint.created,
        previous=checkpoint.previous,
        key=checkpoint.key,
        **checkpoint.line,
    )
