"""`answerable serve` and `answerable demo`: start worker processes, and import the service meanwhile."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Annotated, Literal

import typer

from service.cli.options import DatabaseUrl, DataFolder, ModelsFolder, settings_with
from service.engine.client.worker_processes import StartedWorker, count_devices, start_worker
from service.errors import SetupError
from service.logs import VARIABLE
from service.processes import tuning
from service.settings import Settings, forget_secrets, unknown_settings

commands = typer.Typer()


@commands.command("demo", help="Serve, and explain one denied application before your eyes.")
@commands.command("serve", help="Serve until Ctrl-C.")
def start(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8080")] = None,
    data: DataFolder = None,
    models: ModelsFolder = None,
    redis_url: Annotated[str | None, typer.Option(help="A Redis of your own.", show_default="a private one")] = None,
    database_url: DatabaseUrl = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.", show_default="one per device")] = None,
    ledger: Annotated[
        Literal["required", "best_effort", "off"] | None,
        typer.Option(help="Whether an answer needs its record.", show_default="required"),
    ] = None,
) -> int:
    """Serves until it is told to stop; as `demo`, it explains something as soon as it answers."""
    settings = settings_with(
        host=host,
        port=port,
        data=data,
        models=models,
        redis_url=redis_url,
        database_url=database_url,
        workers=workers,
        ledger=ledger,
    )
    is_demo = context.info_name == "demo"
    if is_demo and "logs" not in settings.model_fields_set:  # a person reads it
        settings = settings.model_copy(update={"logs": "text"})
    _prepare()
    with _started_workers(settings) as started:
        from service.cli.serve import run

        if not is_demo:
            return run(settings, started)
        from service.cli.demo import explain_one_denial

        return run(settings, started, once_ready=explain_one_denial)


def _prepare() -> None:
    """Warns of misspelt settings, and removes secrets from the environment that child processes inherit.

    Raises SetupError if a worker could not start.
    """
    for sentence in unknown_settings():
        print(sentence, file=sys.stderr)
    forget_secrets()
    if find_spec("onnxruntime") is None:
        raise SetupError("ONNX Runtime is missing: install onnxruntime, or onnxruntime-gpu on a machine with a GPU")


@contextmanager
def _started_workers(settings: Settings) -> Iterator[Sequence[StartedWorker]]:
    """Worker processes, which import while this one does; those that still run at the end are killed.

    Until the server handles signals itself, SIGTERM ends the command in good order.
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
