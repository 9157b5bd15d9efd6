"""`manifest.yaml`: what a model version is, which files it consists of, and how its answers are to be read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from service.catalog.architectures import Cnn
from service.catalog.formats import Artefact, RelativePath, Sha256
from service.catalog.rules import Review
from service.domain import ModelKey, OutputSpace
from service.errors import CatalogError

MASK = "mask"
"""The baseline that masks all tokens but the special ones."""
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    """A table row: one float column a feature, in the order of `features`. `tensor` is an ONNX graph's name for it."""

    kind: Literal["tabular"]
    tensor: str = ""
    features: tuple[Feature, ...] = Field(min_length=1)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the features, in their order."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def protected(self) -> tuple[int, ...]:
        """The places of the protected ones among the attributions."""
        return tuple(place for place, feature in enumerate(self.features) if feature.protected)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input: (features,)."""
        return (len(self.features),)

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The least and the greatest value of every column."""
        return tuple(f.range[0] for f in self.features), tuple(f.range[1] for f in self.features)


class Normalisation(_Frozen):
    """From files: value / 255, less `mean`, over `deviation`, a number a channel each."""

    mean: tuple[FiniteFloat, ...]
    deviation: tuple[PositiveFloat, ...]


class ImageInputs(_Frozen):
    """An image: a float tensor of `shape` (channels, height, width) with values in `range`, inclusive, in `unit`.

    Files are resized as `resize` says (`none`: files of another size are refused), and either normalised or stretched
    over the range. Nested lists are taken as they are.
    """

    kind: Literal["image"]
    tensor: str = ""
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    range: tuple[FiniteFloat, FiniteFloat]
    unit: str = "1"
    resize: Literal["none", "nearest", "bilinear", "bicubic"] = "none"
    normalise: Normalisation | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ImageInputs:
        channels = {self.shape[0]}
        if self.normalise and {len(self.normalise.mean), len(self.normalise.deviation)} != channels:
            raise ValueError("normalise has one mean and one deviation a channel")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Pixels have no names."""
        return ()

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The least and the greatest value of every pixel and channel."""
        values = prod(self.shape)
        return (self.range[0],) * values, (self.range[1],) * values


class TokenInputs(_Frozen):
    """A sequence of `length` integers below `vocabulary`, explained at the network's first embedding.

    Shorter sequences are filled up with `padding`. The baseline `mask` has the token `mask` at every position but
    those of `special` tokens, which, like the padding, stay as they are.
    """

    kind: Literal["tokens"]
    tensor: str
    length: PositiveInt
    vocabulary: PositiveInt
    padding: NonNegativeInt
    mask: NonNegativeInt
    special: tuple[NonNegativeInt, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Positions have no names."""
        return ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input of the artefact: (length,)."""
        return (self.length,)

    @model_validator(mode="after")
    def _consistent(self) -> TokenInputs:
        if max(self.padding, self.mask, *self.special) >= self.vocabulary:
            raise ValueError("padding, mask and special tokens must be below the vocabulary's size")
        return self


Inputs = Annotated[TabularInputs | ImageInputs | TokenInputs, Field(discriminator="kind")]


class Outputs(_Frozen):
    """`link` leads from the logits to the probability.

    An ONNX graph's `tensors` are named by space, and the twin is cut at the logit tensor. Other artefacts answer logits
    and nothing else.
    """

    labels: tuple[str, ...] = Field(min_length=2)
    adverse: str | None = None
    link: Literal["softmax"]
    tensors: Mapping[OutputSpace, str] = {}
    default_space: OutputSpace = OutputSpace.PROBABILITY


class BaselineSet(_Frozen):
    """One version of a named set of baseline rows; `file` is safetensors with one tensor `rows` [size, columns]."""

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


Example = Mapping[str, FiniteFloat | None] | tuple[int, ...] | tuple[Any, ...]
"""A row by feature name; for an image nested lists, for tokens a list."""


class Manifest(_Frozen):
    """The whole of `manifest.yaml`. The `example` is shown to everybody: it should be nobody's."""

    name: str = Field(pattern=NAME)
    version: str = Field(pattern=NAME)
    title: str
    description: str = ""
    owner: str = ""
    artefact: Artefact
    inputs: Inputs
    outputs: Outputs
    baselines: tuple[BaselineSet, ...] = ()
    defaults: Defaults
    floor: Mapping[OutputSpace, float] = {}
    review: Review = Review()
    retention: str = Field(default="standard", pattern=NAME)
    example: Example

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        names = self.inputs.names
        sets = [(baseline.name, baseline.version) for baseline in self.baselines]
        if len(set(names)) != len(names):
            raise ValueError("two features have the same name")
        if len(set(sets)) != len(sets):
            raise ValueError("two baseline sets have the same name and version")
        own = {MASK} if isinstance(self.inputs, TokenInputs) else set()
        if self.defaults.baseline not in own.union(name for name, _ in sets):
            raise ValueError(f"the default baseline {self.defaults.baseline!r} is not among the baseline sets")
        if self.outputs.adverse is not None and self.outputs.adverse not in self.outputs.labels:
            raise ValueError(f"the adverse label {self.outputs.adverse!r} is not among the labels")
        self._check_tensors()
        if isinstance(self.inputs, TabularInputs) != isinstance(self.example, Mapping) or (
            isinstance(self.example, Mapping) and set(self.example) != set(names)
        ):
            raise ValueError("the example is not one complete instance")
        return self

    def _check_tensors(self) -> None:
        """Holds the names of tensors, and the kind of the inputs, against the format of the artefact."""
        form, tensor, tensors = self.artefact.format, self.inputs.tensor, self.outputs.tensors
        if form == "onnx":
            if not tensor:
                raise ValueError("inputs.tensor is missing: the name of the ONNX graph's input")
            if set(tensors) != set(OutputSpace):
                raise ValueError("outputs.tensors names one tensor for `logit` and one for `probability`")
            return
        if isinstance(self.inputs, TokenInputs):
            raise ValueError(f"tokens are explained at the embedding of an ONNX graph, not of the format {form}")
        if tensor or tensors:
            name = "inputs.tensor" if tensor else "outputs.tensors"
            raise ValueError(f"{name} is for ONNX: an artefact in the format {form} has no names for it")
        if isinstance(self.artefact.architecture, Cnn) and not isinstance(self.inputs, ImageInputs):
            raise ValueError("the architecture 'cnn' takes images")


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
    key = ModelKey(manifest.name, manifest.version, manifest.artefact.digest)
    return manifest, key, "sha256:" + hashlib.sha256(content).hexdigest()


def version_order(version: str) -> tuple[bool, int, str]:
    """In which order versions succeed each other: numbers in numeric order, before names."""
    numeric = version.isdecimal()
    return not numeric, int(version) if numeric else 0, version


def find_versions(models: Path) -> list[Path]:
    """Every version folder under `models`, by model name, then in the order of versions."""

    def order(folder: Path) -> tuple[str, tuple[bool, int, str]]:
        return folder.parent.name, version_order(folder.name)

    return sorted((path.parent for path in models.glob("*/*/manifest.yaml")), key=order)
