"""What commands that ask a running service share: its address, its key, and how its refusals are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated

import typer

from service.cli.options import settings_with
from service.client import Client, ClientError, Fault, Forbidden, ModelDescription, NotFound, Refused, Unauthenticated
from service.errors import SetupError, UsageError

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}  # noqa: S104 - told apart, not listened on
"""Where a service that listens on every address is asked on this machine."""

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="The running service. Its key is read from ANSWERABLE_KEY.",
        show_default="where ANSWERABLE_HOST and ANSWERABLE_PORT say",
    ),
]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="NAME, the version that it means, or NAME@VERSION.", show_default=False)
]
AsJson = Annotated[
    bool | None,
    typer.Option(
        "--json/--text", help="What is printed.", show_default="text to a terminal, JSON to a file or a program"
    ),
]


@dataclass(frozen=True, slots=True)
class Access:
    """Where the service is, and a key of it."""

    url: str
    key: str


def access_to(server: str | None) -> Access:
    """Raises SetupError, UsageError."""
    settings = settings_with()
    host = EVERYWHERE.get(settings.host, settings.host)
    scheme = "http" if settings.tls_certificate is None else "https"
    url = server or f"{scheme}://{f'[{host}]' if ':' in host.strip('[]') and host[0] != '[' else host}:{settings.port}"
    if not url.lower().startswith(("http://", "https://")):
        raise UsageError(f"--server {url!r} is no address; it begins with http:// or https://")
    if settings.key is None:
        raise UsageError(
            "ANSWERABLE_KEY is not set, and the service answers nothing without a key; `answerable keys create` makes "
            "one"
        )
    return Access(url, settings.key)


@contextmanager
def connected(server: str | None) -> Iterator[Client]:
    """A client of the service. Its errors end the command with a sentence (SetupError)."""
    access = access_to(server)
    with telling_refusals(), Client(access.url, access.key) as client:
        yield client


@contextmanager
def telling_refusals() -> Iterator[None]:
    """Turns the client's errors into SetupError, with all that is wrong and what to do."""
    try:
        yield
    except ClientError as error:
        raise SetupError(_sentences(error)) from error


def described(client: Client, name: str) -> ModelDescription:
    """The version that `NAME` means, or that of `NAME@VERSION`. Raises UsageError where there is none."""
    model, _, version = name.partition("@")
    try:
        return client.model(model, version or None).describe()
    except NotFound as error:
        raise UsageError(f"{error}: {name}; the models are {', '.join(client.models()) or 'none'}") from error


def titles_of(client: Client, name: str, version: str) -> dict[str, str]:
    """What the features are called for people; nothing where this key, or this service, does not say."""
    with suppress(Refused):
        return client.model(name, version).describe().titles
    return {}


def _sentences(error: ClientError) -> str:
    match error:
        case Unauthenticated():
            return f"{error}; ANSWERABLE_KEY is to hold a key of this service"
        case Forbidden():
            return f"{error}; ANSWERABLE_KEY is to hold a key that may do this"
        case Refused() if any(fault.instance is not None for fault in error.faults):
            return "\n".join(map(_of_fault, error.faults))
        case _:
            return str(error)


def _of_fault(fault: Fault) -> str:
    """Rows are counted from 1, as files are read."""
    return fault.detail if fault.instance is None else f"row {fault.instance + 1}: {fault.detail}"
