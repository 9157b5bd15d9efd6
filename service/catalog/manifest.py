"""`manifest.yaml`: what a model version is, which files it consists of, and how its answers are to be read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from service.catalog.formats import Artefact, RelativePath, Sha256
from service.catalog.inputs.features import Category, Feature, Reason
from service.catalog.inputs.registry import DeclaredInputs
from service.catalog.outputs.kind import PREDICTED
from service.catalog.outputs.registry import Outputs
from service.catalog.plain_yaml import read_yaml
from service.catalog.refusals import fields
from service.catalog.review_rules import Review, named_by
from service.domain import ModelKey, OutputSpace
from service.errors import CatalogError

__all__ = [
    "NAME",
    "PREDICTED",
    "BaselineSet",
    "Defaults",
    "Example",
    "Feature",
    "Manifest",
    "Outputs",
    "Reason",
    "Review",
    "find_versions",
    "read_manifest",
]

PARITY = 1e-4
"""The largest relative difference between twin and artefact, where the manifest does not allow another."""
MAX_PARITY = 0.25
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaselineSet(_Frozen):
    """One version of a named set of baseline rows; `file` is safetensors with one tensor `rows` [size, columns]."""

    name: str = Field(pattern=NAME)
    version: str = Field(pattern=NAME)
    size: int = Field(ge=1)
    file: RelativePath
    sha256: Sha256
    description: str = ""

    @property
    def digest(self) -> str:
        """The digest by which plans and records name the set."""
        return "sha256:" + self.sha256


class Defaults(_Frozen):
    """The parameters of a request that names none."""

    method: str = "integrated_gradients"
    baseline: str
    tolerance: float = Field(default=0.01, gt=0, le=1)
    max_evaluations: int = Field(default=4096, ge=1)


class Faithfulness(_Frozen):
    """What explanations by the default method must reach for the version to pass its check; None: it is not measured.

    `most_surviving`: the mean rank correlation of attributions before and after all weights are replaced by random
    ones. `least_against_random`: by how much random orders must do worse than the attributions' at deletion, in the
    mean. `most_sensitive`: the mean largest relative change of the attributions near an input. Of so many `rows`.
    """

    most_surviving: float | None = Field(default=None, ge=-1, le=1)
    least_against_random: float | None = None
    most_sensitive: float | None = Field(default=None, gt=0)
    rows: int = Field(default=16, ge=1, le=1000)


Segments = tuple[Mapping[str, str | int], ...]
Example = Mapping[str, Category | FiniteFloat | tuple[str, str] | Segments | None] | tuple[int, ...] | tuple[Any, ...]
"""A row by feature name; for an image nested lists or a file, for tokens a list, a text, a pair of them or a file; of
texts also their segments."""


class Manifest(_Frozen):
    """The whole of `manifest.yaml`. The `example` is shown to everybody: it should be nobody's.

    `parity` is the largest relative difference that is accepted between twin and artefact: for a quantised artefact
    what its rounding does, since the twin does not round.
    """

    name: str = Field(pattern=NAME)
    version: str = Field(pattern=NAME)
    title: str
    description: str = ""
    owner: str = ""
    artefact: Artefact
    inputs: DeclaredInputs
    outputs: Outputs
    baselines: tuple[BaselineSet, ...] = ()
    defaults: Defaults
    floor: Mapping[OutputSpace, float] = {}
    parity: float = Field(default=PARITY, gt=0, le=MAX_PARITY)
    review: Review = Review()
    faithfulness: Faithfulness = Faithfulness()
    retention: str = Field(default="standard", pattern=NAME)
    example: Example

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        sets = [(baseline.name, baseline.version) for baseline in self.baselines]
        if len(set(sets)) != len(sets):
            raise ValueError("two baseline sets have the same name and version")
        own = {self.inputs.own_baseline}
        if self.defaults.baseline not in own.union(name for name, _ in sets):
            raise ValueError(f"the default baseline {self.defaults.baseline!r} is not among the baseline sets")
        self._check_tensors()
        self.outputs.check_inputs(self.inputs)
        if self.baselines and self.inputs.sets_obstacle is not None:
            raise ValueError(self.inputs.sets_obstacle)
        self._check_review()
        self.inputs.check_example(self.example)
        return self

    def _check_review(self) -> None:
        """Checks that the quantities in review rules exist for these outputs, and segments for these inputs. Raises
        ValueError."""
        unknown = sorted(self.review.segments - {*self.inputs.segment_names})
        if unknown:
            raise ValueError(f"review: the inputs list no segment {unknown[0]!r}; name it in their `segments`")
        for rule in self.review.all_rules.values():
            for name, of in named_by(rule):
                try:
                    self.outputs.check_quantity(name, of)
                except ValueError as error:
                    raise ValueError(f"review: {error}") from None

    def _check_tensors(self) -> None:
        """Checks the names of tensors, and the kind of the inputs, against the format of the artefact."""
        form, tensors = self.artefact.format, self.outputs.tensors
        self.inputs.check_artefact(self.artefact)
        if form == "onnx":
            if not all(self.inputs.tensor_names):
                raise ValueError("inputs.tensor is missing: the name of the ONNX graph's input")
            self.outputs.check_format(form)
            return
        if tensors:
            raise ValueError(f"outputs.tensors is for ONNX: an artefact in the format {form} has no names for it")
        self.outputs.check_format(form)


@lru_cache(maxsize=4)
def _parsed(content: bytes) -> Manifest:
    """The same object for the same bytes: a check reads a manifest seven times, and 10,000 features take 3 s."""
    return Manifest.model_validate(read_yaml(content))


def read_manifest(folder: Path) -> tuple[Manifest, ModelKey, str]:
    """The manifest of one version folder, the version's key, and the sha256 of the manifest.

    Raises CatalogError when the file is absent, is not what the schema asks for, or names another model or version
    than the folders it lies in.
    """
    path = folder / "manifest.yaml"
    try:
        content = path.read_bytes()
        manifest = _parsed(content)
    except OSError as error:  # its text would reveal where the file lies
        raise CatalogError(f"{folder.parent.name}/{folder.name}/manifest.yaml: {error.strerror}") from error
    except ValidationError as error:
        raise CatalogError(f"{folder.parent.name}/{folder.name}/manifest.yaml: {fields(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CatalogError(f"{folder.parent.name}/{folder.name}/manifest.yaml: {error}") from error
    if (manifest.name, manifest.version) != (folder.parent.name, folder.name):
        raise CatalogError(f"{folder.parent.name}/{folder.name}/manifest.yaml names {manifest.name}@{manifest.version}")
    key = ModelKey(manifest.name, manifest.version, manifest.artefact.digest)
    return manifest, key, "sha256:" + hashlib.sha256(content).hexdigest()


def version_order(version: str) -> tuple[bool, int, str]:
    """A sort key: numeric versions in numeric order, before names."""
    numeric = version.isdecimal()
    return not numeric, int(version) if numeric else 0, version


def find_versions(models: Path) -> list[Path]:
    """Every version folder under `models`, by model name, then in the order of versions.

    Folders that cannot be read are among them, so that reading their manifest says why. The versions of a model
    whose own folder cannot be looked into are called `*`.
    """

    def order(folder: Path) -> tuple[str, tuple[bool, int, str]]:
        return folder.parent.name, version_order(folder.name)

    return sorted((version for model in _within(models) for version in _versions_of(model)), key=order)


def _within(models: Path) -> list[Path]:
    try:
        return [*models.iterdir()]
    except FileNotFoundError:
        return []
    except OSError:
        return [models / "*"]


def _versions_of(model: Path) -> list[Path]:
    try:
        return [folder for folder in model.iterdir() if _is_version(folder)]
    except NotADirectoryError:
        return []
    except OSError:
        return [model / "*"]


def _is_version(folder: Path) -> bool:
    """Whether there is a manifest, or something keeps it from being found: no rights, or a link to nowhere."""
    try:
        (folder / "manifest.yaml").lstat()
    except NotADirectoryError:
        return False
    except FileNotFoundError:
        return folder.is_symlink() and not folder.exists()
    except OSError:
        pass
    return True
