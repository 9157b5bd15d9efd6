"""The command line: serve, demo, models, ledger, keys."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from service import key_commands, model_commands
from service.ledger.commands import Opened
from service.ledger.commands import add_commands as add_ledger_commands
from service.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    given = {name: value for name, value in vars(options).items() if name in Settings.model_fields}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    return int(options.run(settings, options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="answerable", description="Predictions with explanations that can be checked."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    for name, run, about in (
        ("serve", _serve, "serve until Ctrl-C"),
        ("demo", _demo, "serve, and explain one denied application before your eyes"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(run=run)
        _add_settings(command)

    models = commands.add_parser("models", help="list the models; add, check and compare them")
    model_commands.add_commands(models)

    ledger = commands.add_parser("ledger", help="verify, export, erase, hold: what compliance does with the records")
    add_ledger_commands(ledger, _open_ledger)

    keys = commands.add_parser("keys", help="make, list, change, replace and end keys")
    key_commands.add_commands(keys)
    return parser


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", help="address to listen on (127.0.0.1)")
    command.add_argument("--port", type=int, help="port to listen on (8080)")
    command.add_argument("--data", type=Path, help="the folder of the embedded stores (.answerable)")
    command.add_argument("--models", type=Path, help="the folder of models (models)")
    command.add_argument("--redis-url", dest="redis_url", help="a Redis of your own; default: a private one")
    command.add_argument("--database-url", dest="database_url", help="PostgreSQL or SQLite; default: SQLite in --data")
    command.add_argument("--workers", type=int, help="worker processes; default: one per device")
    command.add_argument("--ledger", choices=("required", "best_effort", "off"), help="default: required")


def _serve(settings: Settings, _options: argparse.Namespace) -> int:
    from service.serving import run

    return run(settings)


def _demo(settings: Settings, _options: argparse.Namespace) -> int:
    from service.demo import explain_one_denial
    from service.serving import run

    if "logs" not in settings.model_fields_set:  # people read along
        settings = settings.model_copy(update={"logs": "text"})
    return run(settings, once_ready=explain_one_denial)


def _open_ledger(settings: Settings) -> Opened:
    from service.app import open_database, open_notary

    engine, vault = open_database(settings)
    return Opened(engine, vault, open_notary(settings, engine), settings)


if __name__ == "__main__":
    sys.exit(main())
