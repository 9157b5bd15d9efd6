"""Where the versions come from that are served. Nothing else asks whether that is a folder or an address.

`ANSWERABLE_MODELS` names a folder, whose versions are read in place, or an address: of fsspec, `hf:` or `mlflow:`.
What lies there is fetched into the data folder by digest (`fetching.py`). What was fetched is remembered in
`registry.json`, and served where the registry cannot be reached.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from service.catalog.manifest import NAME, find_versions, version_order
from service.catalog.staging import place_of
from service.errors import CatalogError, SetupError
from service.extras import install
from service.lifecycle.serving.registries.fetching import Fetching
from service.lifecycle.serving.registries.files import Files, RegistryUnreachable
from service.lifecycle.serving.registries.huggingface import HuggingFaceFiles
from service.settings import is_confidential

LOG = logging.getLogger("answerable")
REMEMBERED = "registry.json"
PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "https": "aiohttp",
    "http": "aiohttp",
    "file": "",
}
"""The package beside fsspec that each kind of address needs."""
EXTRA = {"fsspec", "s3fs", "aiohttp"}
"""What the extra `remote` installs; gcsfs and adlfs are few people's, and gcsfs wants an fsspec of its own release."""

Names = tuple[str, str]
"""A model's name and its version."""


@dataclass(frozen=True, slots=True)
class Unfetched:
    """A version that cannot be had; `error` says why."""

    names: Names
    error: CatalogError


class Registry(Protocol):
    """Versions of models. Methods that block are for a thread."""

    shown: str
    """The folder or address, to be read by people: without credentials."""
    folder: Path | None
    """The folder that operators write to; None where there is none."""
    problems: list[str]
    """What could not be looked up or fetched when that was last tried, in sentences for the operator."""

    def at_hand(self) -> list[Path]:
        """The folders of versions that are there without waiting."""

    def names(self) -> list[Names]:
        """The versions that are there now. Raises RegistryUnreachable."""

    def fetch(self, name: str | None = None, version: str | None = None) -> list[Path | Unfetched]:
        """Folders with the files of the versions that are there now: all, a model's, or one.

        Raises RegistryUnreachable where that cannot be looked up.
        """

    def start(self) -> list[Path | Unfetched]:
        """The same of all; what cannot be looked up or fetched is what was fetched before, and `problems` says so."""

    def close(self) -> None:
        """Ends what is being fetched."""


class FolderRegistry:
    """A folder of models, on this machine or mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder: Path | None = folder
        self.shown = str(folder.absolute())
        self.problems: list[str] = []
        self._folder = folder

    def at_hand(self) -> list[Path]:
        return find_versions(self._folder)

    def names(self) -> list[Names]:
        return [(one.parent.name, one.name) for one in self.at_hand()]

    def fetch(self, name: str | None = None, version: str | None = None) -> list[Path | Unfetched]:
        return [one for one in self.at_hand() if name in (None, one.parent.name) and version in (None, one.name)]

    def start(self) -> list[Path | Unfetched]:
        return self.fetch()

    def close(self) -> None:
        pass


class RemoteRegistry:
    """Files elsewhere, fetched into `data`."""

    folder: Path | None = None

    def __init__(self, files: Files, data: Path) -> None:
        self.shown = files.shown
        self.problems: list[str] = []
        self._files = files
        self._copies = data / "versions"
        self._remembered = data / REMEMBERED
        self._stop = threading.Event()
        self._fetching = Fetching(files, self._copies, self._stop)
        self._turn = threading.Lock()

    def at_hand(self) -> list[Path]:
        return []

    def names(self) -> list[Names]:
        with self._turn:
            return [names for names, _ in self._look_up()]

    def fetch(self, name: str | None = None, version: str | None = None) -> list[Path | Unfetched]:
        with self._turn:
            there = self._look_up()
            wanted = [one for one in there if name in (None, one[0][0]) and version in (None, one[0][1])]
            return [self._fetched(names, folder) for names, folder in wanted]

    def start(self) -> list[Path | Unfetched]:
        with self._turn:
            kept = self._kept()
            try:
                there = self._look_up()
            except RegistryUnreachable:
                LOG.error("%s; what was fetched before is served", self.problems[0])  # noqa: TRY400
                return [*kept.values()]
            self._remember({names: kept[names] for names, _ in there if names in kept})
            fetched = [self._fetched(names, folder) for names, folder in there]
            return [kept.get(one.names, one) if isinstance(one, Unfetched) else one for one in fetched]

    def close(self) -> None:
        self._stop.set()

    def _look_up(self) -> list[tuple[Names, str]]:
        """The versions that are there in order, with the folder of each. Raises RegistryUnreachable."""
        try:
            there = [(self._fetching.names(folder), folder) for folder in self._fetching.folders()]
        except CatalogError as error:
            self.problems = [f"{self.shown} could not be looked up: {error}"]
            raise error if isinstance(error, RegistryUnreachable) else RegistryUnreachable(str(error)) from None
        self.problems = []
        right = [one for one in there if all(re.fullmatch(NAME, part) for part in one[0])]
        return sorted(right, key=lambda one: (one[0][0], version_order(one[0][1])))

    def _fetched(self, names: Names, folder: str) -> Path | Unfetched:
        try:
            place = self._fetching.version(folder, *names)
            self._remember({**self._kept(), names: place})
        except OSError as error:
            problem = CatalogError(f"it cannot be kept in the data folder: {error.strerror}")
        except CatalogError as error:
            problem = error
        else:
            return place
        sentence = f"{'@'.join(names)} could not be fetched: {problem}"
        self.problems = [*self.problems, sentence]
        LOG.error("%s", sentence)
        return Unfetched(names, problem)

    def _kept(self) -> dict[Names, Path]:
        """What was fetched from here before, and is there still."""
        try:
            remembered = json.loads(self._remembered.read_bytes())
            if remembered["from"] != self.shown:
                return {}
            versions = [(one["name"], one["version"], one["copy"]) for one in remembered["versions"]]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError):
            LOG.warning("%s cannot be read: what was fetched before is not known", REMEMBERED)
            return {}
        places = {(name, version): place_of(self._copies, copy, name, version) for name, version, copy in versions}
        return {names: place for names, place in places.items() if place.is_dir()}

    def _remember(self, kept: dict[Names, Path]) -> None:
        versions = [
            {"name": name, "version": version, "copy": place.parents[1].name} for (name, version), place in kept.items()
        ]
        new = self._remembered.with_suffix(".new")
        self._remembered.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.write_text(json.dumps({"from": self.shown, "versions": versions}, indent=1))
        new.replace(self._remembered)


def is_address(models: str) -> bool:
    """Whether it names something else than a folder."""
    return "://" in models or models.startswith(("hf:", "mlflow:"))


def open_registry(models: str, data: Path) -> Registry:
    """The registry that `ANSWERABLE_MODELS` names; nothing is asked of it yet.

    Raises SetupError for an address of no known kind, or a package that is missing.
    """
    if not is_address(models):
        return FolderRegistry(Path(models))
    return RemoteRegistry(_files_at(models), data)


def _files_at(address: str) -> Files:
    if address.startswith("hf:"):
        return HuggingFaceFiles(address)
    scheme = "file" if address.startswith("mlflow:") else urlsplit(address).scheme
    if scheme not in PACKAGES:
        raise SetupError(
            "ANSWERABLE_MODELS must be a folder, or an address that begins with s3://, gs://, az://, https://, "
            "file://, hf: or mlflow:",
            code=2,
        )
    for package in ("fsspec", PACKAGES[scheme]):
        if package and find_spec(package) is None:
            how = install("remote") if package in EXTRA else f".venv/bin/pip install {package}"
            raise SetupError(f"{package} is missing, which {scheme}:// needs: {how}")
    parts = urlsplit(address)
    if parts.scheme == "http" and not is_confidential(address):
        raise SetupError("ANSWERABLE_MODELS must begin with https://, unless it is on this machine", code=2)
    if address.startswith("mlflow:"):
        from service.lifecycle.serving.registries.mlflow import MlflowFiles

        return MlflowFiles(address)
    from service.lifecycle.serving.registries.filesystems import FilesystemFiles

    return FilesystemFiles(address)


def folders_of(found: Iterable[Path | Unfetched]) -> list[Path]:
    """The folders of versions for a command that works on all; what could not be had is logged."""
    return [one for one in found if isinstance(one, Path)]
