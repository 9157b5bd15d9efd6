"""`answerable models`: the list of what is there, and the actions on it."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from service.cli import baselines as set_commands
from service.cli import models_add as adding
from service.cli import models_check as checking
from service.cli.printing import table
from service.settings import Settings


def add_commands(models: argparse.ArgumentParser) -> None:
    """Adds the list, which is what happens without an action, and the actions."""
    models.set_defaults(run=_list)
    # What the engine logs is for whoever runs a service; a command says itself what matters, once.
    logging.getLogger("answerable").addHandler(logging.NullHandler())
    models.add_argument("--models", type=Path, help="the folder of models")
    actions = models.add_subparsers(metavar="action")
    listing = actions.add_parser("list", help="the same as without an action", description="list the models")
    listing.set_defaults(run=_list)
    listing.add_argument("--models", type=Path, default=argparse.SUPPRESS, help="the folder of models")
    adding.add_command(actions)
    checking.add_commands(actions)
    set_commands.add_command(actions)


def _list(settings: Settings, _options: argparse.Namespace) -> int:
    """Every version with what its check said; 1 where a file is not what its manifest says."""
    from service.catalog.assessments import ASSESSMENTS, Assessments
    from service.catalog.manifest import find_versions, read_manifest
    from service.catalog.version_files import read_baseline_rows, read_verified
    from service.errors import CatalogError, SetupError

    assessments = Assessments(settings.data / ASSESSMENTS)
    faults = 0
    rows = []
    folders = find_versions(settings.models)
    if not folders:
        raise SetupError(
            f"there is no model in {settings.models.absolute()}; name the folder of models with --models or "
            "ANSWERABLE_MODELS, or make one with `answerable models add`"
        )
    for folder in folders:
        try:
            manifest, key, digest = read_manifest(folder)
            read_verified(folder, manifest.artefact.file, manifest.artefact.sha256)
            for baseline in manifest.baselines:
                read_baseline_rows(folder, manifest, baseline)
        except CatalogError as error:
            faults += 1
            rows.append((f"{folder.parent.name}@{folder.name}", "FAULT", str(error), ""))
            continue
        found = assessments.find(folder, key, digest)
        verdict = "not checked" if found is None else "passed" if found.passed else f"FAILED {', '.join(found.failed)}"
        rows.append((str(key), verdict, manifest.title, key.digest))
    headings = ("model", "check", "title, or what is wrong", "digest")
    print(table(headings, rows, f"there are no models in {settings.models.absolute()}"))
    return 1 if faults else 0
