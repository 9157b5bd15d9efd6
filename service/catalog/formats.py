"""What a manifest declares about a file, and about the artefact: its format, digest, and the network of its weights."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from service.catalog.architectures import Architecture


def _inside(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or not parts.parts:
        raise ValueError("a file of a model must lie inside its folder")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Format = Literal["onnx", "pt2", "safetensors"]
PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
"""Suffixes of files that are opened by unpickling, which runs whatever code they hold."""


class Artefact(BaseModel):
    """The file in production. Its `format` follows from its suffix where it is not declared.

    Weights in safetensors need an `architecture`, the network that they belong to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: RelativePath
    sha256: Sha256
    format: Format
    architecture: Architecture | None = None

    @model_validator(mode="before")
    @classmethod
    def _format_of_suffix(cls, declared: Any) -> Any:
        if not isinstance(declared, dict) or not isinstance(declared.get("file"), str):
            return declared
        suffix = PurePosixPath(declared["file"]).suffix.lower()
        if suffix in PICKLES:
            raise ValueError(f"a {suffix} file is a pickle, which is never opened: export ONNX, .pt2 or .safetensors")
        return {"format": suffix.removeprefix("."), **declared}

    @model_validator(mode="after")
    def _consistent(self) -> Artefact:
        if self.format == "safetensors" and self.architecture is None:
            raise ValueError("architecture is missing: a safetensors file holds weights and no network")
        if self.format != "safetensors" and self.architecture is not None:
            raise ValueError(f"architecture is for safetensors: a file in the format {self.format} has its own network")
        return self

    @property
    def digest(self) -> str:
        """The digest of all that determines what is computed: the file, and the network of its weights."""
        if self.architecture is None:
            return "sha256:" + self.sha256
        network = self.architecture.model_dump_json(exclude_defaults=True)
        return "sha256:" + hashlib.sha256(f"{self.sha256} {network}".encode()).hexdigest()
