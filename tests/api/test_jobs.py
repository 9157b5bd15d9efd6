"""Jobs as a client meets them: rows explained in the background, once each."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import update

from service.access.callers import Caller
from service.access.permissions import Policy, Quota
from service.access.quotas import Quotas
from service.api.background import new_job
from service.background.jobs import EXPLAIN, UNEXPECTED, ExplainSpec, Runner, failure_of, sealed_payload, sealed_spec
from service.catalog.versions import ModelVersion
from service.domain import Context
from service.errors import AnswerableError, Erased, LedgerUnavailable, NotFound
from service.ledger import open_engine, upgrade
from service.ledger.entries import LOOKUP
from service.ledger.job_erasing import ERASED
from service.ledger.jobs import Jobs
from service.ledger.searches import EventSearch
from service.ledger.spent_quotas import SpentQuotas
from service.ledger.stored_jobs import Job
from service.ledger.tables import job_rows
from service.ledger.tables import jobs as jobs_table
from tests.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain
    from tests.conftest import MakeKey, Service, Until

RULE = {"method": "integrated_gradients", "options": {"rule": "midpoint"}, "tolerance": 0.1}


@pytest.fixture
def tenant() -> str:
    return f"jobs-{uuid.uuid4()}"


@pytest.fixture
async def bank(service: Service, make_key: MakeKey, tenant: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a tenant that has nothing stored yet."""
    async with service.client(make_key(tenant=tenant)) as client:
        yield client


def rows_of(instance: dict[str, Any], count: int) -> list[dict[str, Any]]:
    return [{**instance, "net_worth": float(number)} for number in range(count)]


async def made(client: httpx.AsyncClient, **body: Any) -> str:
    """Makes a job of the loan model; gives its id."""
    response = await client.post("/v1/jobs", json={"model": "loan", "version": "1", **body})
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["state"] == "waiting"
    return str(job["id"])


async def ended(client: httpx.AsyncClient, job: str) -> dict[str, Any]:
    """The job once it has ended."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            found: dict[str, Any] = (await client.get(f"/v1/jobs/{job}")).json()
            if "ended" in found:
                return found
            await asyncio.sleep(0.02)


@dataclass(slots=True)
class Host:
    """A runner, and what its jobs hold: they run until they are told to end."""

    runner: Runner
    runs: list[str] = field(default_factory=list)


async def test_a_host_takes_no_more_jobs_than_it_has_room_for(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    """Six jobs posted to one of two hosts: each runs some. One that is full takes one more when nobody else did."""
    monkeypatch.setattr("service.background.jobs.POLL_SECONDS", 0.02)
    monkeypatch.setattr("service.background.jobs.DEFER_SECONDS", 3600.0)
    database = open_engine(f"sqlite:///{tmp_path / 'jobs.db'}")
    upgrade(database)
    store, go_on, now = Jobs(database), asyncio.Event(), time.time_ns() // 1000

    def host() -> Host:
        async def work(job: Job, _caller: Caller) -> None:
            one.runs.append(job.id)
            await go_on.wait()

        state = service.services
        one = Host(Runner(store, state.keys, Quotas(SpentQuotas(database)), {EXPLAIN: work, "export": work}))
        return one

    def post(rows: int, kind: str = EXPLAIN, age: float = 0) -> str:
        caller = Caller("bank", service.key.id)
        job = replace(new_job(str(uuid.uuid4()), caller, kind, b"", rows), created=now - round(age * 1e6))
        store.create(job)
        return job.id

    here, there = host(), host()
    six = [post(16) for _ in range(6)]
    here.runner.start()
    await until(lambda: len(here.runs) == 1)
    exported = post(0, "export")
    await until(lambda: exported in here.runs)  # it had looked again, and taken none of the others
    there.runner.start()
    await until(lambda: len(there.runs) == 1)
    assert (here.runs[0], there.runs[0]) == (six[0], six[1])

    old = post(16, age=3601.0)
    await until(lambda: old in here.runs + there.runs)
    assert len(here.runs) + len(there.runs) == 4
    go_on.set()
    await until(lambda: set(here.runs) | set(there.runs) == {*six, exported, old})
    all_of_them = [*six, exported, old]
    await until(lambda: all(store.get("bank", one, [EXPLAIN, "export"]).ended for one in all_of_them))  # type: ignore[union-attr]
    await asyncio.gather(here.runner.close(), there.runner.close())
    small = host()
    go_on.clear()
    several = {post(3) for _ in range(5)}
    small.runner.start()
    await until(lambda: set(small.runs) == several)  # together they are fifteen rows
    await small.runner.close()
    database.dispose()


async def stored(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    """Every stored explanation, by id."""
    found = (await client.get("/v1/explanations", params={"limit": 200})).json()["explanations"]
    return {one["id"]: one for one in found}


async def test_every_row_is_explained_once(bank: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    instances = rows_of(instance, 100)
    contexts = [{"decision_id": f"d-{number}", "subject": f"s-{number % 3}"} for number in range(100)]

    job = await ended(bank, await made(bank, instances=instances, parameters=RULE, context=contexts))

    assert (job["state"], job["progress"]) == ("done", {"total": 100, "done": 100, "failed": 0})
    assert [result["row"] for result in job["results"]] == list(range(100))
    records = await stored(bank)
    assert len(records) == 100
    for result, given, context in zip(job["results"], instances, contexts, strict=True):
        record = records[result["explanation"]]
        assert record["input"] == given
        assert (record["decision_id"], record["subject"]) == (context["decision_id"], context["subject"])
        assert record["method"] == "integrated_gradients"
    assert "next_cursor" not in job
    page = (await bank.get(f"/v1/jobs/{job['id']}", params={"limit": 60})).json()
    rest = (await bank.get(f"/v1/jobs/{job['id']}", params={"limit": 60, "cursor": page["next_cursor"]})).json()
    assert page["results"] + rest["results"] == job["results"]
    (listed,) = (await bank.get("/v1/jobs")).json()["jobs"]
    assert listed == {name: value for name, value in job.items() if name != "results"}


async def test_what_a_row_holds_is_sealed_and_then_dropped(
    service: Service, bank: httpx.AsyncClient, instance: dict[str, Any], tenant: str
) -> None:
    jobs: Jobs = service.with_ledger.jobs
    body = {"instances": [instance] * 3, "parameters": {"baseline": instance}, "context": {"subject": "Ada Lovelace"}}
    job = await made(bank, **body)
    database = service.database
    with database.connect() as connection:
        held = str(connection.exec_driver_sql("SELECT * FROM jobs").all())
        held += str(connection.exec_driver_sql("SELECT * FROM job_rows").all())
    await ended(bank, job)

    assert "Ada" not in held
    assert "applicant_income" not in held
    assert all(row.payload is None for row in jobs.results(job, -1, 10))


async def test_stored_explanations_are_explained_again_another_way(
    service: Service, bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any], tenant: str
) -> None:
    context = {"subject": "Ada", "decision_id": "d-1", "cohort": {"channel": "web"}}
    (wanted,) = (await explain([instance], by=bank, context=context))["explanations"]
    await explain([{**instance, "black": 0}], by=bank, context={"subject": "Grace"})

    parameters = {"method": "saliency"}
    job = await ended(bank, await made(bank, explanations={"subject": "Ada"}, parameters=parameters))
    other = await ended(bank, await made(bank, version="2", explanations={"subject": "Ada"}))

    (result,) = job["results"]
    records = await stored(bank)
    again, before = records[result["explanation"]], records[wanted["id"]]
    assert again["method"] == "saliency"
    for name in ("input", "subject", "decision_id", "cohort"):
        assert again[name] == before[name]
    search = EventSearch(kind=LOOKUP, about=job["id"])
    (event,) = service.call(service.with_ledger.ledger.events(tenant, search)).events
    assert event.details == {"action": "job", "conditions": ["subject"], "rows": 1}  # and not whose
    # The second version has fewer features; those that it has are taken. It explains both that were found.
    assert other["progress"] == {"total": 2, "done": 2, "failed": 0}
    assert {records_of["model"]["version"] for records_of in (await stored(bank)).values()} == {"1", "2"}


async def test_an_input_that_was_erased_is_not_explained_again(
    bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any]
) -> None:
    await explain([instance], by=bank, context={"subject": "Ada"})
    await explain([instance], by=bank, context={"subject": "Grace"})
    assert (await bank.post("/v1/subjects/Ada:erase", json={})).status_code == 200

    job = await ended(bank, await made(bank, explanations={}))

    assert job["progress"] == {"total": 2, "done": 1, "failed": 1}
    assert [result["error"] for result in job["results"] if "error" in result] == [
        "the explanation whose input was to be explained is no longer there"
    ]


async def test_rows_of_a_person_who_is_erased_are_not_explained(
    service: Service, bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Neither those that wait, nor that which is computed at the moment of the erasure."""
    await explain([instance], by=bank, context={"subject": "Ada"})
    contexts = [{"subject": name} for name in ("Ada", "Ada", "Grace")]
    ledger, append = service.with_ledger.ledger, service.with_ledger.ledger.append
    reached, go_on = asyncio.Event(), asyncio.Event()
    here = asyncio.get_running_loop()

    async def held(entries: Any, *rest: Any) -> None:
        if any(getattr(entry, "subject", None) == "Ada" for entry in entries):
            here.call_soon_threadsafe(reached.set)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), here))
        await append(entries, *rest)

    monkeypatch.setattr("service.background.jobs.WINDOW", 1)
    monkeypatch.setattr(ledger, "append", held)
    given = await made(bank, instances=rows_of(instance, 3), context=contexts, parameters=RULE)
    stored_before = await made(bank, explanations={"subject": "Ada"}, parameters=RULE)
    await asyncio.wait_for(reached.wait(), PATIENCE_SECONDS)

    erased = await bank.post("/v1/subjects/Ada:erase", json={})
    go_on.set()

    assert erased.json()["records"] == 1
    assert erased.json()["job_rows"] == 3
    job = await ended(bank, given)
    assert job["progress"] == {"total": 3, "done": 1, "failed": 2}
    assert [result.get("error") for result in job["results"]] == [ERASED, ERASED, None]
    assert (await ended(bank, stored_before))["results"] == [{"row": 0, "error": ERASED}]
    assert (await bank.get("/v1/explanations", params={"subject": "Ada"})).json()["explanations"] == []
    records = await stored(bank)
    assert [record["subject"] for record in records.values() if "subject" in record] == ["Grace"]
    assert len(records) == 2  # and the one that lost its personal part


async def test_a_row_that_cannot_be_explained_says_why(bank: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    parameters = {**RULE, "tolerance": 1e-9, "max_evaluations": 2, "strict": True}
    job = await ended(bank, await made(bank, instances=[instance] * 2, parameters=parameters))

    assert (job["state"], job["progress"]) == ("done", {"total": 2, "done": 0, "failed": 2})
    assert "tolerance was not met" in job["results"][0]["error"]


async def test_a_job_is_cancelled(
    service: Service, bank: httpx.AsyncClient, instance: dict[str, Any], until: Until
) -> None:
    slow = {"method": "expected_gradients", "tolerance": 1e-9, "max_evaluations": 4096}
    job = await made(bank, instances=rows_of(instance, 400), parameters=slow)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await stored(bank):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    cancelled = (await bank.delete(f"/v1/jobs/{job}")).json()
    again = (await bank.delete(f"/v1/jobs/{job}")).json()

    assert cancelled["state"] == again["state"] == "cancelled"
    assert cancelled["ended"] == again["ended"]
    await until(lambda: service.with_ledger.runner.running == 0)
    left = (await bank.get(f"/v1/jobs/{job}")).json()
    assert {result["explanation"] for result in left["results"]} == set(await stored(bank))  # what was made is told
    assert left["progress"]["done"] < 400


async def test_a_job_ends_with_its_key(
    service: Service, make_key: MakeKey, bank: httpx.AsyncClient, instance: dict[str, Any], tenant: str
) -> None:
    slow = {"method": "expected_gradients", "tolerance": 1e-9, "max_evaluations": 4096}
    key = make_key(tenant=tenant)
    async with service.client(key) as client:
        job = await made(client, instances=rows_of(instance, 400), parameters=slow)
    service.services.keys.revoke(key.id)

    found = await ended(bank, job)

    assert found["state"] == "failed"
    assert found["detail"] == "the key that made this job is no longer valid"


@pytest.mark.parametrize("quota", [Quota(None, 40, "day"), Quota(3, None, "day")])
async def test_a_job_waits_for_its_quota(
    service: Service,
    make_key: MakeKey,
    bank: httpx.AsyncClient,
    instance: dict[str, Any],
    tenant: str,
    quota: Quota,
) -> None:
    """Every row counts, beside the request that makes the job."""
    one = {**RULE, "max_evaluations": 20, "tolerance": 1e-9}
    async with service.client(make_key(tenant=tenant, quota=quota)) as client:
        job = await made(client, instances=rows_of(instance, 8), parameters=one)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(await stored(bank)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    waiting = (await bank.get(f"/v1/jobs/{job}")).json()
    await bank.delete(f"/v1/jobs/{job}")

    assert waiting["state"] == "running"
    assert len(await stored(bank)) == 2


async def test_a_job_that_waits_for_its_quota_keeps_no_other_waiting(
    service: Service, make_key: MakeKey, bank: httpx.AsyncClient, instance: dict[str, Any], tenant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("service.background.jobs.JOBS_AT_ONCE", 1)
    key = make_key(tenant=tenant, quota=Quota(None, 20, "day"))
    one = {**RULE, "max_evaluations": 20, "tolerance": 1e-9}
    async with service.client(key) as client:
        job = await made(client, instances=rows_of(instance, 8), parameters=one)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while "detail" not in (waiting := (await client.get(f"/v1/jobs/{job}")).json()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        other = await ended(bank, await made(bank, instances=[instance], parameters=RULE))
        await client.delete(f"/v1/jobs/{job}")

    assert "quota of 20 gradient points a day is spent" in waiting["detail"]
    assert waiting["progress"]["done"] == 1
    assert (other["state"], other["progress"]["done"]) == ("done", 1)


async def test_a_row_that_cannot_be_opened_leaves_the_others_alone(
    service: Service, bank: httpx.AsyncClient, instance: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(service.with_ledger.jobs, "claim", lambda *_: None)  # nobody begins
        job = await made(bank, instances=rows_of(instance, 3), parameters=RULE)
        with service.database.begin() as connection:
            connection.exec_driver_sql(
                f"UPDATE job_rows SET payload = (SELECT spec FROM jobs WHERE id = '{job}') "
                f"WHERE job_id = '{job}' AND number = 1"
            )

    found = await ended(bank, job)

    assert (found["state"], found["progress"]) == ("done", {"total": 3, "done": 2, "failed": 1})
    assert found["results"][1] == {"row": 1, "error": UNEXPECTED}


async def test_an_instance_that_no_longer_fits_is_not_told_in_clear(
    service: Service, bank: httpx.AsyncClient, instance: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, jobs = service.services.vault, service.with_ledger.jobs
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "claim", lambda *_: None)  # nobody begins
        job = await made(bank, instances=[instance], parameters=RULE)
        ((row, _),) = jobs.unfinished_rows(job, -1, 1)
        payload = sealed_payload(vault, row.explanation_id, {**instance, "net_worth": "Ada's 17"}, Context())
        with service.database.begin() as connection:
            connection.execute(update(job_rows).where(job_rows.c.job_id == job).values(payload=payload))

    (result,) = (await ended(bank, job))["results"]

    assert result == {"row": 0, "error": "the instance does not fit this model"}


async def test_a_baseline_that_no_longer_fits_is_not_told_in_clear(
    service: Service, bank: httpx.AsyncClient, instance: dict[str, Any], tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, jobs = service.services.vault, service.with_ledger.jobs
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "claim", lambda *_: None)  # nobody begins
        job = await made(bank, instances=[instance], parameters={**RULE, "baseline": instance})
        stored = jobs.get(tenant, job, (EXPLAIN,))
        assert stored is not None
        spec = ExplainSpec.of(vault, stored)
        assert isinstance(spec.parameters.baseline, dict)
        spec.parameters.baseline["net_worth"] = -31337e30
        with service.database.begin() as connection:
            sealed = sealed_spec(vault, job, spec)
            connection.execute(update(jobs_table).where(jobs_table.c.id == job).values(spec=sealed))

    (result,) = (await ended(bank, job))["results"]

    assert result == {"row": 0, "error": "the baseline does not fit this model"}


def kinds_of(error: type[AnswerableError]) -> list[type[AnswerableError]]:
    """The class and all below it."""
    return [error, *(kind for below in error.__subclasses__() for kind in kinds_of(below))]


@pytest.mark.parametrize("kind", kinds_of(AnswerableError))
def test_nothing_that_an_error_says_of_the_input_is_kept(kind: type[AnswerableError]) -> None:
    error = kind({"income": 31337}) if kind is Erased else kind("income is 31337, outside its range")
    assert "31337" in f"{error} {error.members}"
    assert "31337" not in failure_of(error)
    assert failure_of(error)


async def test_a_version_that_is_not_here_makes_the_job_wait(
    service: Service, bank: httpx.AsyncClient, instance: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = service.services.catalog
    with monkeypatch.context() as patch:
        patch.setattr("service.background.jobs.PAUSE_SECONDS", 0.05)
        patch.setattr(service.with_ledger.jobs, "claim", lambda *_: None)
        job = await made(bank, instances=[instance], parameters=RULE)
        patch.setattr(catalog, "find", missing)
        patch.delattr(service.with_ledger.jobs, "claim")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while "detail" not in (waiting := (await bank.get(f"/v1/jobs/{job}")).json()):  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    assert waiting["detail"] == "loan 1: the model has no such version"
    found = await ended(bank, job)
    assert (found["state"], found["progress"]) == ("done", {"total": 1, "done": 1, "failed": 0})


def missing(*_: str) -> ModelVersion:
    raise NotFound("the model has no such version")


@pytest.mark.parametrize("mode", ["best_effort", "required"])
async def test_what_was_not_recorded_is_not_done(
    service: Service, bank: httpx.AsyncClient, instance: dict[str, Any], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    ledger, failures = service.with_ledger.ledger, 0
    append = ledger.append

    async def away_at_first(entries: Any, *rest: Any) -> None:
        nonlocal failures
        if failures < 2:
            failures += 1
            raise LedgerUnavailable("away")
        await append(entries, *rest)

    monkeypatch.setattr(service.services.explaining, "_ledger_mode", mode)
    monkeypatch.setattr(ledger, "append", away_at_first)
    job = await ended(bank, await made(bank, instances=rows_of(instance, 3), parameters=RULE))

    assert failures == 2
    assert job["progress"] == {"total": 3, "done": 3, "failed": 0}
    assert {result["explanation"] for result in job["results"]} == set(await stored(bank))


async def test_nobody_sees_anothers_jobs(
    service: Service, bank: httpx.AsyncClient, client: httpx.AsyncClient, instance: dict[str, Any]
) -> None:
    job = await made(client, instances=[instance])
    headers = {"X-Request-Id": "the-same"}

    for method in ("GET", "DELETE"):
        answers = [
            await bank.request(method, f"/v1/jobs/{one}", headers=headers)
            for one in (job, str(uuid.uuid4()), "nothing%00at%20all")
        ]
        assert [answer.status_code for answer in answers] == [404, 404, 404]
        assert answers[0].content == answers[1].content == answers[2].content
    assert (await bank.get("/v1/jobs")).json() == {"jobs": []}
    assert (await ended(client, job))["state"] == "done"


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({}, 422, "either instances or explanations"),
        ({"instances": [1], "explanations": {}}, 422, "either instances or explanations"),
        ({"explanations": {}, "context": {}}, 422, "have a context already"),
        ({"instances": [1], "kind": "export"}, 422, "kind must be 'explain' or 'evaluate'"),
        ({"instances": [1], "model": "nothing"}, 404, "no such model"),
        ({"instances": [1]}, 422, "instance 0: an instance is an object"),
        ({"instances": ["example"], "parameters": {"method": "nothing"}}, 422, "method 'nothing' is not known"),
        ({"instances": ["example"], "context": [{}, {}]}, 400, "the job has 1 instance and 2 contexts"),
        ({"explanations": {"subject": "nobody at all"}}, 422, "finds no explanation"),
        ({"explanations": {"from": "2026-01-31T12:00:00"}}, 422, "needs a time zone"),
        ({"explanations": {"form": "2026-01-31"}}, 400, "did you mean from?"),
        ({"explanations": {"version": "1"}}, 422, "finds no explanation"),
        ({"explanations": "own", "parameters": {"method": "nothing"}}, 422, "method 'nothing' is not known"),
        ({"explanations": "own", "parameters": {"baseline": [1]}}, 422, "baseline: the instance has 1 values"),
    ],
)
async def test_a_job_that_cannot_be_done_is_refused(
    bank: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem,
    explain: Explain, body: dict[str, Any], status: int, sentence: str,
) -> None:  # fmt: skip
    if body.get("explanations") == "own":
        await explain([instance], by=bank)
        body = {**body, "explanations": {}}
    if body.get("instances") == ["example"]:
        body = {**body, "instances": [instance]}
    response = await bank.post("/v1/jobs", json={"model": "loan", "version": "1", **body})

    assert sentence in assert_problem(response, status)


async def test_a_method_that_the_policy_does_not_allow_is_refused_at_once(
    service: Service, make_key: MakeKey, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    async with service.client(make_key(policy=Policy(methods=frozenset({"saliency"})))) as client:
        body = {"model": "loan", "version": "1", "instances": [instance]}
        response = await client.post("/v1/jobs", json=body)

    assert "allows the methods saliency" in assert_problem(response, 403)


async def test_stored_inputs_need_the_scope_to_read_them(
    service: Service, make_key: MakeKey, assert_problem: AssertProblem
) -> None:
    async with service.client(make_key("explain")) as client:
        response = await client.post("/v1/jobs", json={"model": "loan", "explanations": {}})

    assert "ledger:read" in assert_problem(response, 403)
