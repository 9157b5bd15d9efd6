"""Prompts as a causal network of the package transformers takes them, and the log-probabilities of what follows them.

The artefact is given whole numbers and an attention mask, each continuation in a pass of its own, as when it writes.
Its twin is given the embeddings of the prompt's tokens, and in the place of the attention mask one for each pair of
tokens, by which two continuations stand behind one prompt and do not see each other. Of both, the network's last layer
computes nothing but what is read.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from service.catalog.inputs.prompts import PromptEncoding, PromptInputs
from service.catalog.outputs.tokens import Tokens
from service.errors import CatalogError


class NetworkPrompts:
    """Prompts of a network, which this prepares for them: `of_rows` answers rows, and `body` is what is traced of it;
    `around` makes of that trace a module from encoded rows to the outputs."""

    def __init__(self, inputs: PromptInputs, outputs: Tokens, network: Any) -> None:
        """Raises CatalogError where the manifest declares other tokens than the network has."""
        layer, head = network.get_input_embeddings(), network.get_output_embeddings()
        if not isinstance(layer, nn.Embedding) or head is None:
            raise CatalogError("the network has no one layer of word embeddings, so its prompts cannot be explained")
        size = len(layer.weight)
        if size != inputs.vocabulary:
            raise CatalogError(f"the network has {size} tokens, the manifest's vocabulary {inputs.vocabulary}")
        if outputs.likeliest > size:
            raise CatalogError(f"outputs.likeliest is {outputs.likeliest}, and there are {size} tokens")
        selected = _Selected(head)
        network.set_output_embeddings(selected)
        with torch.inference_mode():
            table: NDArray[np.float32] = layer(torch.arange(size, device=layer.weight.device)).cpu().numpy()
        self._table = table
        self._inputs, self._outputs = inputs, outputs
        self.of_rows: nn.Module = OfPrompts(network, selected, inputs, outputs)
        self.body: nn.Module = _Body(network, selected)

    def encoding_of(self, inputs: PromptInputs) -> PromptEncoding:
        """That of rows of these `inputs`, which may be cut to fewer places."""
        return PromptEncoding(self._table, inputs.length)

    def examples(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the body is given, of more than one row and position and fewer than it takes: see `_Body`."""
        rows, length, positions = 2, max(2, self._inputs.length // 2), 3
        causal = _permitted(torch.ones(1, length, length, dtype=torch.bool).tril())
        return (
            torch.from_numpy(self._table[:1]).to(device).expand(rows, length, -1).clone(),
            causal.expand(rows, 1, length, length).to(device).clone(),
            torch.arange(length, device=device).expand(rows, length).clone(),
            torch.zeros(rows, positions, length, device=device),
        )

    def around(self, body: nn.Module, inputs: PromptInputs, device: torch.device) -> nn.Module:
        """From encoded rows of these `inputs` to the outputs."""
        table = torch.from_numpy(self._table).to(device)
        return OfPromptEmbeddings(body, table, inputs, self._outputs).to(device)


class _Selected(nn.Module):
    """The network's last layer, which turns hidden states into logits: at some positions only.

    `selection` [rows, positions, length] has a one at the place of each, and none for positions that are not read: a
    product, whose gradient is summed in one order on every device.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.selection: list[Tensor] = []

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(self.selection[0] @ hidden)
        return logits


class _Body(nn.Module):
    """From embeddings [n, length, width], which token may see which (0, or next to minus infinity) [n, 1, length,
    length], places [n, length] and a `selection` [n, positions, length] to logits [n, positions, vocabulary]."""

    def __init__(self, network: Any, selected: _Selected) -> None:
        super().__init__()
        self.network, self.selected = network, selected
        self.takes_places = "position_ids" in inspect.signature(network.forward).parameters

    def forward(self, embedded: Tensor, mask: Tensor, places: Tensor, selection: Tensor) -> Tensor:
        further = {"position_ids": places} if self.takes_places else {}
        self.selected.selection[:] = [selection]
        logits: Tensor = self.network(inputs_embeds=embedded, attention_mask=mask, **further).logits
        self.selected.selection.clear()
        return logits


class OfPrompts(nn.Module):
    """Rows [n, length] to the outputs [n, width] of `catalog.outputs.tokens.Tokens`, by the network as it is."""

    def __init__(self, network: nn.Module, selected: _Selected, inputs: PromptInputs, outputs: Tokens) -> None:
        super().__init__()
        self.network, self.selected = network, selected
        self.vocabulary, self.outputs = inputs.vocabulary, outputs

    def forward(self, rows: Tensor) -> Tensor:
        size, codes = self.vocabulary, rows.long()
        is_prompt, is_other = (codes >= 0) & (codes < size), codes >= 2 * size
        is_own = (codes >= size) & ~is_other
        prompts, own, other = (part.sum(1, keepdim=True) for part in (is_prompt, is_own, is_other))
        at = torch.arange(rows.shape[1], device=rows.device).expand_as(codes)
        tokens = torch.where(is_own, codes - size, codes).clamp(0, size - 1)
        logs, of_own = self._behind(tokens, prompts, own)
        likeliest = torch.topk(logs[:, 0], self.outputs.likeliest)
        places = torch.arange(self.outputs.longest, device=rows.device)
        if is_other.any():
            moved = codes.gather(1, torch.where(at < prompts, at, at + own).clamp_max(rows.shape[1] - 1))
            _, of_other = self._behind((moved % size).clamp(0, size - 1), prompts, other)
        else:
            of_other = torch.zeros_like(of_own)
        own_first = _widened(of_own, self.outputs.longest)
        behind_them = _widened(of_other, self.outputs.longest).gather(1, (places - own).clamp_min(0))
        per_token = torch.where(places < own, own_first, torch.where(places < own + other, behind_them, 0.0))
        total = torch.where(places < own, per_token, -per_token).sum(1, keepdim=True)
        return torch.cat([total, per_token, likeliest.values, likeliest.indices.to(total.dtype)], dim=1)

    def _behind(self, tokens: Tensor, prompts: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probabilities [n, positions, vocabulary] of what stands behind prompts of so many tokens [n, 1], and
        those [n, positions] of so many of the `tokens` [n, length] behind them, `count` [n, 1]; 0 beyond."""
        length = tokens.shape[1]
        at = torch.arange(length, device=tokens.device)
        behind = torch.arange(min(self.outputs.longest, length), device=tokens.device)
        places = prompts + behind
        self.selected.selection[:] = [(at == (places - 1)[..., None]).float()]
        mask = (at < prompts + count).long()
        logits = self.network(input_ids=tokens, attention_mask=mask).logits
        self.selected.selection.clear()
        logs = torch.log_softmax(logits, dim=-1)
        own = tokens.gather(1, places.clamp_max(length - 1))
        chosen = logs.gather(2, own[..., None])[..., 0]
        return logs, torch.where(behind < count, chosen, 0.0)


class OfPromptEmbeddings(nn.Module):
    """Encoded rows [n, length, width + 1] to the outputs, but for the likeliest tokens, which are zero here."""

    table: Tensor
    at: Tensor
    behind: Tensor
    before: Tensor

    def __init__(self, body: nn.Module, table: Tensor, inputs: PromptInputs, outputs: Tokens) -> None:
        super().__init__()
        length, positions = inputs.length, min(outputs.longest, inputs.length)
        self.body, self.vocabulary = body, inputs.vocabulary
        self.missing = outputs.width - 1 - positions
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("at", torch.arange(length), persistent=False)
        self.register_buffer("behind", torch.arange(positions), persistent=False)
        self.register_buffer("before", torch.ones(1, length, length, dtype=torch.bool).tril(), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        codes = rows[..., -1].detach().long()
        is_other, is_prompt = codes >= 2 + self.vocabulary, codes == 1
        is_own = (codes > 1) & ~is_other
        prompts, own, other = (part.sum(1, keepdim=True) for part in (is_prompt, is_own, is_other))
        tokens = (codes - 2).clamp_min(0) % self.vocabulary
        looked_up = functional.embedding(tokens, self.table)
        embedded = torch.where((codes > 1)[..., None], looked_up, rows[..., :-1])
        seen = (codes > 0)[:, None, :] & ~(is_other[:, :, None] & is_own[:, None, :])
        places = self.at - is_other.long() * own
        behind = torch.where(self.behind == own, 0, self.behind)  # the other one begins behind the prompt, too
        selection = (self.at == (prompts + behind - 1)[..., None]).float()
        mask = _permitted(self.before & seen)
        logits = self.body(embedded, mask, places, selection)
        given = (prompts + self.behind).clamp_max(len(self.at) - 1)
        chosen = torch.log_softmax(logits, dim=-1).gather(2, tokens.gather(1, given)[..., None])[..., 0]
        per_token = torch.where(self.behind < own + other, chosen, 0.0)
        total = torch.where(self.behind < own, per_token, -per_token).sum(1, keepdim=True)
        return functional.pad(torch.cat([total, per_token], dim=1), (0, self.missing))


def _permitted(pairs: Tensor) -> Tensor:
    """Which token [n, length, length] sees which as it is added to the logits of attention: [n, 1, length, length]."""
    return torch.where(pairs[:, None], 0.0, torch.finfo(torch.float32).min)


def _widened(values: Tensor, width: int) -> Tensor:
    """With zeros behind them: [n, width]."""
    return functional.pad(values, (0, width - values.shape[1]))
