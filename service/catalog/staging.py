"""Copies of the files of served versions, by digest of their manifest.

An operator's changes in a model's folder take no effect until the version is loaded again: a worker that is replaced
meanwhile loads the same files as the others. Copies are kept, so that what was answered can be computed again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from service.errors import CatalogError


def stage(folder: Path, manifest: str, copies: Path) -> Path:
    """The copy under `copies` of the version in `folder`, whose manifest has this sha256; made if there is none.

    Links are not followed: what is outside of the folder does not belong to the version. Raises CatalogError when a
    file cannot be read, or OSError when the copy cannot be written.
    """
    place = place_of(copies, manifest, folder.parent.name, folder.name)
    if place.is_dir():
        return place
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=place.parent, prefix=".part-"))
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.resolve().is_relative_to(folder.resolve()):
                copy = part / path.relative_to(folder)
                copy.parent.mkdir(exist_ok=True, parents=True)
                _copy(path, copy)
        os.replace(part, place)  # noqa: PTH105 - Path.replace returns a path, which nobody needs
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place


def place_of(copies: Path, manifest: str, name: str, version: str) -> Path:
    """Where the copy of a version lies whose manifest has this sha256."""
    return copies / manifest.removeprefix("sha256:")[:32] / name / version


def _copy(path: Path, copy: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise CatalogError(f"{path.name} cannot be read: {error.strerror}") from error
    shutil.copyfile(path, copy)
    shutil.copystat(path, copy)  # the age of a baseline set is that of its file


def drop(place: Path) -> None:
    """Removes a copy that could not be loaded: the files may be put right under the same manifest."""
    shutil.rmtree(place, ignore_errors=True)
