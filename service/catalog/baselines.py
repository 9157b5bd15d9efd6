"""Baseline sets that were uploaded or built for a version after it was added, kept in the data folder.

A set belongs to one artefact and one order of inputs. For another it is stale, and refused: rows for an older model may
have nothing to do with a newer one's training data.

It also belongs to a tenant, and no other can use it: by comparing inputs with a set one can find its rows, by
bisection. Only sets that are kept for all tenants are shared, as those of the manifests are.

Records name sets by digest, so a digest never means other rows. Rows are removed from a version of a set
for one reason only, that they are or may be a person's: it keeps the remaining rows, under a new digest, and lists
the digests that it had before.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors.numpy import load, save

from service.access.permissions import OPERATOR_TENANT
from service.catalog.manifest import NAME, BaselineSet, Manifest
from service.catalog.version_files import read_verified, stored_rows
from service.domain import ModelKey
from service.errors import InvalidRequest

LOG = logging.getLogger("answerable.catalog")
BASELINES = "baselines"
"""The folder of sets in the data folder."""
SHARED = "shared"
"""The folder of descriptions of the sets that all tenants share."""
LOCK = ".lock"
MAX_SETS = 100
"""The most versions with rows that a tenant may keep for one model: each takes memory in every worker."""
MAX_ROWS = 1024
FORMAT = 1


@dataclass(frozen=True, slots=True)
class KeptSet:
    """A version of a set: what it was made for, and when, in microseconds since the epoch.

    `inputs` is the digest of the names, or the shape, of the inputs it was made for. `tenant` owns it, None for sets
    that all share; sets from before tenants had their own are the operator's. `subjects` has for each row the token of
    the person it belongs to, None where it belongs to nobody; it is empty where no row belongs to anybody. `erased` are
    the digests that the set had before rows were removed. When no rows remain, `size` is 0 and no request can name the
    set.
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
    tenant: str | None = OPERATOR_TENANT
    subjects: tuple[str | None, ...] = ()
    erased: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The digest by which plans and records name its rows."""
        return "sha256:" + self.sha256

    def is_seen_by(self, tenant: str | None) -> bool:
        """Whether the tenant can name it; with None, whether every tenant can."""
        return self.tenant is None or self.tenant == tenant

    def is_same(self, other: KeptSet) -> bool:
        """Whether both are the same version of the same set, regardless of their rows."""
        names = [(one.model, one.tenant, one.name, one.version) for one in (self, other)]
        return names[0] == names[1]

    @property
    def listed(self) -> BaselineSet:
        """The set as a manifest in its folder would list it."""
        return BaselineSet(
            name=self.name,
            version=self.version,
            size=self.size,
            file=_file(self.sha256),
            sha256=self.sha256,
            description=self.description,
        )

    def stale_for(self, key: ModelKey, manifest: Manifest) -> str | None:
        """Why the set cannot be used with that version; None if it can."""
        if not self.size:
            return "its rows were erased"
        if self.inputs != inputs_digest(manifest):
            made_for = f"{self.model}@{self.model_version}"
            return f"it was made for the inputs of {made_for}, which are others, or in another order"
        if self.model_digest != key.digest:
            made_for = f"{self.model}@{self.model_version} ({self.model_digest[:19]}…)"
            return f"it was made for {made_for}, and not for this artefact; upload or build it again"
        return None


def inputs_digest(manifest: Manifest) -> str:
    """The digest of what the columns of a row are: their names in order, the shape, and what the numbers of categories
    mean."""
    return "sha256:" + hashlib.sha256(orjson.dumps(manifest.inputs.identity)).hexdigest()


class KeptSets:
    """The sets in `folder`, by model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def place(self, model: str) -> Path:
        """The folder that the files of a model's sets are relative to."""
        return self._folder / model

    def of(self, model: str) -> tuple[KeptSet, ...]:
        """Every version of every set of the model, in the order in which they were made; unreadable descriptions are
        logged."""
        return tuple(sorted(self._read(model), key=lambda one: (one.created, one.name, int(one.version))))

    def keep(
        self,
        key: ModelKey,
        manifest: Manifest,
        name: str,
        rows: NDArray[np.floating],
        description: str,
        *,
        tenant: str | None = OPERATOR_TENANT,
        subjects: Sequence[str | None] = (),
    ) -> KeptSet:
        """Keeps the rows [size, columns] as the next version of the tenant's set of that name; for None it is shared.

        Version numbers count only sets that the tenant can see, so they reveal nothing about others' sets. `subjects`
        as of a `KeptSet`. Raises InvalidRequest, OSError.
        """
        refuse_name(name)
        if manifest.inputs.sets_obstacle is not None:
            raise InvalidRequest(manifest.inputs.sets_obstacle)
        if not 1 <= len(rows) <= MAX_ROWS:
            raise InvalidRequest(f"a baseline set has from 1 to {MAX_ROWS} rows, not {len(rows)}")
        with self.alone():
            descriptions = self._descriptions(key.name, tenant)
            descriptions.mkdir(mode=0o700, parents=True, exist_ok=True)
            listed = [one.version for one in manifest.baselines if one.name == name]
            others = [*self._read(key.name)]
            if sum(one.tenant == tenant and one.size > 0 for one in others) >= MAX_SETS:
                raise InvalidRequest(f"there are {MAX_SETS} versions of sets for {key.name} already; remove one first")
            seen = [one.version for one in others if one.name == name and (tenant is None or one.is_seen_by(tenant))]
            number = max((int(one) for one in [*listed, *seen] if one.isdecimal()), default=0) + 1
            sha256 = self._write_rows(key.name, tenant, rows)
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
                    tenant,
                    tuple(subjects),
                )
                part = descriptions / f".{name}.{secrets.token_hex(8)}"
                try:
                    _write_down(part, _described(kept))
                    os.link(part, descriptions / f"{name}@{number}.json")  # fails where there is an unreadable one
                except FileExistsError:
                    number += 1
                else:
                    return kept
                finally:
                    part.unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A lock: all other threads and processes that change sets wait. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            yield

    @property
    def models(self) -> list[str]:
        """The names of all models that sets were ever kept for."""
        return sorted(path.name for path in self._folder.glob("*") if path.is_dir())

    def rows_of(self, kept_set: KeptSet) -> NDArray[np.floating]:
        """The rows [size, columns] of a set, as they are stored. Raises CatalogError."""
        content = read_verified(self.place(kept_set.model), _file(kept_set.sha256), kept_set.sha256)
        return load(content)["rows"]

    def leave(self, kept_set: KeptSet, rows: NDArray[np.floating], subjects: Sequence[str | None]) -> KeptSet:
        """Reduces a set to these of its rows, with their `subjects`, or to none; returns the reduced set. Raises
        OSError.

        The file of its earlier rows is left to `sweep`, in case another set has the same rows.
        """
        erased = tuple(dict.fromkeys([*kept_set.erased, kept_set.digest]))
        if len(rows):
            sha256 = self._write_rows(kept_set.model, kept_set.tenant, rows)
            reduced = replace(kept_set, size=len(rows), sha256=sha256, subjects=tuple(subjects), erased=erased)
        else:
            reduced = replace(kept_set, size=0, description="", subjects=(), erased=erased)
        _write(
            self._descriptions(kept_set.model, kept_set.tenant) / f"{kept_set.name}@{kept_set.version}.json",
            _described(reduced),
        )
        return reduced

    def sweep(self, model: str) -> frozenset[str]:
        """Deletes the files of rows that no set of the model has any more; returns their digests, also those of earlier
        sweeps.

        Raises OSError.
        """
        sets = [*self._read(model)]
        lost = {digest for one in sets for digest in one.erased} - {one.digest for one in sets if one.size}
        for digest in lost:
            (self.place(model) / _file(digest.removeprefix("sha256:"))).unlink(missing_ok=True)
        return frozenset(lost)

    def _descriptions(self, model: str, tenant: str | None) -> Path:
        """The folder of the descriptions of a tenant's sets; names are unique in it."""
        place = self.place(model)
        if tenant is None:
            return place / SHARED
        return place if tenant == OPERATOR_TENANT else place / _pseudonym(tenant)

    def _write_rows(self, model: str, tenant: str | None, rows: NDArray[np.floating]) -> str:
        """Writes the file of the rows, beside those of all other sets of the model; returns its SHA-256.

        The same rows of two tenants are two files: otherwise the time that it takes to keep a set would reveal whether
        another tenant has it, since outputs over a set are kept by its digest.
        """
        owner = None if tenant is None or tenant == OPERATOR_TENANT else {"owner": _pseudonym(tenant)}
        content = save({"rows": stored_rows(rows)}, owner)
        sha256 = hashlib.sha256(content).hexdigest()
        _write(self.place(model) / _file(sha256), content)
        return sha256

    def _read(self, model: str) -> Iterator[KeptSet]:
        place = self.place(model)
        for path in [*place.glob("*.json"), *place.glob("*/*.json")]:
            try:
                content = orjson.loads(path.read_bytes())
                if content.pop("format") == FORMAT:
                    content |= {name: tuple(content[name]) for name in ("subjects", "erased") if name in content}
                    yield KeptSet(**content)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                LOG.error("%s of %s is no description of a baseline set: %s", path.name, model, type(error).__name__)  # noqa: TRY400


def refuse_name(name: str) -> None:
    """Raises InvalidRequest where a set cannot have that name."""
    if not re.fullmatch(NAME, name):
        raise InvalidRequest("name must be of small letters, digits, dots, dashes and underscores, at most 64")
    if name in {"zeros", "inline", "mask"}:
        raise InvalidRequest(f"name: {name} is a baseline of its own, which needs no rows")


def _described(kept: KeptSet) -> bytes:
    return orjson.dumps({"format": FORMAT, **asdict(kept)}, option=orjson.OPT_INDENT_2)


def _pseudonym(tenant: str) -> str:
    """The tenant's name as a part of a path, whatever characters it has."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:32]


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
