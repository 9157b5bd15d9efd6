"""The chunk shapes that calibration chose for a model on this machine, kept so that a restart has the same bits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from service.domain import ChunkShapes, ModelKey


@dataclass(frozen=True)
class Calibration:
    """The shapes for `whole` rows of a model, and for those cut to each shorter length, `cut`, ascending."""

    whole: ChunkShapes
    cut: tuple[ChunkShapes, ...] = ()

    def at(self, length: int | None) -> ChunkShapes:
        """The shapes for rows of that length; of a length that was not calibrated, as many rows as of whole ones."""
        known = {shapes.length: shapes for shapes in self.cut}
        return known.get(length) or replace(self.whole, length=length)


class Calibrations:
    """One small file a model and environment in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, model: ModelKey, environment: Mapping[str, str]) -> Calibration | None:
        """What was kept for this model in this environment; None where there are none to be read."""
        try:
            whole = orjson.loads(self._path(model, environment).read_bytes())["rows"]
            return Calibration(_shapes(whole), tuple(map(_shapes, whole.get("cut", ()))))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def keep(self, model: ModelKey, environment: Mapping[str, str], calibration: Calibration) -> None:
        """Keeps a calibration. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(model, environment)
        rows = {**asdict(calibration.whole), "cut": calibration.cut}
        content = {"model": str(model), "environment": dict(environment), "rows": rows}
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
        part.replace(path)

    def _path(self, model: ModelKey, environment: Mapping[str, str]) -> Path:
        name = orjson.dumps([model.digest, environment], option=orjson.OPT_SORT_KEYS)
        return self._folder / f"{hashlib.sha256(name).hexdigest()[:32]}.json"


def _shapes(fields: Mapping[str, Any]) -> ChunkShapes:
    """The shapes of these fields, beside which there may be those of shorter rows."""
    return ChunkShapes(**{name: value for name, value in fields.items() if name != "cut"})
