"""`answerable keys`: make, list, change, replace and end keys."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.access.permissions import OPEN, OPERATOR_TENANT, Policy, Quota
from service.cli.options import DatabaseUrl, DataFolder, settings_with
from service.cli.printing import local_time, table
from service.errors import NoLedger, SetupError, UsageError
from service.settings import Settings

if TYPE_CHECKING:
    from service.ledger import Key, Keys

DAY = 86_400_000_000
"""In microseconds."""
USUAL_OVERLAP_DAYS = 1.0

Requests = Annotated[
    int | None,
    typer.Option(
        help="Quota: at most so many requests in each period; every instance, row of a job and hint counts as one.",
        show_default="any number",
    ),
]
Points = Annotated[
    int | None,
    typer.Option(help="Quota: at most so many gradient points in each period.", show_default="any number"),
]
Per = Annotated[Literal["minute", "hour", "day"], typer.Option(help="The period of the quota.")]
Methods = Annotated[
    str | None,
    typer.Option(help="Policy: the methods that may be asked for, separated by commas.", show_default="all"),
]
Top = Annotated[
    int | None,
    typer.Option(help="Policy: show only so many attributions, the largest.", show_default="all"),
]
Digits = Annotated[
    int | None,
    typer.Option(
        help="Policy: round values so that the largest has so many significant digits.", show_default="not rounded"
    ),
]
HideOutputs = Annotated[bool, typer.Option("--hide-outputs", help="Policy: show labels, not the model's outputs.")]

commands = typer.Typer()


@contextmanager
def _open_or_create(settings: Settings) -> Iterator[Keys]:
    """The keys of the ledger, which is created if there is none: keys may be made before the first start."""
    from service.ledger.opening import open_keys

    engine, keys = open_keys(settings)
    try:
        yield keys
    finally:
        engine.dispose()


@contextmanager
def _open(settings: Settings, *, to_read: bool = False) -> Iterator[Keys]:
    """The keys of an existing ledger. Raises SetupError."""
    from service.ledger.keys import Keys
    from service.ledger.opening import opened_ledger

    try:
        with opened_ledger(settings, to_read=to_read) as ledger:
            yield Keys(ledger.engine)
    except NoLedger as error:  # for these commands it counts as not found: exit code 1
        raise SetupError(str(error)) from error


@commands.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    tenant: Annotated[str, typer.Option(help="Whose key, the operator's by default.")] = OPERATOR_TENANT,
    scopes: Annotated[str, typer.Option(help="Separated by commas.")] = "explain,ledger:read",
    days: Annotated[float | None, typer.Option(help="Days until it expires.", show_default="never")] = None,
    requests: Requests = None,
    points: Points = None,
    per: Per = "day",
    methods: Methods = None,
    top: Top = None,
    digits: Digits = None,
    hide_outputs: HideOutputs = False,
    data: DataFolder = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Make a key and print it once."""
    settings = settings_with(data=data, database_url=database_url)
    try:
        quota, policy = _quota(requests, points, per), _policy(methods, top, digits, hide_outputs)
        with _open_or_create(settings) as keys:
            expires = None if days is None else keys.now() + round(days * DAY)
            key, secret = keys.create(name, tenant, scopes.split(","), expires, quota, policy)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(f"id   {key.id}\nkey  {secret}")
    return 0


@commands.command("list")
def list_keys(data: DataFolder = None, database_url: DatabaseUrl = None) -> int:
    """List keys; the keys themselves are not stored."""
    with _open(settings_with(data=data, database_url=database_url), to_read=True) as keys:
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


@commands.command()
def change(
    id: Annotated[str, typer.Argument(help="Of the key, as `list` shows it.")],
    requests: Requests = None,
    points: Points = None,
    per: Per = "day",
    methods: Methods = None,
    top: Top = None,
    digits: Digits = None,
    hide_outputs: HideOutputs = False,
    data: DataFolder = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Give a key another quota and policy.

    What is not named is no longer limited.
    """
    try:
        quota, policy = _quota(requests, points, per), _policy(methods, top, digits, hide_outputs)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with _open(settings_with(data=data, database_url=database_url)) as keys:
        return _exit_code(keys.change(id, quota, policy), "there is no such key")


@commands.command()
def rotate(
    id: Annotated[str, typer.Argument(help="Of the key, as `list` shows it.")],
    overlap_days: Annotated[
        float,
        typer.Option(help="Days for which the old key goes on, beside the new one; 0 ends it at once."),
    ] = USUAL_OVERLAP_DAYS,
    data: DataFolder = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Replace a key by a new one with the same rights, quota and policy."""
    if overlap_days < 0:
        raise UsageError("an overlap is not negative")
    with _open(settings_with(data=data, database_url=database_url)) as keys:
        made = keys.rotate(id, round(overlap_days * DAY))
    if made is not None:
        key, secret = made
        print(f"id   {key.id}\nkey  {secret}\nthe old key goes on for {overlap_days:g} days at most")
    return _exit_code(made is not None, "there is no such key, or it has ended")


@commands.command()
def revoke(
    id: Annotated[str, typer.Argument(help="Of the key, as `list` shows it.")],
    data: DataFolder = None,
    database_url: DatabaseUrl = None,
) -> int:
    """End a key."""
    with _open(settings_with(data=data, database_url=database_url)) as keys:
        return _exit_code(keys.revoke(id), "there is no such key")


def _quota(requests: int | None, points: int | None, per: str) -> Quota | None:
    """Raises ValueError."""
    return None if requests is None and points is None else Quota(requests, points, per)


def _policy(methods: str | None, top: int | None, digits: int | None, hide_outputs: bool) -> Policy:
    """Raises ValueError."""
    policy = replace(OPEN, top=top, digits=digits, outputs=not hide_outputs)
    if methods is None:
        return policy
    from service.methods.registry import BY_NAME

    chosen = frozenset(methods.split(","))
    if unknown := chosen - BY_NAME.keys():
        raise ValueError(f"unknown methods: {', '.join(sorted(unknown))}; known are {', '.join(BY_NAME)}")
    return replace(policy, methods=chosen)


def _exit_code(is_done: bool, otherwise: str) -> int:
    if not is_done:
        print(otherwise, file=sys.stderr)
    return 0 if is_done else 1
