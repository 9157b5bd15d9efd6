"""What the routes of jobs and of exports share: both are jobs that the ledger stores."""

from __future__ import annotations

import asyncio
import time

from service.access.callers import Caller
from service.api.requests import ApiRequest
from service.errors import NotFound
from service.ledger.stored_jobs import Job, State

MAX_LISTED = 50


async def find_job(request: ApiRequest, job_id: str, *kinds: str) -> Job:
    """The caller's job of that id, of one of the kinds. Raises NotFound."""
    jobs = request.services.need_ledger().jobs
    is_id = len(job_id) == 36 and job_id.isascii() and job_id.isprintable()
    job = await asyncio.to_thread(jobs.get, request.caller.tenant, job_id, kinds) if is_id else None
    if job is None:
        raise NotFound(f"there is no such {kinds[0] if len(kinds) == 1 else 'job'}")
    return job


def new_job(job_id: str, caller: Caller, kind: str, spec: bytes, total: int | None) -> Job:
    """A job that waits to be run."""
    return Job(
        id=job_id,
        tenant=caller.tenant,
        key_id=caller.key_id,
        kind=kind,
        state=State.WAITING,
        created=time.time_ns() // 1000,
        ended=None,
        spec=spec,
        total=total,
        done=0,
        failed=0,
        detail=None,
    )
