"""The command line: one Typer application, to which each group of commands is mounted when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer
from typer.main import get_command

from service import __version__
from service.cli import start
from service.errors import AnswerableError, CatalogError, InvalidRequest, SetupError

PROGRAM = "answerable"
GROUPS = {
    "models": "List the models; add, check and compare them.",
    "ledger": "Verify, export, erase and hold records, for compliance.",
    "keys": "Make, list, change, replace and end keys.",
}
"""Groups of commands, each in the module of `service.cli` with its name."""
ASKING = {
    "explain": "Explain the instances of a file by a running service.",
    "show": "Show a stored explanation and the proof of its record.",
    "bench": "Measure a running service under load.",
}
"""Commands that ask a running service, each in the module of `service.cli` with its name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code, 2 for wrong usage. Every error is printed as one sentence."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = get_command(_application(words)).main(words, PROGRAM, standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = PROGRAM if context is None else context.command_path
        return _end(f"{error.format_message().rstrip('.')} (see `{command} --help`)", error.exit_code)
    except typer.Abort:  # its input ended at a question
        return 1
    except SetupError as error:
        return _end(error, error.code)
    except InvalidRequest as error:
        return _end(error, 2)
    except (AnswerableError, CatalogError) as error:
        return _end(error, 1)
    return int(code or 0)


def _end(sentence: object, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code


def _application(words: Sequence[str]) -> typer.Typer:
    """All commands. Only the one that is called gets its actions, so that no other command waits for its imports."""
    application = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    application.callback(help="Predictions with explanations that can be checked.")(_before_all)
    application.add_typer(start.commands)
    called = next((word for word in words if not word.startswith("-")), "")
    for name, about in ASKING.items():
        application.add_typer(import_module(f"service.cli.{name}").commands if name == called else _listed(name, about))
    for name, about in GROUPS.items():
        group = import_module(f"service.cli.{name}").commands if name == called else typer.Typer()
        application.add_typer(group, name=name, help=about)
    return application


def _listed(name: str, about: str) -> typer.Typer:
    """In the place of a command that is not called, one that does nothing: it is only listed."""
    commands = typer.Typer()
    commands.command(name, help=about)(lambda: None)
    return commands


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


def _before_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Runs before every command."""


if __name__ == "__main__":
    sys.exit(main())
