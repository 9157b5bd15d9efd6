"""`answerable keys`: make, list, change, replace and end keys."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from service.access.permissions import OPEN, OPERATOR_TENANT, PERIODS, Policy, Quota
from service.cli.printing import local_time, table
from service.errors import LedgerUnavailable, NoLedger
from service.settings import Settings

if TYPE_CHECKING:
    from service.ledger import Key, Keys

DAY = 86_400_000_000
"""In microseconds."""
USUAL_OVERLAP_DAYS = 1.0


def add_commands(keys: argparse.ArgumentParser) -> None:
    """Adds the actions to the command."""
    actions = keys.add_subparsers(required=True, metavar="action")

    def action(name: str, about: str, run: Callable[[Settings, argparse.Namespace], int]) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=about, description=about)
        parser.set_defaults(run=lambda settings, options: _told(run, settings, options))
        parser.add_argument("--data", type=Path, help="the folder of the embedded stores")
        parser.add_argument("--database-url", dest="database_url", help="the ledger's database")
        return parser

    create = action("create", "make a key and print it once", _create)
    create.add_argument("name", help="what the key is for")
    create.add_argument("--tenant", default=OPERATOR_TENANT, help="whose key; default: the operator's, %(default)s")
    create.add_argument("--scopes", default="explain,ledger:read", help="comma-separated; default: %(default)s")
    create.add_argument("--days", type=float, help="days until it expires; default: never")
    _add_permissions(create)
    action("list", "list keys; the keys themselves are not stored", _list)
    change = action("change", "give a key another quota and policy; what is not named is no longer limited", _change)
    change.add_argument("id")
    _add_permissions(change)
    rotate = action("rotate", "replace a key by a new one with the same rights, quota and policy", _rotate)
    rotate.add_argument("id")
    rotate.add_argument(
        "--overlap-days",
        type=float,
        default=USUAL_OVERLAP_DAYS,
        help="days for which the old key goes on, beside the new one; default: %(default)s; 0 ends it at once",
    )
    revoke = action("revoke", "end a key", _revoke)
    revoke.add_argument("id")


def _told(run: Callable[[Settings, argparse.Namespace], int], settings: Settings, options: argparse.Namespace) -> int:
    """Runs a command; where there is no ledger, or none that it can use, it says so."""
    from service.ledger.sealing import WrongMasterKey
    from service.ledger.secret_files import SecretFileError

    try:
        return run(settings, options)
    except (NoLedger, LedgerUnavailable, WrongMasterKey, SecretFileError) as error:
        print(error, file=sys.stderr)
        return 1


def _add_permissions(action: argparse.ArgumentParser) -> None:
    quota = action.add_argument_group("quota, none by default")
    quota.add_argument(
        "--requests",
        type=int,
        help="at most so many requests in each period; every instance, row of a job and hint counts as one",
    )
    quota.add_argument("--points", type=int, help="at most so many gradient points in each period")
    quota.add_argument("--per", choices=tuple(PERIODS), default="day", help="the period; default: %(default)s")
    policy = action.add_argument_group("policy: how much of an explanation is disclosed, all of it by default")
    policy.add_argument("--methods", help="the methods that may be asked for, comma-separated")
    policy.add_argument("--top", type=int, help="show only so many attributions, the largest")
    policy.add_argument("--digits", type=int, help="round values so that the largest has so many significant digits")
    policy.add_argument("--hide-outputs", action="store_true", help="show labels, not the model's outputs")


def _quota(options: argparse.Namespace) -> Quota | None:
    if options.requests is None and options.points is None:
        return None
    return Quota(options.requests, options.points, options.per)


def _policy(options: argparse.Namespace) -> Policy:
    """Raises ValueError."""
    policy = replace(OPEN, top=options.top, digits=options.digits, outputs=not options.hide_outputs)
    if options.methods is None:
        return policy
    from service.methods.registry import BY_NAME

    methods = frozenset(options.methods.split(","))
    if unknown := methods - BY_NAME.keys():
        raise ValueError(f"unknown methods: {', '.join(sorted(unknown))}; known are {', '.join(BY_NAME)}")
    return replace(policy, methods=methods)


@contextmanager
def _made(settings: Settings) -> Iterator[Keys]:
    """The keys, in a ledger that is made where there is none: keys may be made before the first start."""
    from service.ledger.opening import open_keys

    engine, keys = open_keys(settings)
    try:
        yield keys
    finally:
        engine.dispose()


@contextmanager
def _opened(settings: Settings, *, to_read: bool = False) -> Iterator[Keys]:
    """The keys of the ledger that is there."""
    from service.ledger.keys import Keys
    from service.ledger.opening import opened_ledger

    with opened_ledger(settings, to_read=to_read) as ledger:
        yield Keys(ledger.engine)


def _create(settings: Settings, options: argparse.Namespace) -> int:
    try:
        quota, policy = _quota(options), _policy(options)
        with _made(settings) as keys:
            expires = None if options.days is None else keys.now() + round(options.days * DAY)
            key, secret = keys.create(options.name, options.tenant, options.scopes.split(","), expires, quota, policy)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"id   {key.id}\nkey  {secret}")
    return 0


def _list(settings: Settings, _options: argparse.Namespace) -> int:
    with _opened(settings, to_read=True) as keys:
        now = keys.now()
        rows = [
            (
                key.id,
                key.tenant,
                key.name,
                ",".join(sorted(key.scopes)),
                _state(key, now),
                _quota_of(key),
                _policy_of(key),
            )
            for key in keys.list()
        ]
    print(table(("id", "tenant", "name", "scopes", "state", "quota", "policy"), rows, "there are no keys"))
    return 0


def _state(key: Key, now: int) -> str:
    if key.revoked is not None:
        return "revoked"
    if key.expires is None:
        return "valid"
    word = "valid until" if key.is_valid(now) else "expired"
    return f"{word} {local_time(key.expires)}"


def _quota_of(key: Key) -> str:
    if key.quota is None:
        return "-"
    limits = {"requests": key.quota.requests, "points": key.quota.points}
    named = " and ".join(f"{limit} {name}" for name, limit in limits.items() if limit is not None)
    return f"{named} a {key.quota.period}"


def _policy_of(key: Key) -> str:
    if key.policy == OPEN:
        return "-"
    return " ".join(f"{name}={_listed(value)}" for name, value in key.policy.written().items())


def _listed(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value).lower()


def _change(settings: Settings, options: argparse.Namespace) -> int:
    try:
        quota, policy = _quota(options), _policy(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    with _opened(settings) as keys:
        return _done(keys.change(options.id, quota, policy), "there is no such key")


def _rotate(settings: Settings, options: argparse.Namespace) -> int:
    if options.overlap_days < 0:
        print("an overlap is not negative", file=sys.stderr)
        return 2
    with _opened(settings) as keys:
        made = keys.rotate(options.id, round(options.overlap_days * DAY))
    if made is not None:
        key, secret = made
        print(f"id   {key.id}\nkey  {secret}\nthe old key goes on for {options.overlap_days:g} days at most")
    return _done(made is not None, "there is no such key, or it has ended")


def _revoke(settings: Settings, options: argparse.Namespace) -> int:
    with _opened(settings) as keys:
        return _done(keys.revoke(options.id), "there is no such key")


def _done(is_done: bool, otherwise: str) -> int:
    if not is_done:
        print(otherwise, file=sys.stderr)
    return 0 if is_done else 1
