"""Exports as a client meets them: a table or a signed zip, for whoever may read records whole."""

from __future__ import annotations

import asyncio
import csv
import io
import threading
import uuid
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pyarrow.parquet as pq
import pytest

from service.access.permissions import Policy
from service.background import exporting
from service.background.export_tables import COLUMNS
from service.background.exporting import KEPT_SECONDS, Exports
from service.errors import LedgerUnavailable
from service.ledger.entries import Stored
from service.ledger.erasing import erase
from service.ledger.export_checking import check_export
from service.ledger.searches import EventSearch, Search
from tests.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain
    from tests.conftest import MakeKey, Service


@pytest.fixture
def tenant() -> str:
    return f"exports-{uuid.uuid4()}"


@pytest.fixture
async def bank(service: Service, make_key: MakeKey, tenant: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a tenant that has nothing stored yet."""
    async with service.client(make_key(tenant=tenant)) as client:
        yield client


async def ended(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """An export once it has ended."""
    response = await client.post("/v1/exports", json=body)
    assert response.status_code == 202, response.text
    path = response.headers["location"]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            found: dict[str, Any] = (await client.get(path)).json()
            if "ended" in found:
                return found
            await asyncio.sleep(0.02)


def files_of(service: Service, export: str) -> list[Path]:
    """What the data folder has of an export."""
    return [*(service.data / "exports").glob(f"*/{export}*")]


async def exported(client: httpx.AsyncClient, **body: Any) -> bytes:
    export = await ended(client, **body)
    assert export["state"] == "done", export
    response = await client.get(f"/v1/exports/{export['id']}/file")
    assert response.status_code == 200, response.text
    assert response.headers["content-disposition"].endswith(f'.{export["format"]}"')
    return response.content


def typed(row: dict[str, str]) -> dict[str, Any]:
    """A row of the CSV with the types of its columns."""
    read = {int: int, float: float, str: str, bool: lambda cell: cell == "true"}
    return {name: read[kind](row[name]) if row[name] else None for name, kind in COLUMNS.items()}  # type: ignore[operator]


async def test_tables_hold_what_was_recorded(
    bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any], approved: dict[str, Any]
) -> None:
    context = {"subject": "=cmd()", "decision_id": "d-1", "cohort": {"channel": "web"}}
    (denied,) = (await explain([instance], by=bank, context=context))["explanations"]
    await explain([approved], by=bank)

    rows = [typed(row) for row in csv.DictReader(io.StringIO((await exported(bank, format="csv")).decode()))]
    table = pq.read_table(io.BytesIO(await exported(bank, format="parquet"))).to_pylist()
    found = list(
        csv.DictReader(io.StringIO((await exported(bank, format="csv", explanations={"label": "denied"})).decode()))
    )

    assert len(rows) == len(table) == 2
    assert [row["id"] for row in found] == [denied["id"]]
    record = (await bank.get(f"/v1/explanations/{denied['id']}")).json()
    first = table[0]
    for name in ("id", "output", "baseline_output", "completeness_error", "attribution_error", "converged",
                 "evaluations", "decision_id", "subject"):  # fmt: skip
        assert first[name] == record[name]
    assert first["sequence"] == record["ledger"]["sequence"]
    model = {"name": first["model"], "version": first["version"], "digest": first["digest"]}
    assert model == record["model"]
    assert (first["target"], first["label"]) == (record["target"]["label"], record["prediction"]["label"])
    assert orjson.loads(first["attributions"]) == record["attributions"]
    assert orjson.loads(first["input"]) == record["input"]
    assert orjson.loads(first["cohort"]) == {"channel": "web"}
    assert first["reasons"].split() == [reason["code"] for reason in record["reasons"]]
    assert not first["erased"]
    assert rows[0]["subject"] == "'=cmd()"  # a spreadsheet shows it, and computes nothing
    empty_is_none = {name: None if value == "" else value for name, value in first.items()}
    assert {**rows[0], "subject": "=cmd()"} == empty_is_none


async def test_the_zip_holds_records_with_proofs(
    service: Service, bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any], tenant: str
) -> None:
    (explanation,) = (await explain([instance], by=bank, context={"subject": "Ada"}))["explanations"]

    content = await exported(bank)
    keys = service.call(service.with_ledger.ledger.signing_keys())

    assert check_export(io.BytesIO(content), keys[0].public_key).is_valid
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (line,) = archive.read("records.ndjson").splitlines()
        manifest = orjson.loads(archive.read("manifest.json"))

    record = (await bank.get(f"/v1/explanations/{explanation['id']}")).json()
    assert orjson.loads(line)["leaf"] == record["ledger"]["leaf"]
    assert (manifest["records"], manifest["asked"]["tenant"]) == (1, tenant)


async def test_an_export_and_each_time_it_is_fetched_are_events(
    service: Service, bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any], tenant: str
) -> None:
    await explain([instance], by=bank, context={"subject": "Ada"})
    export = await ended(bank, format="csv", explanations={"subject": "Ada"})
    await bank.get(f"/v1/exports/{export['id']}/file")

    page = service.call(service.with_ledger.ledger.events(tenant, EventSearch(about=export["id"])))

    fetched, end, made, begin = page.events
    assert (begin.kind, made.kind, end.kind) == ("job_created", "export", "job_ended")
    assert fetched.kind == "export_download"
    told = {"format": "csv", "records": 1, "conditions": ["subject"], "host": gethostname()}  # and not whose
    assert made.details == told
    assert export["progress"] == {"total": 1, "done": 1}
    assert (await bank.get("/v1/exports")).json() == {"exports": [export]}


async def test_exports_by_the_name_of_a_person_are_listed_when_that_person_is_erased(
    bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    await explain([instance], by=bank, context={"subject": "Ada"})
    export = await ended(bank, format="csv", explanations={"subject": "Ada"})

    assert (await bank.post("/v1/subjects/Ada:erase", json={})).json()["exports"] == 1

    assert (await bank.get("/v1/exports")).json() == {"exports": [export]}
    assert (await bank.get(f"/v1/exports/{export['id']}")).json() == export
    assert "not past an erasure" in assert_problem(await bank.get(f"/v1/exports/{export['id']}/file"), 410)


async def test_an_erasure_withdraws_what_was_exported_before(
    service: Service, bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any], tenant: str,
    assert_problem: AssertProblem,
) -> None:  # fmt: skip
    await explain([instance], by=bank, context={"subject": "Ada", "decision_id": "d-1"})
    await explain([instance], by=bank, context={"subject": "Grace"})
    export = await ended(bank, format="csv")
    (path,) = files_of(service, export["id"])
    assert path.stat().st_mode & 0o077 == 0

    assert (await bank.post("/v1/subjects/Ada:erase", json={})).status_code == 200

    assert not path.exists()
    gone = await bank.get(f"/v1/exports/{export['id']}/file")
    assert "not past an erasure" in assert_problem(gone, 410)
    anew = [typed(row) for row in csv.DictReader(io.StringIO((await exported(bank, format="csv")).decode()))]
    assert [row["erased"] for row in anew] == [True, False]
    assert {anew[0][name] for name in ("subject", "decision_id", "input", "attributions", "output")} == {None}
    with zipfile.ZipFile(io.BytesIO(await exported(bank))) as archive:
        lines = [orjson.loads(line) for line in archive.read("records.ndjson").splitlines()]
    assert [line["personal"] is None for line in lines] == [True, False]
    assert "Ada" not in str(lines)


async def test_files_are_kept_for_a_day(
    service: Service, bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any], tenant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    exports: Exports = service.with_ledger.exports
    await explain([instance], by=bank)
    export = await ended(bank, format="csv")
    (path,) = files_of(service, export["id"])
    exports.sweep()
    assert path.exists()
    monkeypatch.setattr("service.background.exporting.KEPT_SECONDS", -5)
    exports.sweep()
    assert not path.exists()
    assert KEPT_SECONDS == 86_400
    assert (await bank.get(f"/v1/exports/{export['id']}/file")).status_code == 410


async def test_the_host_that_wrote_a_file_is_named_where_it_is_not(
    bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any], assert_problem: AssertProblem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Behind a balancer, say."""
    await explain([instance], by=bank)
    monkeypatch.setattr("service.background.exporting.gethostname", lambda: "front-1")
    export = await ended(bank, format="csv")
    monkeypatch.setattr("service.background.exporting.KEPT_SECONDS", -5)  # as if it lay elsewhere

    for here, sentence in (
        ("front-2", "not on this host, front-2: it is kept on front-1"),
        ("front-1", "no longer here"),
    ):
        monkeypatch.setattr("service.api.exports.gethostname", lambda here=here: here)
        gone = assert_problem(await bank.get(f"/v1/exports/{export['id']}/file"), 410)
        assert sentence in gone
        assert "for a day, and not past an erasure" in gone


async def test_what_was_reviewed_is_exported_apart(
    bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any]
) -> None:
    reply = await explain([instance] * 2, by=bank)
    first, second = (one["id"] for one in reply["explanations"])
    review = await bank.post(f"/v1/explanations/{first}:review", json={"verdict": "accepted"})
    assert review.status_code < 300, review.text
    for reviewed, meant in ((True, first), (False, second)):
        content = await exported(bank, format="csv", explanations={"reviewed": reviewed})
        assert [row["id"] for row in csv.DictReader(io.StringIO(content.decode()))] == [meant]


async def test_whoever_sees_rounded_values_exports_none(
    service: Service, make_key: MakeKey, bank: httpx.AsyncClient, tenant: str, assert_problem: AssertProblem,
    explain: Explain, instance: dict[str, Any],
) -> None:  # fmt: skip
    await explain([instance], by=bank)
    export = await ended(bank)
    async with service.client(make_key(tenant=tenant, policy=Policy(top=3))) as narrow:
        for response in (
            await narrow.post("/v1/exports", json={}),
            await narrow.get(f"/v1/exports/{export['id']}/file"),
        ):
            assert "policy limits" in assert_problem(response, 403)


async def test_nobody_sees_anothers_exports(bank: httpx.AsyncClient, client: httpx.AsyncClient) -> None:
    export = await ended(client, format="csv", explanations={"subject": "nobody"})
    assert export["progress"] == {"total": 0, "done": 0}
    for method, suffix in (("GET", ""), ("DELETE", ""), ("GET", "/file")):
        answers = [
            await bank.request(method, f"/v1/exports/{one}{suffix}", headers={"X-Request-Id": "the-same"})
            for one in (export["id"], str(uuid.uuid4()), "nothing%00at%20all")
        ]
        assert [answer.status_code for answer in answers] == [404, 404, 404]
        assert answers[0].content == answers[1].content == answers[2].content
    assert (await bank.get("/v1/exports")).json() == {"exports": []}


async def test_what_is_not_done_cannot_be_fetched(
    service: Service, bank: httpx.AsyncClient, assert_problem: AssertProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.with_ledger.jobs, "claim", lambda *_: None)  # nobody begins
    response = await bank.post("/v1/exports", json={"format": "csv"})
    path = response.headers["location"]
    assert "waiting" in assert_problem(await bank.get(f"{path}/file"), 409)
    await bank.delete(path)

    assert (await bank.get(path)).json()["state"] == "cancelled"
    assert "cancelled" in assert_problem(await bank.get(f"{path}/file"), 409)


@pytest.mark.parametrize("step", ["checkpoint", "append_event"])
async def test_while_the_database_is_silent_an_export_waits_and_says_so(
    service: Service, bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any],
    assert_problem: AssertProblem, monkeypatch: pytest.MonkeyPatch, step: str,
) -> None:  # fmt: skip
    await explain([instance], by=bank)
    monkeypatch.setattr(exporting, "PAUSE_SECONDS", 200.0)

    async def silent(*_: object) -> None:
        raise LedgerUnavailable("The database does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(service.with_ledger.ledger, step, silent)
        response = await bank.post("/v1/exports", json={"format": "zip"})
        path = response.headers["location"]
        found = response.json()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while "detail" not in found:
                found = (await bank.get(path)).json()
                await asyncio.sleep(0.02)
        assert found["state"] == "running"
        assert found["detail"] == "it is tried again: The database does not answer."
        assert "it is tried again" in assert_problem(await bank.get(f"{path}/file"), 409)
        assert files_of(service, found["id"]) == []
    with service.database.begin() as connection:  # the pause is over
        connection.exec_driver_sql(f"UPDATE jobs SET leased_until = NULL WHERE id = '{found['id']}'")
    async with asyncio.timeout(PATIENCE_SECONDS):
        while "ended" not in found:
            found = (await bank.get(path)).json()
            await asyncio.sleep(0.02)

    assert found["state"] == "done"
    assert "detail" not in found
    assert (await bank.get(f"{path}/file")).status_code == 200


async def test_an_erasure_while_an_export_is_written_withdraws_it_whatever_the_clocks_say(
    service: Service, bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any], tenant: str,
    assert_problem: AssertProblem, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    exports: Exports = service.with_ledger.exports
    await explain([instance], by=bank, context={"subject": "Ada"})
    vault, engine, stored = service.services.vault, service.database, exports._stored

    def read_then_erased(asked: str, search: Search) -> Iterator[Stored]:
        read = list(stored(asked, search))
        with monkeypatch.context() as patch:
            patch.setattr("service.ledger.entries.time.time_ns", lambda: 1_000)  # of a host that is far behind
            erase(engine, vault, tenant, "Ada", "k")
        yield from read

    monkeypatch.setattr(exports, "_stored", read_then_erased)
    export = await ended(bank, format="csv")

    assert export["state"] == "done"
    gone = await bank.get(f"/v1/exports/{export['id']}/file")
    assert "not past an erasure" in assert_problem(gone, 410)
    exports.sweep()
    assert files_of(service, export["id"]) == []


async def test_two_runs_of_an_export_write_apart(
    service: Service, bank: httpx.AsyncClient, explain: Explain, instance: dict[str, Any], tenant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    exports: Exports = service.with_ledger.exports
    await explain([instance], by=bank)
    stored, began, go_on = exports._stored, threading.Event(), threading.Event()

    def halted(asked: str, search: Search) -> Iterator[Stored]:
        began.set()
        assert go_on.wait(PATIENCE_SECONDS)
        yield from stored(asked, search)

    monkeypatch.setattr(exports, "_stored", halted)
    response = await bank.post("/v1/exports", json={"format": "csv"})
    assert await asyncio.to_thread(began.wait, 30)
    export = response.json()["id"]
    (part,) = files_of(service, export)
    left = part.with_name(f"{export}.{uuid.uuid4()}.part")  # of a run that was killed
    left.write_bytes(b"")
    exports.sweep()
    assert files_of(service, export) == [part]  # whose run goes on
    with service.database.begin() as connection:  # taken over meanwhile
        connection.exec_driver_sql(f"UPDATE jobs SET owner = 'another' WHERE id = '{export}'")
    exports.sweep()
    assert files_of(service, export) == []
    go_on.set()
    await asyncio.to_thread(exports._writer.submit(int).result)  # what was before it in the queue is over

    found = (await bank.get(f"/v1/exports/{export}")).json()
    assert found["state"] == "running"
    assert files_of(service, export) == []
    await bank.delete(f"/v1/exports/{export}")


async def test_a_format_that_is_not_known(bank: httpx.AsyncClient, assert_problem: AssertProblem) -> None:
    assert "format" in assert_problem(await bank.post("/v1/exports", json={"format": "xlsx"}), 422)
