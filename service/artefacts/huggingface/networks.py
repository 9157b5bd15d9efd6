"""A network of the package transformers with its weights, made of the bytes of its files and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from service.artefacts.huggingface.configs import Config, is_causal, read_config
from service.artefacts.huggingface.library import transformers
from service.artefacts.reported import reported
from service.catalog.manifest import Manifest
from service.errors import CatalogError

EXAMPLES = 2
"""Rows by which a network is tried."""
ATTENTION = "eager"
"""The one that every architecture has. Its products and softmax have second derivatives, and the same bits wherever a
row stands; fused kernels have no second derivative, and on a GPU their gradients are summed in any order."""
WEIGHTS = ".safetensors"
POOLER = "pooler."
CLASSIFIERS = "a classifier", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"
CAUSAL_MODELS = "a causal language model", "MODEL_FOR_CAUSAL_LM_MAPPING"
ENCODERS = "an encoder", "MODEL_MAPPING"
"""What they are called, and where the package lists their networks."""


@contextmanager
def example_rows(manifest: Manifest) -> Iterator[NDArray[np.float32]]:
    """Whole rows [`EXAMPLES`, columns] for a network to be tried with; whatever it raises becomes a CatalogError."""
    rows = manifest.inputs.whole_rows(EXAMPLES)
    assert rows is not None
    try:
        yield rows
    except Exception as error:  # whatever the network's own code raises
        raise CatalogError(
            f"the network does not take a row of {rows.shape[1]} tokens, the manifest's length: {reported(error)}"
        ) from error


def read_network(contents: Mapping[str, bytes], config_file: str, *, is_encoder: bool = False) -> nn.Module:
    """The classifier or the causal language model of a folder's files, in float32, in evaluation mode, on the CPU; or
    the encoder, which answers an embedding for each token.

    Raises CatalogError where the configuration is not one of the package's, or weights are missing or do not fit.
    """
    package, config = transformers(), read_config(contents[config_file], config_file, is_encoder=is_encoder)
    what, mapping = ENCODERS if is_encoder else CAUSAL_MODELS if is_causal(config) else CLASSIFIERS
    try:
        configuration = package.CONFIG_MAPPING[config["model_type"]].from_dict({**config})
        network_class = getattr(package, mapping)[type(configuration)]
    except Exception as error:  # the package raises anything for a configuration that it does not know
        raise CatalogError(
            f"{config_file} is not the configuration of {what} of transformers {package.__version__} "
            f"({config['model_type']}): {reported(error)}"
        ) from error
    weights = _read_weights(contents)
    try:
        network, loading = network_class.from_pretrained(
            None,
            config=configuration,
            state_dict=weights,
            attn_implementation=ATTENTION,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            local_files_only=True,
        )
    except Exception as error:
        raise CatalogError(f"transformers cannot make a {config['architectures'][0]}: {reported(error)}") from error
    if is_encoder:  # no pooling reads what the network itself makes of its first token
        loading["missing_keys"] = [name for name in loading["missing_keys"] if not name.startswith(POOLER)]
    _check_weights(loading, config, config_file)
    network.config.use_cache = False
    network.config.return_dict = True  # some say otherwise; the logits are asked for by their name
    module: nn.Module = network.eval().requires_grad_(requires_grad=False)
    return module


def _read_weights(contents: Mapping[str, bytes]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file, content in contents.items():
        if not file.endswith(WEIGHTS):
            continue
        try:
            weights |= load(content)
        except (SafetensorError, ValueError, KeyError) as error:
            raise CatalogError(f"{file} is not a valid safetensors file: {reported(error)}") from error
    return weights


def _check_weights(loading: Mapping[str, Any], config: Config, config_file: str) -> None:
    """Raises CatalogError where a weight would be drawn at random, since the files lack it or it has another size."""
    missing, other, name = (
        sorted(loading["missing_keys"]),
        sorted(loading["mismatched_keys"]),
        config["architectures"][0],
    )
    if other:
        tensor, found, expected = other[0]
        labels = (
            "" if "id2label" in config else f"; {config_file} has no id2label, which says how many labels there are"
        )
        raise CatalogError(
            f"{tensor} has the shape {[*found]}, {name} with this configuration has {[*expected]}{labels}"
        )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CatalogError(f"the weights lack {missing[0]}{more}, which {name} needs: is a file missing?")
