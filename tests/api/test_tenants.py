"""Nobody reads or changes what another tenant has, by any route: the answers are those about what does not exist."""

from __future__ import annotations

import asyncio
import io
import re
import uuid
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.ledger import SCOPES
from tests.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain
    from tests.conftest import ApiKey, MakeKey, Service

Operation = tuple[str, str]

OWNED = ("explanation", "subject", "job", "export", "baseline")
"""Parameters of paths that name what belongs to a tenant."""

OF_LOAN = {"model": "loan"}
PATH = "/v1/models/loan/baselines"

FINDING = {
    ("get", "/v1/explanations"),
    ("get", "/v1/events"),
    ("get", "/v1/jobs"),
    ("get", "/v1/exports"),
    ("post", "/v1/jobs"),
    ("post", "/v1/exports"),
    ("get", "/v1/models/{model}"),  # with the baseline sets that can be named
    ("get", "/v1/models/{model}/versions/{version}"),
    ("get", "/v1/models/{model}/baselines"),
    ("get", "/v1/models/{model}/evaluations"),
    ("post", "/v1/models/{model}/baselines"),
}
"""Operations that find what belongs to a tenant without an id."""

ANSWERING = {
    ("post", f"/v1/models/{{model}}{version}:{action}")
    for version in ("", "/versions/{version}")
    for action in ("explain", "predict")
}
"""Operations that compute something, and might remember it."""

OF_THE_OPERATOR = {
    ("post", "/v2/repository/index"),
    ("post", "/v2/repository/models/{model}/load"),
    ("post", "/v2/repository/models/{model}/unload"),
}
"""Operations on what all tenants share."""

WITHOUT_TENANT_DATA = {
    ("get", "/v1/checkpoint"),  # sizes and hashes of the whole log
    ("get", "/v1/consistency"),
    ("get", "/v1/models"),  # models are there for all tenants
    ("get", "/"),
    ("get", "/v2"),
    ("get", "/v2/health/live"),
    ("get", "/v2/health/ready"),
    ("get", "/v2/models/{model}/ready"),
    ("get", "/v2/models/{model}/versions/{version}/ready"),
    ("get", "/metrics"),
}

BODIES: dict[str, Any] = {":review": {"verdict": "accepted", "note": "seen"}, ":hold": {"reason": "a case"}}
"""By the end of a path, a body for an operation that needs one."""

LIVE = ("waiting", "running")
"""States of a job or an export that has not ended."""

DRAWN = re.compile(rb'"subject":"[0-9a-f]{32}"|"(created|tombstone)":\d+')
"""What an answer about a person has that no other has, whoever asks: the token of a new hold, time and place."""


@dataclass(frozen=True, slots=True)
class Theirs:
    """What a tenant has: ids by the parameter of a path, and all the words that would tell of it."""

    key: ApiKey
    owned: dict[str, str]
    instance: dict[str, Any]
    running: str
    person: str
    decision: str
    branch: str
    cursor: str
    token: str
    words: frozenset[str]


def is_owned(path: str) -> bool:
    return any(f"{{{name}}}" in path for name in OWNED)


def operations(service: Service) -> list[Operation]:
    """All that is described, which is all that is served; another test holds the two together."""
    return [(method, path) for path, each in service.app.openapi()["paths"].items() for method in each]


def test_every_route_is_asked_or_said_to_hold_no_tenants_data(service: Service) -> None:
    by_id = {operation for operation in operations(service) if is_owned(operation[1])}
    assert len(by_id) >= 15
    assert {name for name in OWNED if any(f"{{{name}}}" in path for _, path in by_id)} == set(OWNED)
    classes = [by_id, FINDING, ANSWERING, OF_THE_OPERATOR, WITHOUT_TENANT_DATA]
    assert set().union(*classes) == set(operations(service))
    assert sum(map(len, classes)) == len(operations(service))


async def answered(client: httpx.AsyncClient, method: str, path: str, **request: Any) -> Any:
    response = await client.request(method, path, **request)
    assert response.status_code < 300, response.text
    return response.json()


async def ended(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while "ended" not in (found := await answered(client, "GET", path)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return dict(found)


@pytest.fixture
async def first(service: Service, make_key: MakeKey, explain: Explain, fresh: dict[str, Any]) -> AsyncIterator[Theirs]:
    """A tenant with everything that one can have, and a job that goes on."""
    key, mark = make_key(tenant=f"first-{uuid.uuid4()}"), uuid.uuid4().hex
    person, decision, branch, note = f"Ada {mark}", f"d-{mark}", f"branch-{mark}", f"note {mark}"
    context = {"subject": person, "decision_id": decision, "cohort": {"branch": branch}}
    async with service.client(key) as client:
        made = [(await explain([fresh], by=client, context=context))["explanations"][0]["id"] for _ in "ab"]
        await answered(client, "GET", f"/v1/explanations/{made[0]}")
        review = {"verdict": "escalated", "note": note}
        await answered(client, "POST", f"/v1/explanations/{made[0]}:review", json=review)
        token = (await answered(client, "POST", f"/v1/subjects/{person}:hold", json={"reason": note}))["subject"]
        asked = {"model": "loan", "version": "1", "instances": [fresh], "context": context}
        job = (await answered(client, "POST", "/v1/jobs", json=asked))["id"]
        results = (await ended(client, f"/v1/jobs/{job}"))["results"]
        export = (await answered(client, "POST", "/v1/exports", json={"format": "csv"}))["id"]
        await ended(client, f"/v1/exports/{export}")
        slow = {"method": "expected_gradients", "tolerance": 1e-9, "max_evaluations": 4096}
        rows = [{**fresh, "net_worth": float(number)} for number in range(400)]
        running = (await answered(client, "POST", "/v1/jobs", json={**asked, "instances": rows, "parameters": slow}))[
            "id"
        ]
        cursor = (await answered(client, "GET", "/v1/explanations", params={"limit": 1}))["next_cursor"]
        own = f"set-{mark}@1"
        kept_set = {"name": f"set-{mark}", "rows": [fresh], "model_version": "1", "subjects": [person]}
        digest = (await answered(client, "POST", PATH, json=kept_set))["digest"]
        theirs = Theirs(
            key=key,
            owned={**OF_LOAN, "explanation": made[0], "subject": person, "job": job, "export": export, "baseline": own},
            instance=fresh,
            running=running,
            person=person,
            decision=decision,
            branch=branch,
            cursor=cursor,
            token=token,
            words=frozenset({
                mark, digest, key.id, key.tenant, key.secret, token, *made, job, running, export,
                results[0]["explanation"], str(fresh["applicant_income"]),
            }),
        )  # fmt: skip
        yield theirs
        await client.delete(f"/v1/jobs/{running}")


async def seen(client: httpx.AsyncClient, theirs: Theirs) -> list[Any]:
    """What the tenant itself sees, but for its look-ups."""
    paths = [f"/v1/explanations/{theirs.owned['explanation']}{end}" for end in ("", "/reviews")]
    paths += [f"/v1/jobs/{theirs.owned['job']}", f"/v1/exports/{theirs.owned['export']}"]
    found = [await answered(client, "GET", path) for path in paths]
    sets = (await answered(client, "GET", PATH))["baselines"]
    found.append([{**one, "age_seconds": 0} for one in sets])
    events = await answered(client, "GET", "/v1/events", params={"limit": 200})
    file = await client.get(f"/v1/exports/{theirs.owned['export']}/file")
    return [*found, [one for one in events["events"] if one["kind"] not in ("lookup", "export_download")], file.content]


def unpacked(content: bytes) -> bytes:
    """The bytes of an answer, those inside a zip too."""
    if not content.startswith(b"PK"):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return content + b"".join(archive.read(name) for name in archive.namelist())


def words_in(answer: httpx.Response, theirs: Theirs, *, but: str = "") -> list[str]:
    """What of the other tenant's is in an answer."""
    content = unpacked(answer.content) + str(answer.headers.raw).encode()
    return [word for word in theirs.words if word != but and word.encode() in content]


class Stranger:
    """A client that asks the same of what is another's, and of what is nobody's."""

    def __init__(self, client: httpx.AsyncClient, theirs: Theirs) -> None:
        self._client = client
        self._theirs = theirs

    async def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        headers = {"X-Request-Id": "the-same"}
        return await self._client.request(method, path, headers=headers, **request)

    async def same(self, method: str, path: str, body: Any, *names: dict[str, str]) -> int:
        """One answer, whichever names are filled in, and nothing of the other's in it; gives its status."""
        request = {} if body is None else {"json": body}
        answers = [await self.ask(method, path.format_map(name), **request) for name in names]
        for answer in answers:
            assert answer.status_code == answers[0].status_code, (method, path, answer.text)
            assert DRAWN.sub(b"", answer.content) == DRAWN.sub(b"", answers[0].content), (method, path)
            assert _headers(answer) == _headers(answers[0]), (method, path)
            assert words_in(answer, self._theirs) == [], (method, path)
        return answers[0].status_code


def _headers(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in ("date", "content-length")}


async def test_what_is_another_tenants_is_as_if_it_were_nobodys(
    service: Service, make_key: MakeKey, first: Theirs
) -> None:
    """By its id, over every route that takes one, with any key; and it stays as it was."""
    nobodys = {**OF_LOAN, **{name: str(uuid.uuid4()) for name in OWNED}, "subject": f"Bob {uuid.uuid4().hex}"}
    nonsense = {**OF_LOAN, **dict.fromkeys(OWNED, "nothing%00at%20all")}
    by_id = [operation for operation in operations(service) if is_owned(operation[1])]
    async with service.client(first.key) as client:
        before = await seen(client, first)
        for scopes in ((), *((scope,) for scope in sorted(SCOPES))):
            async with service.client(make_key(*scopes, tenant=f"second-{uuid.uuid4()}")) as other:
                stranger = Stranger(other, first)
                for method, path in by_id:
                    body = next((body for end, body in BODIES.items() if path.endswith(end)), None)
                    names = [first.owned, nobodys, *([] if "{subject}" in path else [nonsense])]
                    if "{job}" in path:
                        names.append({"job": first.running})
                    status = await stranger.same(method, path, body, *names)
                    # They may know a person of that name themselves, whom a hold keeps from their own erasure.
                    expected = {200, 409} if "{subject}" in path else {404}
                    assert status in (expected | {404} if not scopes else expected | {403, 404}), (method, path)
        assert await seen(client, first) == before
        assert "ended" not in await answered(client, "GET", f"/v1/jobs/{first.running}")


async def test_nothing_of_another_tenants_is_found(
    service: Service, make_key: MakeKey, first: Theirs, explain: Explain, instance: dict[str, Any]
) -> None:
    """By any search, list, job or export, or in what is said to belong to no tenant."""
    second = make_key(tenant=f"second-{uuid.uuid4()}")
    async with service.client(second) as other:
        stranger = Stranger(other, first)

        async def found(method: str, path: str, *, but: str = "", **request: Any) -> Any:
            """What is answered, in which nothing is the other tenant's."""
            answer = await stranger.ask(method, path, **request)
            assert answer.status_code < 400, answer.text
            assert words_in(answer, first, but=but) == [], (path, request)
            return answer

        for kind in (None, "lookup", "review", "hold", "key_created"):
            params: dict[str, str] = {} if kind is None else {"kind": kind}
            events = (await found("GET", "/v1/events", params=params)).json()["events"]
            assert [(one["kind"], one["about"]) for one in events] == (
                [("key_created", second.id)] if kind in (None, "key_created") else []
            )
        for path in ("/v1/jobs", "/v1/exports"):
            assert list((await found("GET", path)).json().values()) == [[]]
        assert (await found("GET", "/v1/explanations")).json() == {"explanations": [], "next_cursor": None}

        (own,) = (await explain([instance], by=other))["explanations"]
        for params in (
            {},
            {"model": "loan"},
            {"model": "loan", "version": "1"},
            {"label": "denied"},
            {"converged": "true"},
            {"from": "2020-01-01T00:00:00Z"},
            {"reviewed": "false"},
        ):
            page = (await found("GET", "/v1/explanations", params=params)).json()
            assert ([one["id"] for one in page["explanations"]], page["next_cursor"]) == ([own["id"]], None), params
        assert (await found("GET", "/v1/explanations", params={"reviewed": "true"})).json()["explanations"] == []
        for path in ("/v1/explanations", "/v1/events"):
            await found("GET", path, params={"cursor": first.cursor})
        for form in ("csv", "zip"):
            await exported(stranger, first, {"format": form}, [own["id"]])
        size = (await found("GET", "/v1/checkpoint")).json()["size"]
        signed = {"from": size, "to": size}
        for method, path in sorted(WITHOUT_TENANT_DATA):
            sizes = signed if path == "/v1/consistency" else None
            answer = await stranger.ask(method, path.format(model="loan", version="1"), params=sizes)
            assert words_in(answer, first) == [], path

        income = str(first.instance["applicant_income"])
        known = service.services.catalog.find("loan").manifest.example
        narrow = {name: value for name, value in first.instance.items() if name in known}
        for _, path in sorted(ANSWERING):
            asked = path.format(model="loan", version="1")
            row = first.instance if "{version}" in path else narrow
            reply = (await found("POST", asked, but=income, json={"instances": [row]})).json()
            assert [one["cached"] for one in reply.get("explanations", [])] in ([], [False])
        assert len((await found("GET", "/v1/explanations", but=income)).json()["explanations"]) == 3
        again = (await found("POST", "/v1/jobs", json={"model": "loan", "version": "1", "explanations": {}})).json()
        assert again["progress"]["total"] == 3
        await found("DELETE", f"/v1/jobs/{again['id']}")

        nobody = uuid.uuid4().hex
        for name, value in (
            ("subject", first.person),
            ("decision_id", first.decision),
            ("cohort.branch", first.branch),
        ):
            pair = [{"params": {name: one}} for one in (value, nobody)]
            answers = [await stranger.ask("GET", "/v1/explanations", **one) for one in pair]
            assert [one.json()["explanations"] for one in answers] == [[], []]
            assert answers[0].content == answers[1].content
            assert _headers(answers[0]) == _headers(answers[1])
        for about in (*first.owned.values(), first.key.id, first.token):
            events = [await stranger.ask("GET", "/v1/events", params={"about": one}) for one in (about, nobody)]
            assert events[0].content == events[1].content
            assert events[0].json()["events"] == []

        conditions = [{"subject": one} for one in (first.person, nobody)]
        answers = [
            await stranger.ask("POST", "/v1/jobs", json={"model": "loan", "version": "1", "explanations": one})
            for one in conditions
        ]
        assert [one.status_code for one in answers] == [422, 422]
        assert answers[0].content == answers[1].content
        for one in conditions:
            await exported(stranger, first, {"format": "csv", "explanations": one}, [])


async def exported(stranger: Stranger, theirs: Theirs, body: dict[str, Any], ids: list[str]) -> None:
    """Has an export written, which holds these explanations and nothing that is the other tenant's."""
    location = (await stranger.ask("POST", "/v1/exports", json=body)).headers["location"]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (export := await stranger.ask("GET", location)).json()["state"] in LIVE:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    file = await stranger.ask("GET", f"{location}/file")
    for answer in (export, file):
        assert answer.status_code == 200, answer.text
        assert words_in(answer, theirs) == []
    content = unpacked(file.content).decode(errors="replace")
    assert all(one in content for one in ids)
    assert export.json()["progress"]["done"] == len(ids)


EXPLAIN = "/v1/models/loan/versions/1:explain"


async def kept(client: httpx.AsyncClient, rows: list[Any], **fields: Any) -> dict[str, Any]:
    return dict(await answered(client, "POST", PATH, json={"rows": rows, "model_version": "1", **fields}))


async def sets_seen(client: httpx.AsyncClient) -> set[str]:
    """All sets that any description names."""
    listed = (await answered(client, "GET", PATH))["baselines"]
    shown = [(await answered(client, "GET", f"/v1/models/loan{end}"))["baselines"] for end in ("", "/versions/1")]
    return {f"{one['name']}@{one['version']} {one['digest']}" for one in [*listed, *shown[0], *shown[1]]}


async def test_another_tenants_baseline_set_is_as_one_that_is_not_there(
    service: Service, make_key: MakeKey, explain: Explain, fresh: dict[str, Any], instance: dict[str, Any]
) -> None:
    """Whoever can compare inputs of their own with the rows of a set finds them by halving: nobody else can name it."""
    first, second, third = (make_key(tenant=f"{one}-{uuid.uuid4()}") for one in ("first", "second", "third"))
    async with service.client(first) as owner, service.client(second) as other, service.client(third) as nobody:
        before = await sets_seen(other)
        own = await kept(owner, [fresh], name="theirs", description="whom we denied")
        explained = (await explain([instance], by=owner, baseline="theirs@1"))["explanations"][0]
        assert explained["baseline"]["digest"] == own["digest"]
        assert await sets_seen(owner) == before | {f"theirs@1 {own['digest']}"}
        assert await sets_seen(other) == before

        for income in (1500, 1530, 1590):  # whichever side of the row's
            row = {**instance, "applicant_income": income}
            answers = []
            for name in ("theirs", "theirs@1", "absent", "absent@1"):
                for method in ("integrated_gradients", "expected_gradients"):
                    body = {"instances": [row], "parameters": {"baseline": name, "method": method}}
                    for path, job in ((EXPLAIN, {}), ("/v1/jobs", {"model": "loan", "version": "1"})):
                        answer = await other.post(path, json={**body, **job}, headers={"X-Request-Id": "the-same"})
                        assert answer.status_code == 422
                        assert answer.json()["type"] == "urn:answerable:problem:unknown-baseline"
                        answers.append((name.partition("@")[2], answer.text.replace(name.partition("@")[0], "NAME")))
            assert len(set(answers)) == 2, set(answers)  # by how it was named, and by nothing else

        # Versions are counted from one, whoever else has a set of that name, and the same rows are another set.
        mine = await kept(other, [fresh], name="theirs")
        assert mine["version"] == "1"
        assert mine["digest"] != own["digest"]
        assert (await kept(other, [instance], name="theirs"))["version"] == "2"
        assert (await kept(owner, [instance], name="theirs"))["version"] == "2"
        assert await sets_seen(nobody) == before
        replayed = await answered(owner, "POST", f"/v1/explanations/{explained['id']}:replay")
        assert replayed["verdict"] == "bit_exact"


async def test_only_the_operator_keeps_sets_for_all(
    service: Service, make_key: MakeKey, client: httpx.AsyncClient, explain: Explain, instance: dict[str, Any],
    assert_problem: AssertProblem,
) -> None:  # fmt: skip
    async with service.client(make_key(tenant=f"tenant-{uuid.uuid4()}")) as tenant:
        name = f"set-{uuid.uuid4().hex}"
        body = {"name": name, "rows": [instance], "model_version": "1", "shared": True}
        assert "operator" in assert_problem(await tenant.post(PATH, json=body), 403)
        own = await kept(client, [instance], name=name)
        assert own["shared"] is False
        assert name not in str(await sets_seen(tenant))

        shared = await kept(client, [{**instance, "loan_amount": 5}], name=name, shared=True)
        assert (shared["version"], shared["shared"]) == ("2", True)
        assert f"{name}@2 {shared['digest']}" in await sets_seen(tenant)
        found = (await explain([instance], by=tenant, baseline=name))["explanations"][0]
        assert found["baseline"]["digest"] == shared["digest"]
        assert (await kept(tenant, [instance], name=name))["version"] == "3"

        assert "operator" in assert_problem(await tenant.delete(f"{PATH}/{name}@2"), 403)
        assert_problem(await tenant.delete(f"{PATH}/{name}@1"), 404)
        for version in "12":
            assert (await client.delete(f"{PATH}/{name}@{version}")).status_code == 200


async def test_what_all_tenants_share_is_the_operators(
    service: Service, make_key: MakeKey, client: httpx.AsyncClient, explain: Explain, instance: dict[str, Any],
    assert_problem: AssertProblem,
) -> None:  # fmt: skip
    """No tenant takes a model from another."""
    async with service.client(make_key(tenant=f"tenant-{uuid.uuid4()}")) as tenant:
        for _, path in sorted(OF_THE_OPERATOR):
            answer = await tenant.post(path.format(model="loan"), json={})
            assert "operator" in assert_problem(answer, 403), path
        await explain([instance], by=tenant)
    assert {one["state"] for one in await answered(client, "POST", "/v2/repository/index", json={})} == {"READY"}
