"""Reads the files of a model version, with verified digests; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from service.domain import RowType
from service.errors import CatalogError

if TYPE_CHECKING:
    from service.catalog.formats import Artefact
    from service.catalog.manifest import BaselineSet, Manifest


def read_verified(folder: Path, file: str, sha256: str) -> bytes:
    """The bytes of `folder/file`, which must be a plain file inside `folder` with exactly this sha256.

    Bytes that were verified are the bytes that are used: the file is read once. Raises CatalogError otherwise.
    """
    path = folder / file
    if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
        raise CatalogError(f"{file} is not a plain file inside the model's folder")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CatalogError(f"{file} cannot be read: {error.strerror}") from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise CatalogError(f"{file} has the sha256 {actual}, the manifest says {sha256}")
    return content


def read_artefact(folder: Path, artefact: Artefact) -> dict[str, bytes]:
    """The bytes of all files of the artefact, by name. Raises CatalogError where one is not what the manifest says."""
    return {file: read_verified(folder, file, sha256) for file, sha256 in artefact.sha256_by_file.items()}


def stored_rows(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows in the type that files store: float32 where that represents them exactly, else float64."""
    with np.errstate(over="ignore"):
        single = rows.astype(np.float32)
    return np.ascontiguousarray(single if (single == rows).all() else rows)


def read_baseline_rows(
    folder: Path, manifest: Manifest, baseline: BaselineSet, row_type: RowType | None = None
) -> NDArray[np.floating]:
    """The rows [size, columns] of a baseline set, flat, checked against the shape of the manifest's inputs.

    In the type that the file has, or in the model's `row_type`.
    """
    content = read_verified(folder, baseline.file, baseline.sha256)
    try:
        rows = load(content)["rows"]
    except (SafetensorError, KeyError) as error:
        raise CatalogError(f"{baseline.file} holds no tensor `rows`") from error
    expected = (baseline.size, prod(manifest.inputs.shape))
    if rows.shape != expected:
        raise CatalogError(f"{baseline.file} has shape {list(rows.shape)}, the manifest says {list(expected)}")
    is_real = rows.dtype in (np.float32, np.float64)
    if is_real and row_type is not None:
        with np.errstate(over="ignore"):
            rows = rows.astype(row_type)
    if not (is_real and np.isfinite(rows).all()):
        raise CatalogError(f"{baseline.file} must hold finite values, in float32 or in float64")
    manifest.inputs.check_rows(rows, baseline.file)
    return rows


HELD_OUT = "heldout.safetensors"


def read_heldout_rows(folder: Path, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """The rows [n, columns] that were held out of a version's training; None where there are none of that shape.

    They are not verified by a digest, since nothing that is served depends on them.
    """
    try:
        rows = load((folder / HELD_OUT).read_bytes())["rows"].astype(np.float64)
    except (OSError, SafetensorError, KeyError):
        return None
    flat: NDArray[np.float64] = rows.reshape(len(rows), -1)
    return flat if flat.shape[1] == prod(shape) else None
