"""What the routes of jobs and of exports share: both are jobs of the ledger, done in the background."""

from __future__ import annotations

import asyncio
import time

from fastapi import Request

from service.answers.records import Caller
from service.api.explanations import ledger_of
from service.background.jobs import EXPLAIN
from service.errors import NotFound
from service.ledger.jobs import Jobs
from service.ledger.stored_jobs import Job, State

MOST_LISTED = 50


def jobs_of(request: Request) -> Jobs:
    """The stored jobs. Raises NotFound where there is no ledger: what they make could not be found."""
    ledger_of(request)
    jobs: Jobs = request.app.state.jobs
    return jobs


async def find_job(request: Request, job: str, caller: Caller, kind: str) -> Job:
    """The caller's job of that id and kind. Raises NotFound."""
    is_id = len(job) == 36 and job.isascii() and job.isprintable()
    found = await asyncio.to_thread(jobs_of(request).get, caller.tenant, job, (kind,)) if is_id else None
    if found is None:
        raise NotFound(f"there is no such {'job' if kind == EXPLAIN else kind}")
    return found


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
