"""Keys: shown once, found by their hash, ended for good."""

from __future__ import annotations

import hashlib
import re
import time

import pytest
from sqlalchemy import Engine, select

from service.access.permissions import Policy, Quota
from service.app import bootstrap_key
from service.ledger import SCOPES, Key, Keys
from service.ledger.events import stored_event
from service.ledger.tables import events, log
from service.ledger.tables import keys as stored_keys
from service.settings import Settings


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


FIRST, SECOND = "the first of the operator's", "the second of the operator's"
FIRST_METRICS, SECOND_METRICS = "the first for the metrics", "the second for the metrics"


def test_keys_that_were_configured_before_are_named_at_the_start(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    def start(key: str, metrics_key: str) -> list[str]:
        caplog.clear()
        assert bootstrap_key(Settings(key=key, metrics_key=metrics_key), keys) == key
        return [record.getMessage() for record in caplog.records]

    keys.create("front", "bank", SCOPES)
    assert start(FIRST, FIRST_METRICS) == []
    assert start(FIRST, FIRST_METRICS) == []
    old = {secret: keys.find(secret) for secret in (FIRST, FIRST_METRICS)}
    for secret, told in zip((FIRST_METRICS, FIRST), start(SECOND, SECOND_METRICS), strict=True):
        key = old[secret]
        assert key is not None
        assert told.endswith(f"answerable keys revoke {key.id}")
        keys.revoke(key.id)
    assert start(SECOND, SECOND_METRICS) == []


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


QUOTA = Quota(1000, None, "hour")
POLICY = Policy(frozenset({"saliency"}), top=3, digits=2, outputs=False)


def told(engine: Engine, key: Key) -> list[tuple[str, dict[str, object]]]:
    """The kinds and details of the events about a key, the oldest first."""
    query = select(events, log.c.record).join_from(events, log, log.c.seq == events.c.seq)
    with engine.connect() as connection:
        rows = connection.execute(query.where(events.c.about == key.id).order_by(events.c.seq)).all()
    found = [stored_event(row) for row in rows]
    assert all((event.tenant, event.key_id) == (key.tenant, "operator") for event in found)
    return [(event.kind, dict(event.details)) for event in found]


def test_quota_and_policy_are_kept(keys: Keys) -> None:
    key, secret = keys.create("front", "bank", ["explain"], quota=QUOTA, policy=POLICY)
    assert (key.quota, key.policy) == (QUOTA, POLICY)
    assert keys.find(secret) == key


def test_a_key_that_replaces_another_has_its_rights_and_its_account(keys: Keys, engine: Engine) -> None:
    first, first_secret = keys.create("front", "bank", ["explain"], 2 * 10**15, QUOTA, POLICY)
    rotated = keys.rotate(first.id, 10**6)
    assert rotated is not None
    second, second_secret = rotated
    rotated = keys.rotate(second.id, 0)
    assert rotated is not None
    third, third_secret = rotated

    assert len({first_secret, second_secret, third_secret}) == 3
    for key, secret in ((second, second_secret), (third, third_secret)):
        same = (key.tenant, key.name, key.scopes, key.expires, key.account, key.quota, key.policy)
        assert same == (first.tenant, first.name, first.scopes, first.expires, first.id, QUOTA, POLICY)
        assert keys.find(secret) is not None
    old = keys.find(first_secret)
    assert old is not None
    assert old.expires == second.created + 10**6  # both work meanwhile
    assert old.is_valid(second.created)
    assert not old.is_valid(second.created + 10**6)
    replaced = keys.find(second_secret)
    assert replaced is not None
    assert not replaced.is_valid(third.created)  # without an overlap
    assert [kind for kind, _ in told(engine, second)] == ["key_rotated"]
    assert told(engine, second)[0][1]["replaces"] == first.id


def test_a_key_that_has_ended_is_not_replaced(keys: Keys) -> None:
    expired, _ = keys.create("front", "bank", ["explain"], expires=1)
    revoked, _ = keys.create("front", "bank", ["explain"])
    keys.revoke(revoked.id)
    assert keys.rotate(expired.id, 0) is keys.rotate(revoked.id, 0) is keys.rotate("absent", 0) is None
    assert len(keys.list()) == 2


def test_an_overlap_does_not_lengthen_a_life(keys: Keys) -> None:
    key, secret = keys.create("front", "bank", ["explain"], expires=2 * 10**15)
    keys.rotate(key.id, 10**18)
    old = keys.find(secret)
    assert old is not None
    assert old.expires == 2 * 10**15


def test_every_change_of_a_key_is_an_event(keys: Keys, engine: Engine) -> None:
    key, secret = keys.create("front", "bank", ["explain", "metrics"], quota=QUOTA)
    assert keys.change(key.id, None, POLICY)
    assert keys.revoke(key.id)
    assert keys.revoke(key.id)  # which changes nothing any more
    assert not keys.change("absent", None, POLICY)

    policy = {"methods": ["saliency"], "top": 3, "digits": 2, "outputs": False}
    quota = {"requests": 1000, "period": "hour"}
    revoked = keys.find(secret)
    assert revoked is not None
    made: dict[str, object] = {
        "name": "front",
        "scopes": ["explain", "metrics"],
        "expires": None,
        "quota": quota,
        "policy": {},
    }
    made |= {"created": key.created, "account": key.id, "hash": hashlib.sha256(secret.encode()).hexdigest()}
    assert told(engine, key) == [
        ("key_created", made),
        ("key_changed", {"before": {"quota": quota, "policy": {}}, "quota": {}, "policy": policy}),
        ("key_revoked", {"name": "front", "revoked": revoked.revoked}),
    ]
    found = keys.find(secret)
    assert found is not None
    assert (found.quota, found.policy) == (None, POLICY)


def test_the_event_of_a_chosen_key_does_not_help_to_guess_it(keys: Keys, engine: Engine) -> None:
    key = keys.add("chosen", "bootstrap", "bank", SCOPES)
    ((kind, details),) = told(engine, key)
    assert (kind, details["account"]) == ("key_created", key.id)
    digest = hashlib.sha256(b"chosen").hexdigest()
    assert digest not in str(details)
    with engine.connect() as connection:
        salt = connection.execute(select(stored_keys.c.salt)).scalar_one()
    assert salt not in str(details)
    assert details["commitment"] == hashlib.sha256(f"{salt}{digest}".encode()).hexdigest()


def test_a_change_and_its_event_are_written_both_or_neither(
    keys: Keys, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = keys.create("front", "bank", ["explain"])
    there = keys.list()

    def fail(*_arguments: object, **_named: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("service.ledger.keys.update", fail)
        for change in (
            lambda: keys.rotate(key.id, 0),
            lambda: keys.change(key.id, QUOTA, POLICY),
            lambda: keys.revoke(key.id),
        ):
            with pytest.raises(RuntimeError):
                change()
    assert keys.list() == there
    assert [kind for kind, _ in told(engine, key)] == ["key_created"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Quota(0, None, "day"), "at least 1"),
        (lambda: Quota(1, None, "week"), "minute, hour, day"),
        (lambda: Policy(methods=frozenset()), "one method"),
        (lambda: Policy(top=0), "at least 1"),
        (lambda: Policy(digits=16), "from 1 to 15"),
    ],
)
def test_quotas_and_policies_that_make_no_sense(make: object, sentence: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=sentence):
        make()
