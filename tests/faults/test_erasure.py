"""Of a person who was erased nothing is left, wherever the service writes: stores, cache, log, later exports."""

from __future__ import annotations

import asyncio
import io
import signal
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pyarrow.parquet as pq
import pytest
import redis

from service.ledger import open_engine
from service.processes.embedded_redis import start_embedded_redis
from tests.conftest import PATIENCE_SECONDS, bytes_of

if TYPE_CHECKING:
    import subprocess

    from tests.faults.conftest import Start, UnderLoad

SECRET = "a key that the operator chose"
EXPLAIN = "/v1/models/loan/versions/1:explain"
PERSON, DECISION, INCOME = "Adelheid Quendolin Xanthopoulos", "decision-4093-kx", 1583.6677194
CONTEXT = {"subject": PERSON, "decision_id": DECISION}


def redis_bytes(url: str) -> bytes:
    """All that is in a Redis: every key with its value, and the file that it would save them in."""
    with redis.Redis.from_url(url) as client:
        client.config_set("rdbcompression", "no")
        client.save()
        file = Path(client.config_get("dir")["dir"]) / client.config_get("dbfilename")["dbfilename"]
        found = [file.read_bytes()]
        file.unlink()
        for key in client.scan_iter():
            found += [key, client.dump(key) or b""]  # one that has just ended has no value
    return b"".join(found)


def stored_bytes(url: str | None, folder: Path) -> bytes:
    """All files of the service's folder, and of the whole PostgreSQL server, its log and WAL too, if there is one."""
    folders = [folder]
    if url is not None:
        engine = open_engine(url)
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT pg_switch_wal()")
            folders.append(Path(str(connection.exec_driver_sql("SHOW data_directory").scalar())))
        engine.dispose()
    return b"".join(bytes_of(path) for one in folders for path in one.rglob("*") if path.is_file())


def unpacked(content: bytes) -> bytes:
    """What is in an export, none of it compressed."""
    if content.startswith(b"PAR1"):
        return str(pq.read_table(io.BytesIO(content)).to_pylist()).encode()
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return b"".join(archive.read(name) for name in archive.namelist())
    return content


def words_in(content: bytes, words: list[str]) -> list[str]:
    return [word for word in words if word.encode() in content]


async def answered(client: httpx.AsyncClient, method: str, path: str, **request: Any) -> Any:
    response = await client.request(method, path, **request)
    assert response.status_code < 300, response.text
    return response.json()


async def ended(client: httpx.AsyncClient, path: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while "ended" not in await answered(client, "GET", path):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def exported(client: httpx.AsyncClient, form: str) -> bytes:
    export = (await answered(client, "POST", "/v1/exports", json={"format": form}))["id"]
    await ended(client, f"/v1/exports/{export}")
    file = await client.get(f"/v1/exports/{export}/file")
    assert file.status_code == 200, file.text
    return unpacked(file.content)


async def refused(client: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    """What nobody answers, and every answer of which might land in the log with what was asked."""
    for method, path, request in (
        ("POST", EXPLAIN, {"instances": [instance], "context": {**CONTEXT, "nonsense": 1}}),
        ("POST", EXPLAIN, {"instances": [{**instance, PERSON: 1}], "context": CONTEXT}),
        ("POST", EXPLAIN, {"instances": [instance] * 2, "context": [CONTEXT]}),
        ("POST", EXPLAIN, {"instances": [instance], "parameters": {"target": PERSON}}),
        ("POST", f"/v1/models/{PERSON}:explain", {"instances": [instance]}),
        ("POST", f"/v1/subjects/{PERSON}:hold", {}),
        ("POST", "/v1/jobs", {"model": "loan", "instances": [{**instance, DECISION: 1}], "context": CONTEXT}),
        ("GET", f"/v1/explanations?subject={PERSON}&limit=0", None),
        ("GET", f"/v1/explanations/{PERSON}", None),
        ("GET", f"/nothing/{PERSON}", None),
    ):
        response = await client.request(method, path, json=request)
        assert 400 <= response.status_code < 500, (path, response.text)
    broken = f'{{"instances": [{INCOME}], "context": "{PERSON}"'.encode()
    assert (await client.post(EXPLAIN, content=broken)).status_code == 400


async def asked_about(client: httpx.AsyncClient, instance: dict[str, Any]) -> list[str]:
    """Everything that is asked about a person; gives the words that would tell of them."""
    body = {"instances": [instance], "context": CONTEXT}
    first, second = [(await answered(client, "POST", EXPLAIN, json=body))["explanations"][0] for _ in "ab"]
    assert (first["cached"], second["cached"]) == (False, True)
    job = {"model": "loan", "version": "1", **body, "instances": [instance, {**instance, "net_worth": 3.0}]}
    await ended(client, f"/v1/jobs/{(await answered(client, 'POST', '/v1/jobs', json=job))['id']}")
    path = f"/v1/explanations/{first['id']}"
    for method, asked in (
        ("GET", path),
        ("GET", f"{path}/reasons"),
        ("GET", f"{path}/proof"),
        ("POST", f"{path}:replay"),
    ):
        await answered(client, method, asked)
    for name, value in (("subject", PERSON), ("decision_id", DECISION)):
        found = await answered(client, "GET", "/v1/explanations", params={name: value})
        assert len(found["explanations"]) == 4
    await refused(client, instance)
    await answered(client, "POST", f"/v1/subjects/{PERSON}:hold", json={"reason": "case 12"})
    assert (await client.post(f"/v1/subjects/{PERSON}:erase")).status_code == 409
    await answered(client, "POST", f"/v1/subjects/{PERSON}:release")
    largest = max(first["attributions"].values(), key=abs)
    return [PERSON, "Quendolin", DECISION, str(INCOME), str(first["output"]), str(largest)]


@pytest.fixture
async def own_redis() -> AsyncIterator[str]:
    """The URL of a Redis that can be looked into."""
    started = await start_embedded_redis()
    assert started is not None
    yield started.url
    await started.close()


# The files of SQLite are looked through in `ledger/test_erasing.py`.
@pytest.mark.parametrize("database", [pytest.param("sqlite", marks=pytest.mark.slow), "postgresql"])
async def test_nothing_of_an_erased_person_is_left(
    start: Start,
    under_load: UnderLoad,
    run_here: Callable[..., subprocess.CompletedProcess[str]],
    body: dict[str, Any],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    own_redis: str,
    database: str,
) -> None:
    url = None if database == "sqlite" else str(request.getfixturevalue("postgresql_url"))
    program = start("serve", key=SECRET, redis_url=own_redis, **({} if url is None else {"database_url": url}))
    instance = {**body["instances"][0], "applicant_income": INCOME}
    data = tmp_path / "data"
    async with program.client(SECRET) as client, under_load(program, SECRET, clients=4) as load:
        words = await asked_about(client, instance)
        output, attribution = words[-2:]
        for form in ("csv", "zip", "parquet"):
            assert words_in(await exported(client, form), words), form  # so they can be found
        assert words_in(redis_bytes(own_redis), words) == [output, attribution]

        erased = await answered(client, "POST", f"/v1/subjects/{PERSON}:erase", json={"reason": "asked for"})
        assert erased["records"] == 4
        await load.reaches(20)

        assert words_in(redis_bytes(own_redis), words) == []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while b"answerable:result:" not in redis_bytes(own_redis):  # until others' results are there again
                await load.reaches(20)
        assert words_in(redis_bytes(own_redis), words) == []
        for form in ("csv", "zip", "parquet"):
            export = await exported(client, form)
            assert load.ids[0].encode() in export
            assert words_in(export, words) == [], form
        assert words_in((program.output + program.errors).encode(), words) == []
        assert words_in(stored_bytes(url, data), words) == []
    assert set(load.statuses) == {200}
    assert program.end(signal.SIGTERM) == 0

    log = program.output + program.errors
    assert '"event":"request"' in log
    assert f"POST {EXPLAIN.replace('loan', '{model}').replace('1:', '{version}:')}" in log
    assert words_in(log.encode(), words) == []
    options = ("--data", str(data), *(() if url is None else ("--database-url", url)))
    done = await asyncio.to_thread(run_here, "ledger", "export", str(tmp_path / "all.zip"), *options)
    assert done.returncode == 0, done.stderr
    whole = unpacked((tmp_path / "all.zip").read_bytes())
    assert load.ids[0].encode() in whole
    assert words_in(whole + done.stdout.encode() + done.stderr.encode(), words) == []
    assert words_in(stored_bytes(url, data), words) == []
