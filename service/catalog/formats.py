"""What a manifest declares about a file, and about the artefact: its format, digest, and the network of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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

Format = Literal["onnx", "pt2", "safetensors", "transformers"]
PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib"}
"""Suffixes of files that are opened by unpickling, which runs whatever code they hold."""


class Artefact(BaseModel):
    """The file in production. Its `format` follows from its suffix where it is not declared.

    Weights in safetensors need an `architecture`, the network that they belong to. Of a Hugging Face folder, whose
    format is `transformers`, it is the config.json, and `files` are all others by their sha256: weights and tokenizer;
    of an ONNX file they are those that it keeps weights in.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: RelativePath
    sha256: Sha256
    format: Format
    architecture: Architecture | None = None
    files: Mapping[RelativePath, Sha256] = {}

    @model_validator(mode="before")
    @classmethod
    def _format_of_suffix(cls, declared: Any) -> Any:
        if not isinstance(declared, dict) or not isinstance(declared.get("file"), str):
            return declared
        form = PurePosixPath(declared["file"]).suffix.lower().removeprefix(".")
        others = declared.get("files")
        are_numbers = declared.get("format", form) == "onnx"  # whatever they are called, and read as nothing else
        for file in (declared["file"], *(others if isinstance(others, dict) and not are_numbers else ())):
            suffix = PurePosixPath(str(file)).suffix.lower()
            if suffix in PICKLES:
                raise ValueError(
                    f"a {suffix} file is a pickle, which is never opened: export ONNX, .pt2 or .safetensors"
                )
        return {"format": form, **declared}

    @model_validator(mode="after")
    def _consistent(self) -> Artefact:
        if self.format == "safetensors" and self.architecture is None:
            raise ValueError("architecture is missing: a safetensors file holds weights and no network")
        if self.format != "safetensors" and self.architecture is not None:
            raise ValueError(f"architecture is for safetensors: a file in the format {self.format} has its own network")
        if self.format not in ("transformers", "onnx") and self.files:
            raise ValueError(
                f"files are those of a Hugging Face folder, or the weights of an ONNX file: the format {self.format} "
                "has one file"
            )
        if self.format == "transformers" and not any(file.endswith(".safetensors") for file in self.files):
            raise ValueError("files names no .safetensors: the weights of a Hugging Face folder, and its other files")
        return self

    @property
    def takes_tokens(self) -> bool:
        """Whether all artefacts of this format take tokens."""
        return self.format == "transformers"

    @property
    def sha256_by_file(self) -> Mapping[str, str]:
        """Every file, and its digest."""
        return {self.file: self.sha256, **self.files}

    @property
    def digest(self) -> str:
        """The digest of all that determines what is computed: the files, and the network of their weights."""
        others = [f"{sha256} {file}" for file, sha256 in sorted(self.files.items())]
        if self.architecture is not None:
            others.append(self.architecture.model_dump_json(exclude_defaults=True))
        if not others:
            return "sha256:" + self.sha256
        return "sha256:" + hashlib.sha256(" ".join([self.sha256, *others]).encode()).hexdigest()
