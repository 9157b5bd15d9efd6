"""From the embeddings of a text's tokens to that of the text, as sentence-transformers computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from service.artefacts.huggingface.sentence_modules import Pooling

LEAST_COUNT = 1e-9


def pooled(pooling: Pooling) -> Callable[[Any, Tensor], Tensor]:
    """A function from what a network answers, and which places [n, length] are tokens, to embeddings [n, dimensions].

    Padding stands behind the tokens.
    """

    def read(answer: Any, is_token: Tensor) -> Tensor:
        hidden = answer.last_hidden_state
        mask = is_token[..., None].to(hidden.dtype)
        embedding = torch.cat([_MODES[mode](hidden, mask) for mode in pooling.modes], dim=1)
        return functional.normalize(embedding, p=2.0, dim=1) if pooling.is_normalised else embedding

    return read


def _counts(mask: Tensor) -> Tensor:
    return mask.sum(dim=1).clamp(min=LEAST_COUNT)


def _weighted(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean with weights of 1, 2, 3 and so on."""
    return _mean(hidden, mask * mask.cumsum(dim=1))


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask).sum(dim=1) / _counts(mask)


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last token's: the place at which as many are counted as there are in all."""
    places = mask.cumsum(dim=1)
    is_last = (places == places[:, -1:]) & (mask != 0)
    return (hidden * is_last.to(hidden.dtype)).sum(dim=1)


_MODES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": lambda hidden, _: hidden[:, 0],
    "mean": _mean,
    "max": lambda hidden, mask: hidden.masked_fill(mask == 0, -torch.inf).amax(dim=1),
    "mean_sqrt_len_tokens": lambda hidden, mask: (hidden * mask).sum(dim=1) / _counts(mask).sqrt(),
    "weightedmean": _weighted,
    "lasttoken": _last,
}
"""By mode, from the tokens' embeddings [n, length, width], and a mask [n, length, 1] of ones and zeros."""
