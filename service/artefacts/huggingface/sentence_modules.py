"""What a folder of sentence-transformers does with the embeddings of a text's tokens: it pools them, and may normalise
what comes of it.

`modules.json` lists the modules, each with the folder of its own configuration: the network, a pooling, and perhaps a
normalisation. Nothing of them is run; the same is computed here (`service.artefacts.huggingface.pooling`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orjson import JSONDecodeError, dumps, loads

from service.artefacts.huggingface.configs import read_object
from service.errors import CatalogError

MODULES = "modules.json"
PACKAGE = "sentence_transformers."
NETWORK, POOLING, NORMALISATION = "Transformer", "Pooling", "Normalize"
MODES = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD_NAMES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""By which configurations name the modes, each with true or false, before version 5.3 of the package."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a text's embedding is made of those of its tokens: by the `modes`, one behind the other, and divided by its
    norm where it `is_normalised`."""

    modes: tuple[str, ...]
    is_normalised: bool

    def __str__(self) -> str:
        return f"pooling {' and '.join(self.modes)}" + (", normalised" if self.is_normalised else "")


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """The modules of a folder: the folder of its network, `.` for its own, and of its pooling, and what that does."""

    network: str
    pooling_config: str
    pooling: Pooling


def read_modules(contents: Mapping[str, bytes]) -> SentenceModules:
    """The modules that are listed, by the files' names in the folder. Raises CatalogError."""
    listed = _listed(contents[MODULES])
    names = [_name(module) for module in listed]
    if names not in ([NETWORK, POOLING], [NETWORK, POOLING, NORMALISATION]):
        raise CatalogError(
            f"{MODULES} lists {', '.join(names) or 'nothing'}; served are folders of a {NETWORK}, a {POOLING} and "
            f"perhaps a {NORMALISATION}: export the others to ONNX, with the embedding as output"
        )
    network, pooling = (str(module.get("path") or ".") for module in listed[:2])
    config = f"{pooling}/config.json"
    if config not in contents:
        raise CatalogError(f"the folder has no {config}, which {MODULES} names; fetch all files of the model")
    return SentenceModules(network, config, Pooling(_modes(contents[config], config), len(names) == 3))


def modules_of(pooling: Pooling) -> dict[str, bytes]:
    """The files that say the same, of a folder that does not say it itself."""
    names = [NETWORK, POOLING, *([NORMALISATION] if pooling.is_normalised else [])]
    modules = [
        {"idx": at, "name": str(at), "path": f"{at}_{name}" if at else "", "type": f"{PACKAGE}models.{name}"}
        for at, name in enumerate(names)
    ]
    config = {"pooling_mode": list(pooling.modes)}
    return {MODULES: dumps(modules), f"1_{POOLING}/config.json": dumps(config)}


def _listed(content: bytes) -> Sequence[Mapping[str, Any]]:
    try:
        modules = loads(content)
    except JSONDecodeError as error:
        raise CatalogError(f"{MODULES} is no JSON: {error}") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CatalogError(f"{MODULES} is no list of modules")
    return modules


def _name(module: Mapping[str, Any]) -> str:
    """The class of a module. Raises CatalogError where it is none of the package's."""
    own = module.get("type")
    if not isinstance(own, str) or not own.startswith(PACKAGE):
        raise CatalogError(
            f"{MODULES} names a module {own!r}, which is code of the folder's own and is never run; export the model "
            "to ONNX, with the embedding as output"
        )
    return own.rpartition(".")[2]


def _modes(content: bytes, file: str) -> tuple[str, ...]:
    config = read_object(content, file)
    named = config.get("pooling_mode")
    if named is None:
        named = [mode for name, mode in OLD_NAMES.items() if config.get(name)] or ["mean"]
    modes = (named,) if isinstance(named, str) else tuple(named)
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise CatalogError(f"{file} has the pooling mode {unknown[0] if unknown else None!r}; the modes are {MODES}")
    return modes
