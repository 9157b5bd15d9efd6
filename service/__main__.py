"""The command line: serve, demo, models, ledger, keys."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from service import __version__
from service.engine.client.worker_processes import StartedWorker, count_devices, start_worker
from service.errors import SetupError
from service.logs import VARIABLE
from service.processes import tuning
from service.settings import Settings, forget_secrets, read_settings, unknown_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser(given[0] if given else "").parse_args(given)
    asked = {name: value for name, value in vars(options).items() if name in Settings.model_fields}
    try:
        settings = read_settings({name: value for name, value in asked.items() if value is not None})
        return int(options.run(settings, options))
    except SetupError as error:
        print(error, file=sys.stderr)
        return error.code


def _parser(asked: str) -> argparse.ArgumentParser:
    """Of every command; with actions only for the one that is asked, whose imports nothing else waits for."""
    parser = argparse.ArgumentParser(
        prog="answerable", description="Predictions with explanations that can be checked."
    )
    parser.add_argument("--version", action="version", version=f"answerable {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    for name, run, about in (
        ("serve", _serve, "serve until Ctrl-C"),
        ("demo", _demo, "serve, and explain one denied application before your eyes"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(run=run)
        _add_settings(command)

    models = commands.add_parser("models", help="list the models; add, check and compare them")
    ledger = commands.add_parser("ledger", help="verify, export, erase, hold: what compliance does with the records")
    keys = commands.add_parser("keys", help="make, list, change, replace and end keys")
    if asked == "models":
        from service.cli import models as model_commands

        model_commands.add_commands(models)
    elif asked == "ledger":
        from service.cli import ledger as ledger_commands

        ledger_commands.add_commands(ledger, _forget_rows)
    elif asked == "keys":
        from service.cli import keys as key_commands

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
    _prepare()
    with _started_workers(settings) as started:
        from service.cli.serve import run

        return run(settings, started)


def _demo(settings: Settings, _options: argparse.Namespace) -> int:
    if "logs" not in settings.model_fields_set:  # people read along
        settings = settings.model_copy(update={"logs": "text"})
    _prepare()
    with _started_workers(settings) as started:
        from service.cli.demo import explain_one_denial
        from service.cli.serve import run

        return run(settings, started, once_ready=explain_one_denial)


def _prepare() -> None:
    """Names what is misspelt among the settings, and keeps the rest from the processes that are started.

    Raises SetupError where a worker could not start.
    """
    for sentence in unknown_settings():
        print(sentence, file=sys.stderr)
    forget_secrets()
    if find_spec("onnxruntime") is None:
        raise SetupError("ONNX Runtime is missing: install onnxruntime, or onnxruntime-gpu on a machine with a GPU")


@contextmanager
def _started_workers(settings: Settings) -> Iterator[Sequence[StartedWorker]]:
    """Worker processes, which import while this one does; killed at the end, if they run by then.

    SIGTERM ends the command in good order until the server sees to it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    tuning.begin_imports()
    os.environ[VARIABLE] = settings.logs  # for the processes
    started: list[StartedWorker] = []
    try:
        started.extend(map(start_worker, range(settings.workers or count_devices())))
        yield started
    finally:
        for worker in started:
            worker.end()


def _forget_rows(data: Path, tokens: Collection[str]) -> None:
    from service.catalog.set_erasure import forget_rows

    forget_rows(data, tokens)


if __name__ == "__main__":
    sys.exit(main())
