"""Keys: shown once, found by their hash, ended for good."""

from __future__ import annotations

import re
import time

import pytest
from sqlalchemy import Engine

from service.ledger import SCOPES, Keys


@pytest.fixture
def keys(engine: Engine) -> Keys:
    return Keys(engine)


def test_a_key_is_found_by_its_secret_alone(keys: Keys) -> None:
    key, secret = keys.create("front", "bank", ["explain", "ledger:read"])
    assert re.fullmatch(r"ak_[A-Za-z0-9_-]{43}", secret)
    assert keys.find(secret) == key
    assert key.scopes == {"explain", "ledger:read"}
    assert abs(key.created - time.time_ns() // 1000) < 3_600_000_000
    assert keys.find(secret[:-1]) is None
    assert keys.find(key.id) is None
    assert keys.find("") is None


def test_the_secret_is_not_stored(keys: Keys, engine: Engine) -> None:
    _, secret = keys.create("front", "bank", ["explain"])
    with engine.connect() as connection:
        stored = str(connection.exec_driver_sql("SELECT * FROM keys").all())
    assert secret not in stored
    assert secret.removeprefix("ak_") not in stored


def test_a_bootstrap_key_is_added_once(keys: Keys) -> None:
    first = keys.add("ak_chosen by the operator", "bootstrap", "bank", SCOPES)
    again = keys.add("ak_chosen by the operator", "another name", "broker", ["metrics"])
    assert first == again == keys.find("ak_chosen by the operator")
    assert keys.list() == [first]
    assert first.scopes == SCOPES


def test_a_key_added_by_another_process_in_between(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    there = keys.add("secret", "bootstrap", "bank", SCOPES)
    find = keys.find
    answers = iter([None])
    monkeypatch.setattr(keys, "find", lambda secret: next(answers, there) and find(secret))
    assert keys.add("secret", "bootstrap", "bank", SCOPES) == there


def test_a_revoked_key_stays_revoked(keys: Keys) -> None:
    key, secret = keys.create("front", "bank", ["explain"])
    assert key.is_valid(key.created)
    assert keys.revoke(key.id)
    revoked = keys.find(secret)
    assert revoked is not None
    assert revoked.revoked is not None
    assert not revoked.is_valid(key.created)
    assert keys.revoke(key.id)
    assert keys.find(secret) == revoked
    assert keys.add(secret, "front", "bank", ["explain"]) == revoked
    assert not keys.revoke("absent")


def test_a_key_ends_when_it_expires(keys: Keys) -> None:
    key, secret = keys.create("front", "bank", ["explain"], expires=2_000_000_000_000_000)
    assert keys.find(secret) == key
    assert key.is_valid(1_999_999_999_999_999)
    assert not key.is_valid(2_000_000_000_000_000)


def test_keys_are_listed_from_the_oldest(keys: Keys) -> None:
    made = [keys.create(f"key {i}", "bank", ["explain"])[0] for i in range(3)]
    assert keys.list() == sorted(made, key=lambda key: (key.created, key.id))


@pytest.mark.parametrize("scopes", [["explain", "everything"], ["explain ledger:read"], [""]])
def test_an_unknown_scope(keys: Keys, scopes: list[str]) -> None:
    with pytest.raises(ValueError, match="unknown scopes"):
        keys.create("front", "bank", scopes)
    with pytest.raises(ValueError, match="unknown scopes"):
        keys.add("secret", "front", "bank", scopes)
    assert keys.list() == []


def test_an_empty_secret(keys: Keys) -> None:
    with pytest.raises(ValueError, match="empty"):
        keys.add("", "bootstrap", "bank", SCOPES)
