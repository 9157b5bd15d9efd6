"""`config.json` of a Hugging Face folder: which network its weights belong to.

A folder is made by whoever trained the model, so what its configuration asks for is checked before the package reads
it: code of its own, or a network that is none of the package's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orjson import JSONDecodeError, loads

from service.errors import CatalogError

CLASSIFIER = "ForSequenceClassification"
CAUSAL = "ForCausalLM", "LMHeadModel"
Config = Mapping[str, Any]


def read_config(content: bytes, file: str, *, is_encoder: bool = False) -> Config:
    """The configuration of a sequence classifier, a causal language model, or a network whose tokens' embeddings are
    pooled.

    Raises CatalogError where it is no such thing, names code of its own, or says that the weights are quantised.
    """
    config = read_object(content, file)
    if config.get("auto_map"):
        raise CatalogError(
            f"{file} has an auto_map: the network is code in the folder, which is never run. Export it to ONNX, or "
            "save the weights as those of an architecture that the package transformers has"
        )
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", "its own way") if isinstance(method, Mapping) else method
        raise CatalogError(
            f"{file} says that the weights are quantised ({method}); save the model without that, or export it to ONNX"
        )
    names = config.get("architectures")
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise CatalogError(f"{file} names no one network in `architectures`; save the model with save_pretrained")
    if not (is_encoder or names[0].endswith((CLASSIFIER, *CAUSAL))):
        raise CatalogError(
            f"{file} names the network {names[0]}; of the networks of transformers those are served that classify or "
            f"score texts (...{CLASSIFIER}), and those that continue them (...{CAUSAL[0]})"
        )
    if not isinstance(config.get("model_type"), str):
        raise CatalogError(f"{file} names no model_type; save the model with save_pretrained")
    return config


def is_causal(config: Config) -> bool:
    """Whether it is that of a network that continues texts."""
    return str(config["architectures"][0]).endswith(CAUSAL)


def read_object(content: bytes, file: str) -> Config:
    """The object in a JSON file. Raises CatalogError."""
    try:
        value = loads(content)
    except JSONDecodeError as error:
        raise CatalogError(f"{file} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise CatalogError(f"{file} holds no JSON object")
    return value
