"""`answerable models baselines build`: a baseline set of a version, from a file of rows.

0: the set is kept; 1: it cannot be made of these rows; 2: what was asked cannot be done.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.access.permissions import OPERATOR_TENANT
from service.catalog.baselines import BASELINES, KeptSets, refuse_name
from service.catalog.inputs.kind import Inputs
from service.catalog.manifest import (
    Manifest,
    find_versions,
    read_manifest,
)
from service.catalog.review_rules import LABEL
from service.domain import Floats
from service.engine.client.worker_processes import worker_environment
from service.errors import AnswerableError, CatalogError, InvalidRequest
from service.lifecycle.adding.rows import Column, read_rows
from service.lifecycle.adding.sampling import medoids, random_rows
from service.settings import Settings

USUAL_SIZE = 128
HOW = {"random": random_rows, "medoids": medoids}


def add_command(actions: Any) -> None:
    """Adds the command to the actions of `answerable models`."""
    sets = actions.add_parser("baselines", help="build baseline sets from data")
    build = sets.add_subparsers(required=True, metavar="action").add_parser(
        "build", help="keep rows of a file as a new version of a baseline set"
    )
    build.set_defaults(run=_build)
    build.add_argument("version", help="NAME@VERSION of the model that the set is for")
    build.add_argument("--from", dest="rows", type=Path, required=True, help="rows: .csv, .npy, .npz, .safetensors")
    build.add_argument("--drop", action="append", default=[], metavar="COLUMN", help="of the CSV, no input; repeatable")
    build.add_argument("--set", dest="name", required=True, help="the name of the set")
    build.add_argument("--how", choices=HOW, default="random", help="random rows, or k-means medoids (%(default)s)")
    build.add_argument("--label", help="only rows for which the model predicts this label")
    build.add_argument("--size", type=int, default=USUAL_SIZE, help="rows at most (%(default)s)")
    build.add_argument(
        "--tenant", default=OPERATOR_TENANT, help="whose set it is; default: the operator's, %(default)s"
    )
    build.add_argument("--shared", action="store_true", help="it is for all tenants")
    build.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    build.add_argument("--models", type=Path, default=argparse.SUPPRESS, help="the folder of models")
    build.add_argument("--data", type=Path, default=argparse.SUPPRESS, help="the data folder, where sets are kept")


def _build(settings: Settings, options: argparse.Namespace) -> int:
    folders = {f"{one.parent.name}@{one.name}": one for one in find_versions(settings.models)}
    if options.version not in folders or options.size < 1:
        what = "--size must be at least 1" if options.version in folders else f"there is no version {options.version}"
        print(f"{what}; there are: {', '.join(folders) or 'none'}", file=sys.stderr)
        return 2
    folder = folders[options.version]
    try:
        refuse_name(options.name)
        manifest, key, _ = read_manifest(folder)
        found = rows_for(manifest, options.rows, options.drop)
        if options.label is not None:
            found = found[_are_predicted(folder, manifest, found, options.label)]
        if not len(found):
            raise CatalogError(f"no row is predicted {options.label}; name another label, or bring other rows")
        chosen = found[HOW[options.how](found, options.size, options.seed)]
        of_label = "" if options.label is None else f" of those predicted {options.label}"
        how = "k-means medoids" if options.how == "medoids" else "random rows"
        description = f"{len(chosen)} {how} of {len(found)} in {options.rows.name}{of_label}"
        sets = KeptSets(settings.data / BASELINES)
        tenant = None if options.shared else options.tenant
        kept = sets.keep(key, manifest, options.name, chosen, description, tenant=tenant)
    except (CatalogError, AnswerableError) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
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
    """For which rows [n, columns] the version predicts the label: [n]. Raises CatalogError where none is called so."""
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
