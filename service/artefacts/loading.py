"""Loading a model version in a worker: the deployed artefact, its differentiable twin, its baseline sets.

Predictions come from the artefact, gradients from the twin; the two are compared before anything is answered. How both
are read from a file depends on its format.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from service.artefacts.deployed import DeployedArtefact, Opened, in_every_space
from service.artefacts.onnx.onnx_format import open_onnx
from service.artefacts.onnx.twins import check_parity
from service.artefacts.safetensors_format import open_safetensors
from service.artefacts.shared_weights import share_weights
from service.artefacts.sizes import layer_sizes, set_row_type
from service.catalog.formats import Format
from service.catalog.inputs.encodings import Encoding
from service.catalog.inputs.kind import Inputs
from service.catalog.manifest import BaselineSet, Manifest, read_manifest
from service.catalog.outputs.kind import OutputKind
from service.catalog.version_files import read_artefact, read_baseline_rows
from service.domain import SINGLE, Floats, ModelKey, OutputSpace, RowType
from service.errors import CatalogError

LOG = logging.getLogger("answerable.worker")
Spaces = Mapping[OutputSpace, NDArray[np.floating]]
"""By output space, outputs [n, outputs]."""
Open = Callable[[Mapping[str, bytes], Manifest, torch.device], Opened]
"""From the artefact's files, whose digests are verified, to the artefact and its twin."""
PARITY_ROWS = 256
PARITY_VALUES = 2**26
"""The most values in all tensors of the twin for the random rows, beyond `MIN_PARITY_ROWS`: a large network would take
minutes for more."""
MIN_PARITY_ROWS = 16
CUT_PARITY_ROWS = 4
"""Of each length that rows are cut to: its weights are those that were compared on whole rows."""
VALUES_AT_ONCE = 2**24
EVALUATED_ROWS = 4
ROWS_AT_ONCE = 32


def _open_pt2(content: bytes, manifest: Manifest, device: torch.device) -> Opened:
    """Only here, because torch.export imports torch's compiler: 2.5 of the 7 seconds that a worker's imports took."""
    from service.artefacts.pt2_format import open_pt2

    return open_pt2(content, manifest, device)


def _open_transformers(contents: Mapping[str, bytes], manifest: Manifest, device: torch.device) -> Opened:
    """Only here, because that package is not installed everywhere, and takes seconds to import."""
    from service.artefacts.huggingface.transformers_format import open_transformers

    return open_transformers(contents, manifest, device)


def _one_file(open_file: Callable[[bytes, Manifest, torch.device], Opened]) -> Open:
    return lambda contents, manifest, device: open_file(contents[manifest.artefact.file], manifest, device)


OPEN: Mapping[Format, Open] = {
    "onnx": open_onnx,
    "pt2": _one_file(_open_pt2),
    "safetensors": _one_file(open_safetensors),
    "transformers": _open_transformers,
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model version that is ready to be put on a device.

    `baselines` maps the digest of a set to its rows, flat. `encoding` maps rows to what the twin takes, where
    that differs; `forwards` computes outputs for it. All rows are of the `row_type`. `cut` is the same for rows that
    are cut to fewer places, ascending; the manifest of each has its `inputs`.
    The artefact of a model that takes rows `alone` runs one at a time.
    """

    key: ModelKey
    manifest: Manifest
    deployed: DeployedArtefact
    forwards: DeployedArtefact
    twin: fx.GraphModule
    encoding: Encoding | None
    baselines: Mapping[str, NDArray[np.floating]]
    parity: float
    row_type: RowType = SINGLE
    cut: Sequence[LoadedModel] = ()
    alone: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input of the twin."""
        return self.manifest.inputs.shape if self.encoding is None else self.encoding.shape

    def seen(self, rows: Floats) -> Floats:
        """What the twin takes, flat, where the artefact takes `rows` [n, columns]."""
        return rows if self.encoding is None else self.encoding(rows)

    @property
    def fixed(self) -> NDArray[np.bool_] | None:
        """Which of the twin's inputs, flat, are not explained and stay as they are; None: none of them."""
        return None if self.encoding is None else self.encoding.fixed

    @property
    def columns(self) -> tuple[int, ...]:
        """For each of the twin's inputs, the feature or position that it is part of; empty where each is its own."""
        return self.manifest.inputs.components_of_columns(self.encoding)

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        """The range of each of the twin's inputs, flat."""
        if self.encoding is not None:
            return self.encoding.bounds
        low, high = self.manifest.inputs.bounds
        return np.array(low), np.array(high)


def baseline_digest(baseline: BaselineSet) -> str:
    """The digest by which a plan names a baseline set."""
    return "sha256:" + baseline.sha256


def load_model(folder: Path, device: torch.device) -> LoadedModel:
    """The model version in `folder`, its twin on `device`.

    Raises CatalogError when a digest is wrong, the artefact cannot be opened or has no twin, or the two disagree.
    """
    manifest, key, _ = read_manifest(folder)
    opened = OPEN[manifest.artefact.format](read_artefact(folder, manifest.artefact), manifest, device)
    baselines = {
        baseline_digest(baseline): read_baseline_rows(folder, manifest, baseline, opened.row_type)
        for baseline in manifest.baselines
    }
    set_row_type(opened.twin, opened.row_type)
    _check_imputation(manifest, opened)
    manifest.inputs.check_files(folder)
    loaded = LoadedModel(
        key,
        manifest,
        opened.deployed,
        opened.forwards,
        opened.twin,
        opened.encoding,
        baselines,
        parity=0.0,
        row_type=opened.row_type,
        alone=opened.alone,
    )
    _check_evaluation(loaded)
    loaded = replace(loaded, parity=_parity(loaded, opened, device))
    return loaded if opened.cut_to is None else replace(loaded, cut=[*_cut(loaded, opened.cut_to, device)])


def _cut(whole: LoadedModel, cut_to: Callable[[Inputs], Opened], device: torch.device) -> Iterator[LoadedModel]:
    """The model for rows that are cut to fewer places; lengths that the artefact does not take are left out, and those
    at which it has other answers than for the same rows with their padding."""
    for inputs in whole.manifest.inputs.cut:
        own = whole.manifest.model_copy(update={"inputs": inputs})
        try:
            cut = cut_to(inputs)
            set_row_type(cut.twin, whole.row_type)
            share_weights(cut.twin, whole.twin)
            loaded = replace(
                whole,
                manifest=own,
                deployed=cut.deployed,
                forwards=cut.forwards,
                twin=cut.twin,
                encoding=cut.encoding,
            )
            _check_cut(loaded, whole)
            yield replace(loaded, parity=_parity(loaded, cut, device, CUT_PARITY_ROWS))
        except CatalogError:
            LOG.info("%s is not computed for rows cut to %s", whole.key, inputs.shape, exc_info=True)


def _check_cut(cut: LoadedModel, whole: LoadedModel) -> None:
    """Raises CatalogError where rows have other answers once their padding is cut off."""
    rows = cut.manifest.inputs.random_rows(EVALUATED_ROWS, cut.row_type)
    padded = whole.manifest.inputs.padded(rows)
    answers, expected = cut.deployed.outputs(rows), whole.deployed.outputs(padded)
    for space in expected:
        _compared(answers, expected, whole.manifest.outputs, space, whole.manifest.parity)


def _check_evaluation(model: LoadedModel) -> None:
    """Raises CatalogError where the artefact's outputs are random, or depend on the other rows, as in training mode."""
    rows, limit = model.manifest.inputs.random_rows(EVALUATED_ROWS, model.row_type), model.manifest.parity
    first, again, alone = (model.deployed.outputs(batch) for batch in (rows, rows, rows[:1]))
    scale = {space: model.manifest.outputs.parity_scale(values) for space, values in first.items()}
    if not all(
        np.allclose(first[space][:1] / scale[space], other[space][:1] / scale[space], limit, limit, equal_nan=True)
        for space in first
        for other in (again, alone)
    ):
        raise CatalogError("the same row has different answers: export the model in evaluation mode")


def _check_imputation(manifest: Manifest, opened: Opened) -> None:
    """Checks the manifest's `missing` values: the artefact must answer NaN in a feature as it answers that value."""
    names = [*manifest.inputs.imputed]
    if not names:
        return
    filled = np.tile(manifest.inputs.random_rows(1, opened.row_type), (len(names), 1))
    missing = filled.copy()
    for row, (name, value) in enumerate(manifest.inputs.imputed.items()):
        at = manifest.inputs.names.index(name)
        filled[row, at], missing[row, at] = value, np.nan
    for space, expected in opened.deployed.outputs(filled).items():
        differ = np.flatnonzero((opened.deployed.outputs(missing)[space] != expected).any(axis=1))
        if len(differ):
            raise CatalogError(f"the artefact does not replace a missing {names[differ[0]]} by the manifest's value")


def _parity(model: LoadedModel, opened: Opened, device: torch.device, most: int = PARITY_ROWS) -> float:
    """Compares twin and artefact on the baselines and on random rows within the features' ranges.

    Raises CatalogError over the manifest's limit, naming the operator that differs most.
    """
    manifest = model.manifest
    size = sum(layer_sizes(model.twin, model.shape))
    count = min(most, max(MIN_PARITY_ROWS, PARITY_VALUES // size))
    together = min(ROWS_AT_ONCE, max(1, VALUES_AT_ONCE // size))
    random = manifest.inputs.random_rows(count, model.row_type)
    rows = np.concatenate([*(known[:count] for known in model.baselines.values()), random])
    parts = [rows[at : at + together] for at in range(0, len(rows), together)]
    answers = [model.deployed.outputs(part) for part in parts]
    deployed = {space: np.concatenate([answer[space] for answer in answers]) for space in answers[0]}
    outputs = manifest.outputs
    own = deployed[outputs.network_space]
    if own.shape != (len(rows), outputs.width):
        raise CatalogError(
            f"the artefact answers {list(own.shape)[1:]} {outputs.network_noun} for {outputs.width} "
            f"{outputs.noun}{'s' * (outputs.width > 1)}"
        )
    if not np.isfinite(own).all():
        raise CatalogError(
            "the artefact answers what is no finite number for rows within the manifest's ranges; are they those of "
            "what it was trained on, and are its weights whole?"
        )
    with torch.no_grad():
        seen = (torch.from_numpy(model.seen(part).astype(model.row_type).reshape(-1, *model.shape)) for part in parts)
        outputs_of_twin = in_every_space(
            torch.cat([model.twin(part.to(device)).cpu() for part in seen]).double(), outputs
        )
    try:
        parity = _compared(outputs_of_twin, deployed, outputs, outputs.network_space, manifest.parity)
    except CatalogError as error:
        raise CatalogError(f"{error}{_suspect(opened, parts[-1])}") from None
    others = [space for space in deployed if space != outputs.network_space]
    return max([parity, *(_compared(outputs_of_twin, deployed, outputs, space, manifest.parity) for space in others)])


def _compared(twin: Spaces, deployed: Spaces, outputs: OutputKind, space: OutputSpace, limit: float) -> float:
    """The largest relative difference in one output space. Raises CatalogError over the limit."""
    scale = outputs.parity_scale(deployed[space])
    of_twin, of_artefact = (torch.from_numpy(values[space] / scale) for values in (twin, deployed))
    return check_parity(of_twin.double(), of_artefact.double(), limit)


def _suspect(opened: Opened, rows: NDArray[np.floating]) -> str:
    if opened.worst is None:
        return ""
    try:
        return f"; of its operators differs most, for what goes into it, {opened.worst(rows)}"
    except CatalogError:
        return ""
