"""Tokens as a network of the package transformers takes them: whole numbers, which it embeds, and an attention mask.

Its twin takes the embeddings of a row's tokens, and the mask behind them, in the place of the tokens, as Captum's
LayerIntegratedGradients does at the embedding layer: all else is computed by the network itself. Where that looks at
the tokens (for the places of those that are no padding, or to find the last one), it is given stand-ins, which are
padding where the tokens are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.catalog.inputs.encodings import TokenEncoding
from service.catalog.inputs.kind import Inputs
from service.catalog.inputs.tokens import SideInput, TokenInputs
from service.errors import CatalogError

Read = Callable[[Any, Tensor], Tensor]
"""From the network's answer, and which places [n, length] are tokens, to outputs [n, outputs]."""


def _logits(answer: Any, _is_token: Tensor) -> Tensor:
    logits: Tensor = answer.logits
    return logits


class NetworkTokens:
    """Tokens of a network, which this prepares for them: `of_rows` and `of_encoded` are modules around it.

    `read` is what is taken of its answer; without one, its logits.
    """

    def __init__(self, inputs: TokenInputs, network: Any, read: Read | None = None) -> None:
        """Raises CatalogError where the manifest declares other tokens than the network has, or other arguments."""
        known = inspect.signature(network.forward).parameters
        unknown = [name for name in inputs.side if name not in known]  # some networks would take it in silence
        if unknown:
            raise CatalogError(f"inputs.side names {unknown[0]!r}, which {type(network).__name__} does not take")
        own = network.config.pad_token_id
        if own is not None and own != inputs.padding:
            raise CatalogError(f"the network pads with the token {own}, the manifest says {inputs.padding}")
        network.config.pad_token_id = inputs.padding  # by which some find the end of a text
        self._network = network
        separator = inputs.separator if inputs.has_parts else None
        self.encoding = TokenEncoding(_embeddings(network, inputs), inputs.length, inputs.padding, separator)
        self.of_rows: nn.Module = OfTokens(network, inputs, read or _logits)
        self.of_encoded = OfEmbeddings(network, inputs, read or _logits)

    def encoding_of(self, inputs: Inputs) -> TokenEncoding:
        """That of rows of these `inputs`, which may be cut to fewer places."""
        (length,) = inputs.shape
        return replace(self.encoding, length=length)

    @contextmanager
    def embeddings_given(self) -> Iterator[None]:
        """Meanwhile the network's embedding layer answers what `of_encoded` is given."""
        layer = self._network.get_input_embeddings()
        self._network.set_input_embeddings(_Given(self.of_encoded.given))
        try:
            yield
        finally:
            self._network.set_input_embeddings(layer)


class OfTokens(nn.Module):
    """Tokens [n, length], as rows have them, to the network's outputs [n, outputs]."""

    def __init__(self, network: nn.Module, inputs: TokenInputs, read: Read) -> None:
        super().__init__()
        self.network, self.inputs, self.read = network, inputs, read

    def forward(self, rows: Tensor) -> Tensor:
        is_token = rows != self.inputs.padding
        separator = self.inputs.separator if self.inputs.has_parts else None
        is_separator = torch.eq(rows, -1 if separator is None else separator)
        is_second = is_separator.cumsum(1) > is_separator
        arguments = _side_arguments(self.inputs, is_token, is_second)
        return self.read(self.network(input_ids=rows.long(), **arguments), is_token)


class OfEmbeddings(nn.Module):
    """The embeddings of tokens and the mask [n, length, width + 1], with the parts of a pair that the network is told
    [n, length, width + 2], to outputs [n, outputs]."""

    def __init__(self, network: nn.Module, inputs: TokenInputs, read: Read) -> None:
        super().__init__()
        self.network, self.inputs, self.read = network, inputs, read
        self.stand_in = 0 if inputs.padding else 1
        self.given: list[Tensor] = []

    def forward(self, rows: Tensor) -> Tensor:
        told = 1 + self.inputs.has_parts
        is_token, is_second = rows[..., -told] != 0, rows[..., -1] != 0
        self.given[:] = [rows[..., :-told]]
        tokens = torch.where(is_token, self.stand_in, self.inputs.padding)
        arguments = _side_arguments(self.inputs, is_token, is_second)
        outputs = self.read(self.network(input_ids=tokens, **arguments), is_token)
        self.given.clear()
        return outputs


class _Given(nn.Module):
    """In the place of the embedding layer: the embeddings that were given."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.given = given

    def forward(self, _tokens: Tensor) -> Tensor:
        return self.given[0]


def _side_arguments(inputs: TokenInputs, is_token: Tensor, is_second: Tensor) -> dict[str, Tensor]:
    """The network's other arguments, [n, length] each."""
    return {name: _side_argument(kind, is_token, is_second) for name, kind in inputs.side.items()}


def _side_argument(kind: SideInput, is_token: Tensor, is_second: Tensor) -> Tensor:
    match kind:
        case "mask":
            return is_token.long()
        case "zeros":
            return torch.zeros_like(is_token, dtype=torch.int64)
        case "parts":
            return (is_token & is_second).long()
    return torch.arange(is_token.shape[1], device=is_token.device).expand_as(is_token)


def _embeddings(network: Any, inputs: TokenInputs) -> NDArray[np.float32]:
    """What the network's embedding layer makes of each token: [vocabulary, width].

    A vocabulary with one token more than the network's is that of a network without a mask token: the layer gets the
    padding's embedding once more, as a token that is attended to. Raises CatalogError for any other vocabulary.
    """
    layer = network.get_input_embeddings()
    if not isinstance(layer, nn.Embedding):
        raise CatalogError("the network has no one layer of word embeddings, so its tokens cannot be explained there")
    own = len(layer.weight)
    if inputs.mask == own and inputs.vocabulary == own + 1 and inputs.padding < own:
        again = torch.cat([layer.weight, layer.weight[inputs.padding, None]])
        layer.weight, layer.num_embeddings = nn.Parameter(again, requires_grad=False), own + 1
    elif own < inputs.vocabulary:
        raise CatalogError(f"the network has {own} tokens, the manifest's vocabulary {inputs.vocabulary}")
    with torch.inference_mode():
        tokens = torch.arange(len(layer.weight), device=layer.weight.device)
        table: NDArray[np.float32] = layer(tokens).cpu().numpy()
    return table
