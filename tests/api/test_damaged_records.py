"""A record that was changed and cannot be read stands in nobody's way: pages, tables and reasons go on without it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from service.access.permissions import Policy
from service.background.export_tables import COLUMNS, table_row, write_csv, write_parquet
from service.ledger.tables import explanations, subjects
from tests.api.tampering import Change, changed_record, tampered

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Explain
    from tests.conftest import MakeKey, Service

REASON = {"feature": "income", "code": "R1", "text": "", "contribution": 0.1}
UNREADABLE = {
    "a target": tampered("target", 5),
    "a model": tampered("model", "loan"),
    "reasons": tampered("reasons", 5),
}
FOR_NO_TABLE = {"an output": tampered("output", "x"), "a code": tampered("reasons", [REASON | {"code": 5}])}


@pytest.mark.parametrize("name", UNREADABLE | FOR_NO_TABLE)
async def test_a_damaged_record_is_told_and_the_others_are_shown(
    service: Service, make_key: MakeKey, explain: Explain, instance: dict[str, Any], name: str, tmp_path: Path
) -> None:
    change: Change = (UNREADABLE | FOR_NO_TABLE)[name]
    tenant = f"damaged-{uuid.uuid4()}"
    async with service.client(make_key(tenant=tenant)) as bank:
        ids = [(await explain([instance], by=bank))["explanations"][0]["id"] for _ in range(3)]
        places = {one: (await bank.get(f"/v1/explanations/{one}")).json()["ledger"]["sequence"] for one in ids}
        changed_record(service, ids[1], change, tenant)

        first = (await bank.get("/v1/explanations", params={"limit": 2})).json()
        rest = (await bank.get("/v1/explanations", params={"cursor": first["next_cursor"]})).json()
        shown = (await bank.get(f"/v1/explanations/{ids[1]}")).json()
    found = [*first["explanations"], *rest["explanations"]]
    assert [one["id"] for one in found] == ids[::-1]
    assert [one["ledger"]["sequence"] for one in found] == [places[one] for one in ids[::-1]]
    if name in UNREADABLE:
        assert shown == found[1] == {"id": ids[1], "ledger": shown["ledger"], "damaged": True}
    else:  # shown as it is
        assert shown == found[1]
        assert "damaged" not in shown
    assert not any("damaged" in one for one in (found[0], found[2]))

    ledger = service.with_ledger.ledger
    stored = [service.call(ledger.get(tenant, one)) for one in ids]
    rows = [table_row(one) for one in stored if one is not None]
    assert [(row["id"], row["damaged"]) for row in rows] == [(ids[0], False), (ids[1], True), (ids[2], False)]
    assert rows[1].keys() == COLUMNS.keys()
    assert {name for name, value in rows[1].items() if value is not None} == {
        "sequence", "id", "created", "model", "version", "method", "label", "flags", "cohort", "erased", "damaged"
    }  # fmt: skip
    for write in (write_csv, write_parquet):
        with (tmp_path / "table").open("wb") as file:
            assert write(file, rows) == 3


@pytest.mark.parametrize("what", ["part", "key"])
async def test_a_sealed_part_that_cannot_be_opened_hides_no_other(
    service: Service, make_key: MakeKey, explain: Explain, instance: dict[str, Any], what: str
) -> None:
    tenant = f"sealed-{uuid.uuid4()}"
    async with service.client(make_key(tenant=tenant)) as bank:
        people = [{"subject": name} for name in ("Ada", "Bo", "Cy")]
        ids = [(await explain([instance], by=bank, context=who))["explanations"][0]["id"] for who in people]
        with service.database.begin() as connection:
            at = connection.execute(select(explanations).where(explanations.c.id == ids[1])).one()
            if what == "part":
                is_it = explanations.c.id == ids[1]
                connection.execute(update(explanations).where(is_it).values(personal=at.personal[:-1] + b"?"))
            else:
                is_theirs = subjects.c.token == at.subject
                connection.execute(update(subjects).where(is_theirs).values(key=b"?" * 60))
        found = (await bank.get("/v1/explanations")).json()["explanations"]
        shown = (await bank.get(f"/v1/explanations/{ids[1]}")).json()
        replayed = (await bank.post(f"/v1/explanations/{ids[1]}:replay")).json()
        verified = (await bank.post(f"/v1/explanations/{ids[1]}:verify")).json()
    assert [one["id"] for one in found] == ids[::-1]
    assert shown == found[1] == {"id": ids[1], "ledger": shown["ledger"], "damaged": True}
    assert not any("damaged" in one for one in (found[0], found[2]))
    assert (replayed["verdict"], replayed["fields"]) == ("differs", ["record"])
    assert not verified["valid"]
    stored = service.call(service.with_ledger.ledger.get(tenant, ids[1]))
    assert stored is not None
    assert table_row(stored)["damaged"]


async def test_a_key_with_a_policy_is_told_no_more(
    service: Service, make_key: MakeKey, explain: Explain, instance: dict[str, Any]
) -> None:
    """What it is shown is rounded, which what is no number cannot be."""
    tenant = f"damaged-{uuid.uuid4()}"
    async with service.client(make_key(tenant=tenant, policy=Policy(digits=2))) as narrow:
        (explanation,) = (await explain([instance], by=narrow))["explanations"]
        changed_record(service, explanation["id"], tampered("output", "x"), tenant)
        (found,) = (await narrow.get("/v1/explanations")).json()["explanations"]
    assert found.keys() == {"id", "ledger", "damaged"}


@pytest.mark.parametrize(
    "change",
    [tampered("model", None), tampered("parameters", None), tampered("parameters.options", 5),
     tampered("reasons", [REASON | {"feature": "no feature"}])],
)  # fmt: skip
async def test_no_hint_is_found_for_a_record_that_was_changed(
    service: Service, explain: Explain, instance: dict[str, Any], change: Change
) -> None:
    (explanation,) = (await explain([instance], target="denied"))["explanations"]
    changed_record(service, explanation["id"], change)
    stored = service.call(service.with_ledger.ledger.get("default", explanation["id"]))
    assert stored is not None
    hint = service.call(service.services.counterfactuals.find(stored, 4))
    assert (hint.found, hint.why) == (False, "the record of the explanation is not what was written")
