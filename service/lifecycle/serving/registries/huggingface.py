"""A repository of Hugging Face's hub by revision: from a mirror or the hub (`HF_ENDPOINT`), or from the local cache.

The environment has the meaning that huggingface_hub gives it: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_CACHE`, `HF_HOME`, and
`HF_HUB_OFFLINE`, with which nothing but the cache is looked at. The cache is also looked at where no server answers.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from service.errors import SetupError
from service.lifecycle.serving.registries.files import MANIFEST, NoSuchFile, RegistryUnreachable, exact_part
from service.lifecycle.serving.registries.http_files import HttpRegistry

HUB = "https://huggingface.co"
_ADDRESS = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


class HuggingFaceFiles:
    """Version folders in `hf:ORGANISATION/NAME@REVISION`, of the commit that the revision means when listed."""

    def __init__(self, address: str) -> None:
        """Raises SetupError for an address that is none."""
        parts = _ADDRESS.fullmatch(address)
        if parts is None or ".." in address:
            raise SetupError("ANSWERABLE_MODELS must name a repository as hf:ORGANISATION/NAME@REVISION", code=2)
        self.shown = address
        self._repository, self._revision = parts["repository"], parts["revision"] or "main"
        server = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        self._server = HttpRegistry(server, address, os.environ.get("HF_TOKEN"))
        self._is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        self._commit = ""
        self._snapshot: Path | None = None

    def folders(self) -> list[str]:
        if self._is_offline:
            return self._cached()
        try:
            return self._listed()
        except RegistryUnreachable as unreachable:
            try:
                return self._cached()
            except RegistryUnreachable:
                raise unreachable from None

    def _listed(self) -> list[str]:
        revision = quote(self._revision, safe="")
        try:
            answer = self._server.json(f"/api/models/{self._repository}/revision/{revision}")
            self._commit = str(answer["sha"])
            paths = [str(one["rfilename"]) for one in answer["siblings"]]
        except NoSuchFile:
            raise RegistryUnreachable(f"there is no {self.shown}: check ANSWERABLE_MODELS and HF_TOKEN") from None
        except (KeyError, TypeError):
            raise RegistryUnreachable(f"HF_ENDPOINT does not answer as the hub does for {self.shown}") from None
        self._snapshot = None
        return _version_folders(paths)

    def _cached(self) -> list[str]:
        """What lies in the cache, in the layout that huggingface_hub documents: refs name commits of snapshots."""
        home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
        cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
        repository = cache / f"models--{self._repository.replace('/', '--')}"
        try:
            commit = (repository / "refs" / self._revision).read_text().strip()
        except OSError:
            commit = self._revision
        snapshot = repository / "snapshots" / commit
        if not snapshot.is_dir():
            raise RegistryUnreachable(
                f"{self.shown} is not in the local cache: download it, or name a mirror by HF_ENDPOINT"
            )
        self._snapshot = snapshot
        return _version_folders(path.relative_to(snapshot).as_posix() for path in snapshot.rglob(MANIFEST))

    def size(self, path: str) -> int:
        if self._snapshot is None:
            return self._server.size(self._address_of(path))
        try:
            return self._cached_file(self._snapshot, path).stat().st_size
        except OSError:
            raise NoSuchFile(f"there is no {path} in the local cache of {self.shown}") from None

    def read(self, path: str, start: int, length: int) -> bytes:
        if self._snapshot is None:
            return exact_part(self._server.read(self._address_of(path), start, length), start, length, self.shown)
        try:
            with self._cached_file(self._snapshot, path).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError:
            raise NoSuchFile(f"there is no {path} in the local cache of {self.shown}") from None

    def _cached_file(self, snapshot: Path, path: str) -> Path:
        """The file behind the cache's link, which leads to the repository's blobs and nowhere else."""
        file = (snapshot / path).resolve()
        if not file.is_relative_to(snapshot.parents[1].resolve()):
            raise NoSuchFile(f"{path} leads out of the local cache of {self.shown}")
        return file

    def _address_of(self, path: str) -> str:
        return f"/{self._repository}/resolve/{self._commit}/{quote(path)}"


def _version_folders(paths: object) -> list[str]:
    manifests = [PurePosixPath(path) for path in paths if PurePosixPath(path).name == MANIFEST]  # type: ignore[attr-defined]
    folders = ["/".join(path.parent.parts) for path in manifests]
    return [""] if "" in folders else sorted(folder for folder in folders if folder.count("/") == 1)
