"""`answerable models baselines build`: a baseline set of a version, from a file of rows.

0: the set is kept; 1: it cannot be made of these rows; 2: what was asked cannot be done.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from service.access.permissions import OPERATOR_TENANT
from service.catalog.baselines import BASELINES, KeptSets, refuse_name
from service.catalog.inputs.kind import Inputs
from service.catalog.manifest import (
    Manifest,
    read_manifest,
)
from service.catalog.review_rules import LABEL
from service.cli.options import DataFolder, ModelsFolder, settings_with
from service.domain import Floats
from service.engine.client.worker_processes import worker_environment
from service.errors import AnswerableError, CatalogError, InvalidRequest, UsageError
from service.lifecycle.adding.rows import Column, read_rows
from service.lifecycle.adding.sampling import medoids, random_rows
from service.lifecycle.serving.registries.registry import folders_of, open_registry

USUAL_SIZE = 128
HOW = {"random": random_rows, "medoids": medoids}

commands = typer.Typer()


@commands.callback()
def before_all() -> None:
    """Does nothing; with a callback Typer keeps `build` as a command of the group though it is the only one."""


@commands.command()
def build(
    version: Annotated[str, typer.Argument(help="NAME@VERSION of the model that the set is for.")],
    rows: Annotated[
        Path, typer.Option("--from", metavar="FILE", help="Rows: .csv, .npy, .npz, .safetensors.", show_default=False)
    ],
    name: Annotated[str, typer.Option("--set", help="The name of the set.", show_default=False)],
    drop: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Of the CSV, no input; repeatable.")] = None,
    how: Annotated[Literal["random", "medoids"], typer.Option(help="Random rows, or k-means medoids.")] = "random",
    label: Annotated[str | None, typer.Option(help="Only rows for which the model predicts this label.")] = None,
    size: Annotated[int, typer.Option(min=1, help="Rows at most.")] = USUAL_SIZE,
    tenant: Annotated[str, typer.Option(help="Whose set it is, the operator's by default.")] = OPERATOR_TENANT,
    shared: Annotated[bool, typer.Option("--shared", help="It is for all tenants.")] = False,
    seed: Annotated[int, typer.Option(help="Of the choice of rows.")] = 0,
    models: ModelsFolder = None,
    data: DataFolder = None,
) -> int:
    """Keep rows of a file as a new version of a baseline set."""
    settings = settings_with(models=models, data=data)
    folders = {
        f"{folder.parent.name}@{folder.name}": folder
        for folder in folders_of(open_registry(settings.models, settings.data).fetch())
    }
    if version not in folders:
        raise UsageError(f"there is no version {version}; there are: {', '.join(folders) or 'none'}")
    folder = folders[version]
    try:
        refuse_name(name)
        manifest, key, _ = read_manifest(folder)
        candidates = rows_for(manifest, rows, drop or ())
        if label is not None:
            candidates = candidates[_are_predicted(folder, manifest, candidates, label)]
        if not len(candidates):
            raise CatalogError(f"no row is predicted {label}; name another label, or bring other rows")
        chosen = candidates[HOW[how](candidates, size, seed)]
        of_label = "" if label is None else f" of those predicted {label}"
        choice = "k-means medoids" if how == "medoids" else "random rows"
        description = f"{len(chosen)} {choice} of {len(candidates)} in {rows.name}{of_label}"
        sets = KeptSets(settings.data / BASELINES)
        kept = sets.keep(key, manifest, name, chosen, description, tenant=None if shared else tenant)
    except AnswerableError as error:
        raise CatalogError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    print(f"{kept.name}@{kept.version} of {key}: {kept.description}\nsha256:{kept.sha256}")
    print(f"A running service has it after POST /v2/repository/models/{key.name}/load, or its next start.")
    return 0


def rows_for(manifest: Manifest, path: Path, dropped: Sequence[str] = ()) -> Floats:
    """The rows of the file in the order of the model's features, each a valid instance. Raises CatalogError."""
    inputs = manifest.inputs
    checked = []
    for number, row in enumerate(read_rows(path, inputs.shape, dropped, _columns(inputs)).values):
        try:
            checked.append(inputs.of_numbers(row.tolist()).values)
        except InvalidRequest as error:
            raise CatalogError(f"row {number + 1}: {error}") from None
    return np.array(checked)


def _columns(inputs: Inputs) -> list[Column]:
    return [
        Column(
            feature.name,
            feature.title,
            {str(category): place for category, place in feature.places.items()} if feature.categories else None,
        )
        for feature in inputs.named_features
    ]


def _are_predicted(folder: Path, manifest: Manifest, rows: Floats, label: str) -> NDArray[np.bool_]:
    """Whether the version predicts the label for each of the rows [n, columns]: [n]. Raises CatalogError for an
    unknown label."""
    outputs = manifest.outputs
    try:
        outputs.check_quantity(LABEL, label)
    except ValueError as error:
        raise CatalogError(str(error)) from None
    os.environ.update(worker_environment(0))
    import torch

    from service.artefacts.loading import load_model

    model = load_model(folder, torch.device("cpu"))
    answers = model.deployed.outputs(rows.astype(model.row_type))[outputs.network_space]
    return np.array([label in outputs.labels_of(row, outputs.network_space) for row in answers.tolist()])
