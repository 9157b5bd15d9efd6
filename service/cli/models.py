"""`answerable models`: the list of what is there, and the actions on it."""

from __future__ import annotations

import logging

import typer

from service.cli import baselines, models_add, models_check, models_evaluate
from service.cli.options import ModelsFolder, settings_with
from service.cli.printing import table

commands = typer.Typer(invoke_without_command=True)
commands.command("add")(models_add.add)
commands.command("check")(models_check.check)
commands.command("compare")(models_check.compare)
commands.command("evaluate")(models_evaluate.evaluate)
commands.add_typer(baselines.commands, name="baselines", help="Build baseline sets from data.")


@commands.callback()
def before_all(context: typer.Context, models: ModelsFolder = None) -> int:
    """Runs before every action; without an action, lists the models."""
    # The engine's log is for those who run a service; a command prints itself what matters.
    logging.getLogger("answerable").addHandler(logging.NullHandler())
    return list_versions(models) if context.invoked_subcommand is None else 0


@commands.command("list")
def list_versions(models: ModelsFolder = None) -> int:
    """List every version with what its check said.

    Without an action, the same happens. The exit code is 1 where a file is not what its manifest says.
    """
    from service.catalog.assessments import ASSESSMENTS, Assessments
    from service.catalog.manifest import read_manifest
    from service.catalog.version_files import read_artefact, read_baseline_rows
    from service.errors import CatalogError, SetupError
    from service.lifecycle.serving.registries.registry import Unfetched, open_registry

    settings = settings_with(models=models)
    assessments = Assessments(settings.data / ASSESSMENTS)
    faults = 0
    rows = []
    registry = open_registry(settings.models, settings.data)
    found = registry.fetch()
    if not found:
        raise SetupError(
            f"there is no model in {registry.shown}; name the folder of models with --models or "
            "ANSWERABLE_MODELS, or make one with `answerable models add`"
        )
    for folder in found:
        if isinstance(folder, Unfetched):
            faults += 1
            rows.append(("@".join(folder.names), "FAULT", str(folder.error), ""))
            continue
        try:
            manifest, key, digest = read_manifest(folder)
            read_artefact(folder, manifest.artefact)
            for baseline in manifest.baselines:
                read_baseline_rows(folder, manifest, baseline)
        except CatalogError as error:
            faults += 1
            rows.append((f"{folder.parent.name}@{folder.name}", "FAULT", str(error), ""))
            continue
        assessment = assessments.find(folder, key, digest)
        verdict = (
            "not checked"
            if assessment is None
            else "passed"
            if assessment.passed
            else f"FAILED {', '.join(assessment.failed)}"
        )
        rows.append((str(key), verdict, manifest.title, key.digest))
    headings = ("model", "check", "title, or what is wrong", "digest")
    print(table(headings, rows, f"there are no models in {registry.shown}"))
    return 1 if faults else 0
