"""Keeps the chunk shapes that calibration chose for a model on this machine, so that a restart computes the same
bits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from service.domain import ChunkShapes, ModelKey


class Calibrations:
    """One small file a model and environment in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, model: ModelKey, environment: Mapping[str, str]) -> ChunkShapes | None:
        """The shapes that were kept for this model in this environment; None where there are none to be read."""
        try:
            return _shapes(orjson.loads(self._path(model, environment).read_bytes())["rows"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def keep(self, model: ModelKey, environment: Mapping[str, str], shapes: ChunkShapes) -> None:
        """Keeps the shapes. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(model, environment)
        content = {"model": str(model), "environment": dict(environment), "rows": shapes}
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
        part.replace(path)

    def _path(self, model: ModelKey, environment: Mapping[str, str]) -> Path:
        name = orjson.dumps([model.digest, environment], option=orjson.OPT_SORT_KEYS)
        return self._folder / f"{hashlib.sha256(name).hexdigest()[:32]}.json"


def _shapes(fields: Mapping[str, Any]) -> ChunkShapes:
    """The shapes of these fields, with those of each length."""
    return ChunkShapes(**{**fields, "cut": tuple(map(_shapes, fields.get("cut", ())))})
