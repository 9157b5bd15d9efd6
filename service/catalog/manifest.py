"""`manifest.yaml`: what a model version is, which files it consists of, and how its answers are to be read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from service.domain import ModelKey, OutputSpace
from service.errors import CatalogError

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


def _inside(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or not parts.parts:
        raise ValueError("a file of a model must lie inside its folder")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Artefact(_Frozen):
    """The file in production."""

    file: RelativePath
    sha256: Sha256


class Reason(_Frozen):
    """How a feature is named to a consumer when it counts among the principal reasons."""

    code: str
    text: str


class Feature(_Frozen):
    """One input column. `range` is inclusive, in `unit`; `missing` is the value that null stands for."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    title: str
    unit: str = "1"
    range: tuple[FiniteFloat, FiniteFloat]
    missing: FiniteFloat | None = None
    protected: bool = False
    reason: Reason | None = None


class TabularInputs(_Frozen):
    """A table row: one float column a feature, in the order of `features`."""

    kind: Literal["tabular"]
    tensor: str
    features: tuple[Feature, ...] = Field(min_length=1)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the features, in their order."""
        return tuple(feature.name for feature in self.features)


class Outputs(_Frozen):
    """The output tensors by space. The twin is cut at the logit tensor; `link` leads from there to the probability."""

    labels: tuple[str, ...] = Field(min_length=2)
    adverse: str | None = None
    link: Literal["softmax"]
    tensors: Mapping[OutputSpace, str]
    default_space: OutputSpace = OutputSpace.PROBABILITY


class BaselineSet(_Frozen):
    """One version of a named set of baseline rows; `file` is safetensors with one tensor `rows` [size, features]."""

    name: str = Field(pattern=NAME)
    version: str = Field(pattern=NAME)
    size: int = Field(ge=1)
    file: RelativePath
    sha256: Sha256
    description: str = ""


class Defaults(_Frozen):
    """What a request that names nothing gets."""

    method: str = "integrated_gradients"
    baseline: str
    tolerance: float = Field(default=0.01, gt=0, le=1)
    max_evaluations: int = Field(default=4096, ge=1)


class Review(_Frozen):
    """Rules that flag an explanation for review."""

    protected_share: float | None = Field(default=None, ge=0, le=1)


class Manifest(_Frozen):
    """The whole of `manifest.yaml`. The `example` is shown to everybody: it should be nobody's."""

    name: str = Field(pattern=NAME)
    version: str = Field(pattern=NAME)
    title: str
    description: str = ""
    owner: str = ""
    artefact: Artefact
    inputs: TabularInputs
    outputs: Outputs
    baselines: tuple[BaselineSet, ...] = Field(min_length=1)
    defaults: Defaults
    floor: Mapping[OutputSpace, float] = {}
    review: Review = Review()
    example: Mapping[str, FiniteFloat | None]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        names = [feature.name for feature in self.inputs.features]
        sets = [(baseline.name, baseline.version) for baseline in self.baselines]
        if len(set(names)) != len(names):
            raise ValueError("two features have the same name")
        if len(set(sets)) != len(sets):
            raise ValueError("two baseline sets have the same name and version")
        if self.defaults.baseline not in {name for name, _ in sets}:
            raise ValueError(f"the default baseline {self.defaults.baseline!r} is not among the baseline sets")
        if self.outputs.adverse is not None and self.outputs.adverse not in self.outputs.labels:
            raise ValueError(f"the adverse label {self.outputs.adverse!r} is not among the labels")
        if set(self.outputs.tensors) != set(OutputSpace):
            raise ValueError("outputs.tensors names one tensor for `logit` and one for `probability`")
        if set(self.example) != set(names):
            raise ValueError("the example is not one complete instance")
        return self


def read_manifest(folder: Path) -> tuple[Manifest, ModelKey, str]:
    """The manifest of one version folder, the version's key, and the sha256 of the manifest.

    Raises CatalogError when the file is absent, is not what the schema asks for, or names another model or version
    than the folders it lies in.
    """
    path = folder / "manifest.yaml"
    try:
        content = path.read_bytes()
        manifest = Manifest.model_validate(yaml.safe_load(content))
    except (OSError, yaml.YAMLError, ValidationError, RecursionError) as error:
        raise CatalogError(f"{folder.parent.name}/{folder.name}/manifest.yaml: {error}") from error
    if (manifest.name, manifest.version) != (folder.parent.name, folder.name):
        raise CatalogError(f"{folder.parent.name}/{folder.name}/manifest.yaml names {manifest.name}@{manifest.version}")
    key = ModelKey(manifest.name, manifest.version, "sha256:" + manifest.artefact.sha256)
    return manifest, key, "sha256:" + hashlib.sha256(content).hexdigest()


def find_versions(models: Path) -> list[Path]:
    """Every version folder under `models`, by model name, then version: numbers in numeric order, before names."""

    def order(folder: Path) -> tuple[str, bool, int, str]:
        numeric = folder.name.isdecimal()
        return folder.parent.name, not numeric, int(folder.name) if numeric else 0, folder.name

    return sorted((path.parent for path in models.glob("*/*/manifest.yaml")), key=order)
