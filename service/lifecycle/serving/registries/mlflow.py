"""A version of MLflow's model registry: its tracking server, or its folder, says where the artifacts lie.

`mlflow:models:/loan/3` is a version, `mlflow:models:/loan@champion` an alias; `MLFLOW_TRACKING_URI` (or
`MLFLOW_REGISTRY_URI`) says where the registry is, and `MLFLOW_TRACKING_TOKEN`, or `…_USERNAME` and `…_PASSWORD`, who
asks. The artifacts are a version folder; they are read where they lie, by fsspec.
REST API: mlflow.org/docs/latest/rest-api.html.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.catalog.plain_yaml import read_yaml
from service.errors import CatalogError, SetupError
from service.lifecycle.serving.registries.files import Files, NoSuchFile, RegistryUnreachable
from service.lifecycle.serving.registries.filesystems import FilesystemFiles
from service.lifecycle.serving.registries.http_files import HttpRegistry

_ADDRESS = re.compile(r"mlflow:models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[\w.-]+))", re.ASCII)


class MlflowFiles:
    """The version folder that a version or an alias of a registered model means when it is listed."""

    def __init__(self, address: str) -> None:
        """Raises SetupError for an address that is none."""
        parts = _ADDRESS.fullmatch(address)
        if parts is None or parts["name"] in (".", ".."):
            raise SetupError(
                "ANSWERABLE_MODELS must name a registered model as mlflow:models:/NAME/VERSION or "
                "mlflow:models:/NAME@ALIAS",
                code=2,
            )
        self.shown = address
        self._name, self._version, self._alias = parts["name"], parts["version"], parts["alias"]
        self._artifacts: Files | None = None

    def folders(self) -> list[str]:
        where = os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI") or "mlruns"
        try:
            source = (
                self._from_server(where) if urlsplit(where).scheme in ("http", "https") else self._from_folder(where)
            )
        except (NoSuchFile, KeyError, TypeError, ValueError, OSError):
            raise RegistryUnreachable(
                f"there is no {self.shown} in the registry that MLFLOW_TRACKING_URI names: check both"
            ) from None
        if urlsplit(source).scheme in ("", "file"):
            source = Path(unquote(urlsplit(source).path)).absolute().as_uri()
        elif urlsplit(source).scheme not in ("s3", "gs", "az", "abfs", "https"):
            raise RegistryUnreachable(
                f"the artifacts of {self.shown} are not at an address of s3, gs, az, https or file: serve them from one"
            )
        self._artifacts = FilesystemFiles(source)
        self._artifacts.shown = self.shown
        return self._artifacts.folders()

    def size(self, path: str) -> int:
        return self._found.size(path)

    def read(self, path: str, start: int, length: int) -> bytes:
        return self._found.read(path, start, length)

    @property
    def _found(self) -> Files:
        if self._artifacts is None:
            self.folders()
        assert self._artifacts is not None
        return self._artifacts

    def _from_server(self, server: str) -> str:
        """The address of the artifacts, as `get-download-uri` says."""
        name, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
        user = (name, password) if name and password else None
        registry = HttpRegistry(server, self.shown, os.environ.get("MLFLOW_TRACKING_TOKEN"), user)
        api, version = "/api/2.0/mlflow", self._version
        if version is None:
            answer = registry.json(f"{api}/registered-models/alias", name=self._name, alias=self._alias)
            version = str(answer["model_version"]["version"])
        answer = registry.json(f"{api}/model-versions/get-download-uri", name=self._name, version=version)
        return str(answer["artifact_uri"])

    def _from_folder(self, root: str) -> str:
        """The same from MLflow's file store: `models/NAME/version-N/meta.yaml`, and `aliases/ALIAS`."""
        if urlsplit(root).scheme not in ("", "file"):
            raise RegistryUnreachable("MLFLOW_TRACKING_URI must be the address of a server (https://…) or a folder")
        model = Path(unquote(urlsplit(root).path)) / "models" / self._name
        version = self._version or (model / "aliases" / self._alias).read_text().strip()
        if not version.isdecimal():
            raise CatalogError(f"the alias of {self.shown} names no version")
        meta = read_yaml((model / f"version-{version}" / "meta.yaml").read_bytes())
        if not isinstance(meta, dict):
            raise ValueError
        return str(meta.get("storage_location") or meta["source"])
