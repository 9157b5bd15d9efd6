"""The front's view of the catalog: which versions exist, which are ready, and which one a name means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from service.catalog.manifest import Manifest
from service.domain import ModelKey, Traits
from service.errors import ModelNotReady, NotFound


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version as the front knows it.

    `environment`, `traits` and `parity` come from the worker that loaded it (`service.engine.messages`); a
    version without an environment is not ready, and `problem` says why, once that is known.
    """

    key: ModelKey
    manifest: Manifest
    folder: Path
    manifest_digest: str
    environment: Mapping[str, str] | None = None
    traits: Traits | None = None
    parity: float | None = None
    problem: str | None = None

    @property
    def is_ready(self) -> bool:
        return self.environment is not None


class Catalog:
    """Every known version, in the order in which versions succeed each other.

    `faults` counts the version folders that could not be read; with any, or with no version, it is not ready.
    """

    def __init__(self) -> None:
        self.faults = 0
        self._versions: dict[str, dict[str, ModelVersion]] = {}

    def __iter__(self) -> Iterator[ModelVersion]:
        return (version for versions in self._versions.values() for version in versions.values())

    def put(self, version: ModelVersion) -> None:
        """Adds the version, or replaces what was known of it."""
        self._versions.setdefault(version.key.name, {})[version.key.version] = version

    @property
    def is_ready(self) -> bool:
        """Whether everything that was configured can be served."""
        versions = list(self)
        return bool(versions) and not self.faults and all(version.is_ready for version in versions)

    @property
    def names(self) -> list[str]:
        return list(self._versions)

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model, oldest first. Raises NotFound."""
        if name not in self._versions:
            raise NotFound("there is no such model")
        return list(self._versions[name].values())

    def find(self, name: str, version: str | None = None) -> ModelVersion:
        """The named version, or the newest ready one. Raises NotFound or ModelNotReady."""
        versions = self.versions(name)
        if version is not None:
            versions = [candidate for candidate in versions if candidate.key.version == version]
            if not versions:
                raise NotFound("the model has no such version")
        ready = [candidate for candidate in versions if candidate.is_ready]
        if not ready:
            raise ModelNotReady("the model is not ready" + (" yet" if versions[-1].problem is None else ""))
        return ready[-1]
