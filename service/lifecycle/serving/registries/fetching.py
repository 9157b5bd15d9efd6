"""Fetches a version by digest into the copies of served versions (`service/catalog/staging.py`), whole or not at all.

A file that arrives lies in `.fetching/SHA256` until it is whole, so that fetching goes on where a cut connection, or
the end of the process, left it. It is put beside its manifest once its digest is what the manifest says; the folder
gets its name when all files are there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from service.catalog.assessments import FILE as VERDICT
from service.catalog.manifest import Manifest, read_manifest
from service.catalog.plain_yaml import MAX_BYTES, read_yaml
from service.catalog.staging import place_of
from service.errors import CatalogError
from service.lifecycle.serving.registries.files import (
    BLOCK_BYTES,
    MANIFEST,
    Files,
    NoSuchFile,
    RegistryUnreachable,
    within,
)

Answer = TypeVar("Answer")
ATTEMPTS = 4
"""How often in a row the same block is asked for before the registry counts as unreachable."""
PAUSE_SECONDS = 0.1
"""Before the second attempt; each later pause is twice as long."""
MOST_BYTES = 64 * 2**30
"""Of one file."""
SPARE_BYTES = 256 * 2**20
"""What fetching leaves free of the data folder's disk, where the ledger may lie too."""


def named_files(declared: object) -> Iterator[tuple[str, str]]:
    """Every file that a manifest names, with the sha256 that stands beside it."""
    if isinstance(declared, BaseModel):
        file, sha256 = getattr(declared, "file", None), getattr(declared, "sha256", None)
        if isinstance(file, str) and isinstance(sha256, str):
            yield file, sha256
        for name in type(declared).model_fields:
            yield from named_files(getattr(declared, name))
    elif isinstance(declared, tuple | list) and declared and isinstance(declared[0], BaseModel):
        for one in declared:
            yield from named_files(one)


class Fetching:
    """Fetches into `copies`; `stop` ends it between two blocks."""

    def __init__(self, files: Files, copies: Path, stop: threading.Event) -> None:
        self._files = files
        self._copies = copies
        self._parts = copies / ".fetching"
        self._stop = stop

    def folders(self) -> list[str]:
        """The version folders that are there now. Raises RegistryUnreachable."""
        return self._again(self._files.folders)

    def names(self, folder: str) -> tuple[str, str]:
        """Name and version of a version folder; where the address is one itself, its manifest says them."""
        if folder:
            model, _, number = folder.partition("/")
            return model, number
        try:
            declared = read_yaml(self._small(MANIFEST))
        except ValueError as error:
            raise CatalogError(f"the manifest in {self._files.shown}: {error}") from error
        name, version = (declared.get("name"), declared.get("version")) if isinstance(declared, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(version, str):
            raise CatalogError(f"the manifest in {self._files.shown} does not say `name` and `version` as texts")
        return name, version

    def version(self, folder: str, name: str, version: str) -> Path:
        """The copy of the version in `folder`, fetched unless a manifest of the same digest was before.

        Raises CatalogError where a file is not what the manifest says, or RegistryUnreachable; OSError where it cannot
        be written. The verdict of its check is fetched each time, for it may be newer.
        """
        content = self._small(within(folder, MANIFEST))
        place = place_of(self._copies, hashlib.sha256(content).hexdigest(), name, version)
        verdict = self._verdict(folder)
        if not place.is_dir():
            self._copies.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._copies, prefix=".part-") as made:
                part = Path(made) / name / version
                part.mkdir(mode=0o700, parents=True)
                (part / MANIFEST).write_bytes(content)
                manifest, _, _ = read_manifest(part)
                self._fill(part, folder, manifest)
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                try:
                    os.replace(part, place)  # noqa: PTH105 - Path.replace returns a path, which nobody needs
                except OSError:
                    if not place.is_dir():  # another process was faster
                        raise
        if verdict is not None:
            _replace(place / VERDICT, verdict)
        return place

    def _fill(self, part: Path, folder: str, manifest: Manifest) -> None:
        for file, sha256 in dict.fromkeys(named_files(manifest)):
            path = part / file
            if path.exists() or not path.resolve().is_relative_to(part.resolve()):
                raise CatalogError(f"{file} is named twice in the manifest, or lies outside of its folder")
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fetch(within(folder, file), sha256, path)

    def _fetch(self, path: str, sha256: str, target: Path) -> None:
        """Fetches one file. What arrived before may be of another file: then it is fetched once more as a whole."""
        self._parts.mkdir(mode=0o700, exist_ok=True)
        arriving = self._parts / sha256
        with _locked(arriving) as file:  # another process may fetch the same
            is_resumed = file.tell() > 0
            actual = self._complete(path, file)
            if actual != sha256 and is_resumed:
                file.truncate(0)
                actual = self._complete(path, file)
            arriving.unlink() if actual != sha256 else os.replace(arriving, target)  # noqa: PTH105
        if actual != sha256:
            raise CatalogError(
                f"{path} has the sha256 {actual}, the manifest says {sha256}: publish file and manifest again, together"
            )

    def _complete(self, path: str, file: BufferedRandom) -> str:
        """Appends what is missing, and returns the sha256 of the whole."""
        size = self._again(lambda: self._files.size(path))
        have = file.seek(0, os.SEEK_END)
        if have > size:
            have = file.truncate(0)
        self._check_room(path, size, size - have)
        file.seek(have)
        while have < size:
            start, length = have, min(BLOCK_BYTES, size - have)
            block = self._again(lambda: self._files.read(path, start, length))  # noqa: B023 - called at once
            if not block:
                raise RegistryUnreachable(f"{path} in {self._files.shown} ended early: it is being replaced; try again")
            file.write(block)
            file.flush()
            have += len(block)
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()

    def _check_room(self, path: str, size: int, missing: int) -> None:
        free = shutil.disk_usage(self._parts).free
        if size > MOST_BYTES:
            raise CatalogError(f"{path} has {size} bytes; at most {MOST_BYTES} are fetched")
        if missing + SPARE_BYTES > free:
            raise CatalogError(
                f"{path} has {size} bytes and the data folder's disk {free} free, of which {SPARE_BYTES} stay free: "
                "make room, or name another folder with ANSWERABLE_DATA"
            )

    def _small(self, path: str) -> bytes:
        size = self._again(lambda: self._files.size(path))
        if size > MAX_BYTES:
            raise CatalogError(f"{path} has {size} bytes; at most {MAX_BYTES} are read")
        content = b""
        while len(content) < size:
            start = len(content)
            block = self._again(lambda: self._files.read(path, start, min(BLOCK_BYTES, size - start)))  # noqa: B023
            if not block:
                raise RegistryUnreachable(f"{path} in {self._files.shown} ended early: it is being replaced; try again")
            content += block
        return content

    def _verdict(self, folder: str) -> bytes | None:
        try:
            return self._small(within(folder, VERDICT))
        except NoSuchFile:
            return None

    def _again(self, ask: Callable[[], Answer]) -> Answer:
        """Asks up to ATTEMPTS times while the registry cannot be reached; a connection that is cut costs one block."""
        for attempt in range(1, ATTEMPTS + 1):
            if self._stop.is_set():
                raise RegistryUnreachable("the service is being stopped")
            try:
                return ask()
            except RegistryUnreachable:
                if attempt == ATTEMPTS:
                    raise
                self._stop.wait(PAUSE_SECONDS * 2 ** (attempt - 1))
        raise AssertionError


@contextmanager
def _locked(path: Path) -> Iterator[BufferedRandom]:
    """The file, opened at its end, by this process alone; the file that has the name once it is locked."""
    while True:
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                file.seek(0, os.SEEK_END)
                yield file
                return


def _replace(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(content)
    new.replace(path)
