"""The options that several commands share, each declared once, and the settings with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from service.settings import Settings, read_settings


def _inherit(context: typer.Context, parameter: typer.CallbackParam, value: str | None) -> str | None:
    """The option's value, or that of the same option before the action: `models --models FOLDER list`."""
    above = context.parent
    while value is None and above is not None:
        value = above.params.get(str(parameter.name))
        above = above.parent
    return value


DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data", help="The folder of the embedded stores and of the keys' files.", show_default=".answerable"
    ),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(help="The ledger's database, PostgreSQL or SQLite.", show_default="SQLite in --data"),
]
ModelsFolder = Annotated[
    str | None,
    typer.Option("--models", callback=_inherit, help="The folder of models, or an address.", show_default="models"),
]


def settings_with(**options: Any) -> Settings:
    """The settings, of which those options that are not None go before the environment and `.env`.

    Raises SetupError.
    """
    return read_settings({name: value for name, value in options.items() if value is not None})
