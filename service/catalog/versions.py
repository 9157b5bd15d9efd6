"""The front's view of the catalog: which versions exist, which are ready, and which one a name means."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from service.catalog.assessments import Assessment
from service.catalog.baselines import KeptSet
from service.catalog.manifest import Manifest, version_order
from service.catalog.outputs.kind import OutputKind
from service.catalog.traits import Traits
from service.domain import ModelKey, VersionRef
from service.errors import ModelNotReady, NotFound

FAULTY = "the version cannot be served: the service's log, and the index of its repository, say what is wrong with it"


class Lease:
    """Keeps a version on the workers: `end` is called once nobody holds this any more.

    Every request refers to the version that it was planned with, and so to its lease: a version that was replaced or
    unloaded leaves the workers when the last request for it is answered, however long that takes.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        weakref.finalize(self, end).atexit = False


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version as the front knows it.

    `folder` holds its files: a copy of the operator's, once it is loaded. `environment`, `traits` and `parity` come
    from the engine that loaded it (`service.engine.protocol`); a version without an environment is not ready, and
    `problem` says why, once that is known. `assessment` is what `answerable models check` found, None before that.
    `kept_sets` are the model's baseline sets that are not in the manifest, of all tenants, whether they fit this
    version or not; `sets_of` and `fitting_sets` select those that a tenant sees.
    """

    key: ModelKey
    manifest: Manifest
    folder: Path
    manifest_digest: str
    environment: Mapping[str, str] | None = None
    traits: Traits | None = None
    parity: float | None = None
    problem: str | None = None
    assessment: Assessment | None = None
    lease: Lease | None = None
    kept_sets: tuple[KeptSet, ...] = ()
    is_unloaded: bool = False

    @property
    def is_ready(self) -> bool:
        return self.environment is not None

    @property
    def outputs(self) -> OutputKind:
        """What it answers, with what its files say of that: a vocabulary, say."""
        return self.manifest.outputs.with_files(self.folder, self.manifest.inputs)

    @property
    def ref(self) -> VersionRef:
        """The reference by which the engine knows it."""
        return VersionRef(self.key.name, self.key.version, self.manifest_digest)

    @property
    def has_passed(self) -> bool:
        """Whether its check found nothing against it."""
        return self.assessment is not None and self.assessment.passed

    @property
    def has_failed(self) -> bool:
        """Whether its check found something against it."""
        return self.assessment is not None and not self.assessment.passed

    def sets_of(self, tenant: str | None) -> list[KeptSet]:
        """The kept sets that the tenant can name: its own and the shared ones; for None only the shared ones."""
        return [one for one in self.kept_sets if one.is_seen_by(tenant)]

    def fitting_sets(self, tenant: str | None) -> list[KeptSet]:
        """Those of them that were made for exactly this artefact and these inputs."""
        return [one for one in self.sets_of(tenant) if one.stale_for(self.key, self.manifest) is None]

    @property
    def files(self) -> tuple[str, str]:
        """The digests of the artefact and of the manifest."""
        return self.key.digest, self.manifest_digest

    def is_same(self, other: ModelVersion) -> bool:
        """Whether both have the same files, whatever else is known of them."""
        return (self.key, self.manifest_digest) == (other.key, other.manifest_digest)


class Catalog:
    """Every known version, in the order in which versions succeed each other.

    The default version of a model is the one that its bare name means: the newest that is ready and has passed its
    check. If its files are replaced by others of the same version, it stays the default until these have passed
    theirs. Before any version has ever passed, the default is the oldest ready one, unless that has failed; afterwards
    it is never one that has not passed.

    `faults` says, by name and version, what is wrong with the folders that could not be read. While `is_loading`, no
    version is found: a worker that loads answers nobody. `changed` is called after every change of a version.
    """

    def __init__(self, *, is_loading: bool = False) -> None:
        self.is_loading = is_loading
        self.changed: Callable[[], None] = lambda: None
        self.faults: dict[tuple[str, str], str] = {}
        self._versions: dict[str, dict[str, ModelVersion]] = {}
        self._defaults: dict[str, ModelVersion] = {}
        self._checked: set[str] = set()

    def __iter__(self) -> Iterator[ModelVersion]:
        return (version for versions in self._versions.values() for version in versions.values())

    @property
    def known(self) -> list[ModelVersion]:
        """Every version; then the default versions whose files were replaced by others of the same version."""
        current = list(self)
        return [*current, *(one for one in self._defaults.values() if not any(map(one.is_same, current)))]

    def put(self, version: ModelVersion) -> None:
        """Adds the version, or replaces what was known of it."""
        name = version.key.name
        self.faults.pop((name, version.key.version), None)
        known = {**self._versions.get(name, {}), version.key.version: version}
        if version.has_passed:
            self._checked.add(name)
        self._versions[name] = dict(sorted(known.items(), key=lambda item: version_order(item[0])))
        default = self._choose_default(name, version)
        if default is None:
            self._defaults.pop(name, None)
        else:
            self._defaults[name] = default
        self.changed()

    def keep_sets(self, name: str, sets: Collection[KeptSet]) -> None:
        """Forgets every kept set of the model that is not one of these, with exactly these rows."""

        def with_remaining_sets(version: ModelVersion) -> ModelVersion:
            return replace(version, kept_sets=tuple(one for one in version.kept_sets if one in sets))

        default = self._defaults.get(name)
        for number, version in self._versions[name].items():
            self._versions[name][number] = renewed = with_remaining_sets(version)
            if version is default:
                self._defaults[name] = default = renewed
        if default is not None and not any(default is one for one in self._versions[name].values()):
            self._defaults[name] = with_remaining_sets(default)
        self.changed()

    def _choose_default(self, name: str, changed: ModelVersion) -> ModelVersion | None:
        """The default version after `changed` has changed."""
        ready = [version for version in self._versions[name].values() if version.is_ready]
        passed = [version for version in ready if version.has_passed]
        before = self._defaults.get(name)
        if (
            before is not None
            and before.key.version == changed.key.version
            and not (before.has_passed and changed.is_ready and not before.is_same(changed))
        ):
            before = None  # what is known of the version now counts
        if before is not None and before.has_passed:  # first, so that other files of the same version come after it
            passed.insert(0, before)
        if passed:
            return max(enumerate(passed), key=lambda item: (version_order(item[1].key.version), item[0]))[1]
        if before is not None:
            return before
        return ready[0] if ready and not ready[0].has_failed and name not in self._checked else None

    @property
    def is_ready(self) -> bool:
        """Whether something can be served, and nothing is to be loaded first."""
        return not self.is_loading and any(version.is_ready for version in self)

    @property
    def loading(self) -> list[str]:
        """What is still to be loaded at the start."""
        waiting = [one for one in self if not one.is_ready and one.problem is None]
        return [f"{one.key}" for one in waiting] if self.is_loading else []

    @property
    def failed(self) -> list[str]:
        """What was to be served and cannot be."""
        refused = [f"{one.key}" for one in self if one.problem is not None]
        return sorted({*refused, *(f"{name}@{version}" for name, version in self.faults)})

    @property
    def names(self) -> list[str]:
        return list(self._versions)

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model, oldest first. Raises NotFound, or ModelNotReady where none can be read."""
        if name not in self._versions:
            if any(name == faulty for faulty, _ in self.faults):
                raise ModelNotReady(FAULTY)
            if self.is_loading and not self._versions:
                raise ModelNotReady("the models are being fetched; try again in a few seconds")
            raise NotFound("there is no such model")
        return list(self._versions[name].values())

    def get(self, name: str, version: str) -> ModelVersion | None:
        """What is known of that version now, ready or not; None where nothing is."""
        return self._versions.get(name, {}).get(version)

    def named(self, name: str, version: str) -> ModelVersion:
        """That version, ready or not. Raises NotFound; ModelNotReady where its files cannot be read."""
        self.versions(name)
        found = self.get(name, version)
        if found is None:
            if (name, version) in self.faults:
                raise ModelNotReady(FAULTY)
            raise NotFound("the model has no such version")
        return found

    def default_version(self, name: str) -> ModelVersion | None:
        """The version that answers where a request names none; None where there is no such version."""
        return self._defaults.get(name)

    def predecessor(self, version: ModelVersion) -> ModelVersion | None:
        """What the version is compared with before it may become the default: the default version of now.

        Where that is this very version, or a later one, it is the newest before it that has passed.
        """
        default, order = self.default_version(version.key.name), version_order(version.key.version)
        if default is None or (not default.is_same(version) and version_order(default.key.version) <= order):
            return default
        earlier = (one for one in self.versions(version.key.name) if version_order(one.key.version) < order)
        return next((one for one in reversed([*earlier]) if one.is_ready and one.has_passed), None)

    def find(self, name: str, version: str | None = None) -> ModelVersion:
        """The named version, or the default one. Raises NotFound or ModelNotReady."""
        versions = self.versions(name)
        if self.is_loading:
            raise ModelNotReady("the models are being loaded; try again in a few seconds")
        if version is None:
            if name in self._defaults:
                return self._defaults[name]
            if any(candidate.is_ready for candidate in versions):
                raise ModelNotReady("no version of the model has passed its check; name one: .../versions/{version}")
        else:
            versions = [self.named(name, version)]
            if versions[0].is_ready:
                return versions[0]
        if all(candidate.is_unloaded for candidate in versions):
            raise ModelNotReady("the model is not loaded")
        raise ModelNotReady("the model is not ready" + (" yet" if versions[-1].problem is None else ""))
