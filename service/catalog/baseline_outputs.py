"""A version's outputs over its baseline sets, kept: computed once for an artefact, a set and an environment."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import orjson
from safetensors import SafetensorError
from safetensors.numpy import load, save

from service.domain import Floats, ModelKey, OutputSpace

OUTPUTS = "outputs"
"""The folder of outputs in the data folder."""
FORMAT = 2
"""The number of the way in which outputs are computed; files with another number are not read."""
Outputs = Mapping[OutputSpace, Floats]


class KeptOutputs:
    """One file a version, set and environment in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, model: ModelKey, digest: str, environment: Mapping[str, str]) -> Outputs | None:
        """The outputs [K + 1, labels] over the set of that digest and its mean; None where none can be read."""
        try:
            read = load(self._path(model, digest, environment).read_bytes())
            return {OutputSpace(space): values.astype(np.float64) for space, values in read.items()}
        except (OSError, SafetensorError, ValueError):
            return None

    def keep(self, model: ModelKey, digest: str, environment: Mapping[str, str], outputs: Outputs) -> None:
        """Keeps the outputs. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(model, digest, environment)
        part = path.with_suffix(f".{secrets.token_hex(8)}")
        part.write_bytes(save({space.value: np.ascontiguousarray(values) for space, values in outputs.items()}))
        part.replace(path)

    def drop(self, digests: Collection[str]) -> None:
        """Deletes the outputs over the sets of these digests. Raises OSError."""
        names = {_of_set(digest) for digest in digests}
        for path in self._folder.glob("*.safetensors") if names else ():
            of_set, _, rest = path.stem.partition("-")
            if of_set in names or not rest:  # an earlier format, which does not name the set
                path.unlink(missing_ok=True)

    def _path(self, model: ModelKey, digest: str, environment: Mapping[str, str]) -> Path:
        name = orjson.dumps([FORMAT, model.digest, digest, environment], option=orjson.OPT_SORT_KEYS)
        return self._folder / f"{_of_set(digest)}-{hashlib.sha256(name).hexdigest()[:32]}.safetensors"


def _of_set(digest: str) -> str:
    return digest.removeprefix("sha256:")[:32]
