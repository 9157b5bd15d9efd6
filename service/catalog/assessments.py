"""The outcome of `answerable models check` for a version, kept by digest: the verdict, and the reference profile.

An assessment lies in the data folder, or beside the version as `check.json`, where it travels from a promotion gate to
the service. It belongs to one artefact and one manifest: after any change of either it no longer counts. Where both
places have one, the later counts. Read with neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from service.catalog.manifest import read_manifest, version_order
from service.domain import ModelKey
from service.errors import CatalogError

FORMAT = 1
FILE = "check.json"
ASSESSMENTS = "assessments"
"""The folder of assessments in the data folder."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How important each feature was over the sample of a check: the reference that drift is measured against.

    `importance` is the mean absolute attribution by feature, in the order of the inputs: a table's features by name,
    else the place of the pixel (`row,column`) or of the token. `target` is a label, or `predicted`. `baseline` is the
    digest of the set, None where the default baseline is no set.
    """

    method: str
    output_space: str
    target: str
    baseline: str | None
    rows: int
    importance: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Assessment:
    """One check of a version: `checks` as the command prints them, and the `limits` that applied.

    `against_files` are the digests of the artefact and the manifest of the version it was compared with: the service
    takes it as a comparison with these files, and not with other files that have the name `against` by then. `checked`
    is in microseconds since the epoch.
    """

    name: str
    version: str
    digest: str
    manifest: str
    against: str | None
    failed: tuple[str, ...]
    checks: tuple[Mapping[str, Any], ...]
    limits: Mapping[str, float]
    profile: Profile | None
    against_files: tuple[str, str] | None = None
    checked: int = field(default_factory=lambda: time.time_ns() // 1000)

    @property
    def passed(self) -> bool:
        """Whether a bare model name may mean the version."""
        return not self.failed


class Assessments:
    """One file a version, artefact and manifest in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(
        self, version: Path, key: ModelKey, manifest: str, against: tuple[str, str] | None = None
    ) -> Assessment | None:
        """The latest assessment of exactly this artefact and manifest, here or in the folder of the version.

        With `against`, the latest of those that compared it with exactly these files.
        """
        candidates = [_read(path) for path in (self._path(key, manifest), version / FILE)]
        own = [assessment for assessment in candidates if assessment is not None and _is_of(assessment, key, manifest)]
        counting = [assessment for assessment in own if against is None or assessment.against_files == against]
        return max(counting, key=lambda assessment: assessment.checked, default=None)

    def keep(self, assessment: Assessment) -> None:
        """Keeps it in place of an earlier one. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = ModelKey(assessment.name, assessment.version, assessment.digest)
        _write(self._path(key, assessment.manifest), assessment)

    def _path(self, key: ModelKey, manifest: str) -> Path:
        name = f"{key} {key.digest} {manifest}"
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


def newest_before(folders: Sequence[Path], version: Path, kept: Assessments) -> Path | None:
    """Of the folders, which are in order, the newest version before that one whose check has not failed."""
    names = version.parent.name, version_order(version.name)
    for other in reversed(folders):
        if other.parent.name != names[0] or version_order(other.name) >= names[1]:
            continue
        try:
            _, key, manifest = read_manifest(other)
        except CatalogError:
            continue
        latest = kept.find(other, key, manifest)
        if latest is None or latest.passed:
            return other
    return None


def keep_beside(version: Path, assessment: Assessment) -> None:
    """Writes it to `check.json` in the folder of the version. Raises OSError."""
    _write(version / FILE, assessment)


def _is_of(assessment: Assessment, key: ModelKey, manifest: str) -> bool:
    checked = assessment.name, assessment.version, assessment.digest, assessment.manifest
    return checked == (key.name, key.version, key.digest, manifest)


def _write(path: Path, assessment: Assessment) -> None:
    content = {"format": FORMAT, **asdict(assessment)}
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    part.replace(path)


def _read(path: Path) -> Assessment | None:
    """The assessment in a file; None where there is none, or it was written in another format."""
    try:
        content = orjson.loads(path.read_bytes())
        if content.pop("format") != FORMAT:
            return None
        profile = content["profile"]
        content["profile"] = None if profile is None else Profile(**profile)
        for name in ("failed", "checks"):
            content[name] = tuple(content[name])
        files = content.get("against_files")  # earlier assessments lack it: they count where there is no other version
        content["against_files"] = None if files is None else tuple(files)
        return Assessment(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
