"""Baseline sets that were uploaded or built for a version that is there already: kept in the data folder, for ever.

A set belongs to one artefact and one order of inputs. For another it is stale, and refused: the rows of an older model
may say nothing of what a newer one was trained on. Records name sets by digest, so none is ever changed or removed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors.numpy import save

from service.catalog.artefacts import stored_rows
from service.catalog.manifest import MASKED, NAME, BaselineSet, Manifest, TabularInputs, TokenInputs
from service.domain import ModelKey
from service.errors import InvalidRequest

LOG = logging.getLogger("answerable.catalog")
BASELINES = "baselines"
"""The folder of sets in the data folder."""
MOST_ROWS = 1024
FORMAT = 1


@dataclass(frozen=True, slots=True)
class KeptSet:
    """A version of a set: what it was made for, and when, in microseconds since the epoch.

    `inputs` is the digest of the names, or the shape, of the inputs it was made for.
    """

    name: str
    version: str
    size: int
    sha256: str
    description: str
    model: str
    model_version: str
    model_digest: str
    inputs: str
    created: int

    @property
    def listed(self) -> BaselineSet:
        """As a manifest would list it, for its folder."""
        return BaselineSet(
            name=self.name,
            version=self.version,
            size=self.size,
            file=_file(self.sha256),
            sha256=self.sha256,
            description=self.description,
        )

    def stale_for(self, key: ModelKey, manifest: Manifest) -> str | None:
        """Why the set is of no use to that version; None if it is."""
        if self.inputs != inputs_digest(manifest):
            made_for = f"{self.model}@{self.model_version}"
            return f"it was made for the inputs of {made_for}, which are others, or in another order"
        if self.model_digest != key.digest:
            made_for = f"{self.model}@{self.model_version} ({self.model_digest[:19]}…)"
            return f"it was made for {made_for}, and not for this artefact; upload or build it again"
        return None


def inputs_digest(manifest: Manifest) -> str:
    """Of what the columns of a row are: their names in order, the shape, and what the numbers of categories mean."""
    inputs = manifest.inputs
    categories: list[object] = []
    if isinstance(inputs, TabularInputs) and inputs.has_categories:
        categories = [feature.categories for feature in inputs.features]
    content = orjson.dumps([inputs.kind, list(inputs.names), list(inputs.shape), *categories])
    return "sha256:" + hashlib.sha256(content).hexdigest()


class KeptSets:
    """The sets in `folder`, by model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def place(self, model: str) -> Path:
        """The folder that the files of a model's sets are relative to."""
        return self._folder / model

    def of(self, model: str) -> tuple[KeptSet, ...]:
        """Every version of every set of the model, as they were made; a description that is spoilt is logged."""
        return tuple(sorted(self._read(model), key=lambda one: (one.created, one.name, int(one.version))))

    def keep(
        self, key: ModelKey, manifest: Manifest, name: str, rows: NDArray[np.floating], description: str
    ) -> KeptSet:
        """Keeps the rows [size, columns] as the next version of the set. Raises InvalidRequest, OSError."""
        refuse_name(name)
        if isinstance(manifest.inputs, TokenInputs) and manifest.inputs.has_mask:
            raise InvalidRequest(
                f"{MASKED}; name the baseline `mask`, or send another text of as many tokens with each"
            )
        if not 1 <= len(rows) <= MOST_ROWS:
            raise InvalidRequest(f"a baseline set has from 1 to {MOST_ROWS} rows, not {len(rows)}")
        place = self.place(key.name)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = save({"rows": stored_rows(rows)})
        sha256 = hashlib.sha256(content).hexdigest()
        _write(place / _file(sha256), content)
        listed = [one.version for one in manifest.baselines if one.name == name]
        taken = [int(one) for one in listed if one.isdecimal()] + [
            int(s.version) for s in self._read(key.name) if s.name == name
        ]
        number = max(taken, default=0) + 1
        while True:
            kept = KeptSet(
                name,
                str(number),
                len(rows),
                sha256,
                description,
                key.name,
                key.version,
                key.digest,
                inputs_digest(manifest),
                time.time_ns() // 1000,
            )
            part = place / f".{name}.{secrets.token_hex(8)}"
            try:
                _write_down(part, orjson.dumps({"format": FORMAT, **asdict(kept)}, option=orjson.OPT_INDENT_2))
                os.link(part, place / f"{name}@{number}.json")  # fails where another process was first
            except FileExistsError:
                number += 1
            else:
                return kept
            finally:
                part.unlink(missing_ok=True)

    def _read(self, model: str) -> Iterator[KeptSet]:
        for path in self.place(model).glob("*.json"):
            try:
                content = orjson.loads(path.read_bytes())
                if content.pop("format") == FORMAT:
                    yield KeptSet(**content)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                LOG.error("%s of %s is no description of a baseline set: %s", path.name, model, type(error).__name__)  # noqa: TRY400


def refuse_name(name: str) -> None:
    """Raises InvalidRequest where a set cannot be called so."""
    if not re.fullmatch(NAME, name):
        raise InvalidRequest("name must be of small letters, digits, dots, dashes and underscores, at most 64")
    if name in {"zeros", "inline", "mask"}:
        raise InvalidRequest(f"name: {name} is a baseline of its own, which needs no rows")


def _file(sha256: str) -> str:
    return f"{sha256}.safetensors"


def _write(path: Path, content: bytes) -> None:
    part = path.with_suffix(f".{secrets.token_hex(8)}")
    _write_down(part, content)
    part.replace(path)


def _write_down(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
