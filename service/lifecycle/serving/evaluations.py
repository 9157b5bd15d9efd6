"""What was measured of a version's explanations, kept in the data folder by the digests of its files.

A result belongs to one artefact and one manifest, like the verdict of a check (`service.catalog.assessments`): after
any change of either it is no longer shown. Those that a tenant's own instances or records were measured on are that
tenant's; those of the command are everybody's. They hold figures and nothing of an input.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from service.domain import ModelKey
from service.faithfulness.summary import Figure

FORMAT = 1
EVALUATIONS = "evaluations"
"""The folder of results in the data folder."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation: of `rows` inputs from `source`, with a figure for each method and metric.

    `tenant` is None where everybody may see it. `created` is in microseconds since the epoch.
    """

    id: str
    name: str
    version: str
    digest: str
    manifest: str
    tenant: str | None
    source: str
    rows: int
    figures: tuple[Figure, ...]
    created: int = field(default_factory=lambda: time.time_ns() // 1000)


class Evaluations:
    """One folder a version's files, one file an evaluation."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, evaluated: Evaluated) -> None:
        """Keeps it, in the place of one with the same id. Raises OSError."""
        key = ModelKey(evaluated.name, evaluated.version, evaluated.digest)
        folder = self._of(key, evaluated.manifest)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{evaluated.id}.json"
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(orjson.dumps({"format": FORMAT, **asdict(evaluated)}))
        part.replace(path)

    def find(self, key: ModelKey, manifest: str, tenant: str | None) -> list[Evaluated]:
        """Those of exactly these files that the tenant may see, the newest first."""
        kept = (_read(path) for path in self._of(key, manifest).glob("*.json"))
        seen = [one for one in kept if one is not None and one.tenant in (None, tenant)]
        return sorted(seen, key=lambda one: -one.created)

    def _of(self, key: ModelKey, manifest: str) -> Path:
        return self._folder / hashlib.sha256(f"{key} {key.digest} {manifest}".encode()).hexdigest()[:32]


def latest_of(evaluations: Sequence[Evaluated], method: str) -> list[Figure]:
    """Of each metric of a method the latest figure for each replacement, of evaluations with the newest first."""
    latest: dict[tuple[str, str | None], Figure] = {}
    for evaluated in evaluations:
        for figure in evaluated.figures:
            if figure.method == method:
                latest.setdefault((figure.metric, figure.replaced), figure)
    return list(latest.values())


def _read(path: Path) -> Evaluated | None:
    """The evaluation in a file; None where it was written in another format, or is no evaluation."""
    try:
        content = orjson.loads(path.read_bytes())
        if content.pop("format") != FORMAT:
            return None
        figures = []
        for stored in content.pop("figures"):
            curve = stored.pop("curve")
            values = tuple(stored.pop("values"))
            figures.append(Figure(**stored, curve=None if curve is None else tuple(curve), values=values))
        return Evaluated(**content, figures=tuple(figures))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
