"""Proof that what is stored is what was recorded: proofs, checkpoints, verification, and the log's events."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from service.api.auth import CallerOf, caller_of, needs
from service.api.explanations import find_stored, ledger_of
from service.api.filters import From, To
from service.api.parsing import StrictRoute
from service.api.problems import answers
from service.api.schemas import NOTHING, Nothing
from service.errors import NotFound
from service.ledger.checkpoints import Checkpoint
from service.ledger.export_checking import checkpoint_faults
from service.ledger.maintenance import LedgerMaintenance
from service.ledger.merkle import is_included
from service.ledger.searches import EventSearch
from service.ledger.signing import chain_faults

reading = APIRouter(tags=["Evidence"], responses=answers(401, 403, 404, 422, 503))
verifying = APIRouter(route_class=StrictRoute, tags=["Evidence"])
routers = (reading, verifying)


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
    record: str | None = Field(description="the text that the leaf is the hash of")
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


@reading.get("/v1/explanations/{explanation}/proof", responses={200: {"model": ProofReply}})
@needs("ledger:read")
async def prove_explanation(request: Request, explanation: str, caller: CallerOf) -> Response:
    """The inclusion proof of an explanation, erased or not, and the signed checkpoint that it ends in."""
    stored = await find_stored(request, explanation, caller, erased_too=True)
    path, checkpoint = await ledger_of(request).inclusion(stored.seq)
    proof = {
        "id": stored.id,
        "leaf_index": stored.seq - 1,
        "leaf": stored.leaf.hex(),
        "record": stored.logged.decode() or None,
        "path": [one.hex() for one in path],
        "checkpoint": _checkpoint(checkpoint),
    }
    return Response(orjson.dumps(proof), media_type="application/json")


@verifying.post(
    "/v1/explanations/{explanation}:verify",
    responses={200: {"model": VerifyReply}, **answers(400, 401, 403, 404, 408, 413, 415, 503)},
)
@needs("ledger:read")
async def verify_explanation(request: Request, explanation: str, body: Nothing = NOTHING) -> Response:  # noqa: ARG001
    """Checks every stored column of an explanation against its record in the log, and that against a signature."""
    stored = await find_stored(request, explanation, caller_of(request), erased_too=True, opened=False)
    ledger, maintenance = ledger_of(request), maintenance_of(request)
    faults = await maintenance.verify_one(stored.seq)
    path, checkpoint = await ledger.inclusion(stored.seq)
    keys = await ledger.signing_keys()
    faults += [*chain_faults(keys), *checkpoint_faults(checkpoint, keys)]
    if not is_included(stored.leaf, stored.seq - 1, checkpoint.size, path, bytes.fromhex(checkpoint.root)):
        faults.append(f"row {stored.seq} is not in the log that was signed")
    verdict = {
        "id": stored.id,
        "valid": not faults,
        "erased": stored.tombstone is not None,
        "faults": faults,
        "size": checkpoint.size,
        "signed": checkpoint.created,
    }
    return Response(orjson.dumps(verdict), media_type="application/json")


@reading.get("/v1/checkpoint", responses={200: {"model": CheckpointItem}})
@needs("ledger:read")
async def show_checkpoint(request: Request) -> Response:
    """The newest signed state of the log; signed now, if something came since the last one."""
    checkpoint = await ledger_of(request).checkpoint()
    if checkpoint is None:
        raise NotFound("the log is empty, so nothing is signed yet")
    return Response(orjson.dumps(_checkpoint(checkpoint)), media_type="application/json")


@reading.get("/v1/consistency", responses={200: {"model": ConsistencyReply}})
@needs("ledger:read")
async def prove_consistency(
    request: Request,
    first: Annotated[int, Query(alias="from", ge=1, le=2**53)],
    second: Annotated[int, Query(alias="to", ge=1, le=2**53)],
) -> Response:
    """That a later state of the log begins with all of an earlier one; both are sizes of checkpoints."""
    proof, old, new = await ledger_of(request).consistency(first, second)
    shown = {"proof": [one.hex() for one in proof], "first": _checkpoint(old), "second": _checkpoint(new)}
    return Response(orjson.dumps(shown), media_type="application/json")


@reading.get("/v1/events", responses={200: {"model": EventsReply}})
@needs("ledger:read")
async def list_events(
    request: Request,
    caller: CallerOf,
    kind: str | None = None,
    about: str | None = None,
    created_from: Annotated[From, Query(alias="from")] = None,
    created_to: Annotated[To, Query(alias="to")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: str | None = None,
) -> Response:
    """What else happened, the newest first: `lookup`, `erasure`, `retention`, `hold`, `release`, `review` ..."""
    search = EventSearch(kind=kind, about=about, created_from=created_from, created_to=created_to)
    page = await ledger_of(request).events(caller.tenant, search, limit, cursor)
    found = [
        {
            "sequence": event.seq,
            "kind": event.kind,
            "created": event.created,
            "key_id": event.key_id,
            "about": event.about,
            "details": event.details,
        }
        for event in page.events
    ]
    return Response(orjson.dumps({"events": found, "next_cursor": page.next_cursor}), media_type="application/json")


def maintenance_of(request: Request) -> LedgerMaintenance:
    """Who looks after the ledger. Raises NotFound where there is none."""
    maintenance: LedgerMaintenance | None = request.app.state.maintenance
    if maintenance is None:
        raise NotFound("this service keeps no ledger")
    return maintenance


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "size": checkpoint.size,
        "root": checkpoint.root,
        "created": checkpoint.created,
        "previous": checkpoint.previous,
        "key": checkpoint.key,
        **checkpoint.line,
    }
