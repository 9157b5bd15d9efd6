"""The network that kernels compute with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from service.artefacts.links import ON_TENSORS, TensorLink
from service.artefacts.sizes import row_type_of
from service.domain import RowType
from service.numerics.links import SOFTMAX, Link


@dataclass(frozen=True)
class Network:
    """A model's differentiable `twin` on a `device`: from rows [n, ...shape] to logits or values [n, labels].

    `link` leads from these to probabilities.
    """

    twin: fx.GraphModule
    device: torch.device
    shape: tuple[int, ...]
    labels: int
    link: Link = SOFTMAX

    @cached_property
    def row_type(self) -> RowType:
        """The number type of the rows that the twin takes."""
        return row_type_of(self.twin)

    @property
    def tensor_link(self) -> TensorLink:
        """The link on tensors."""
        return ON_TENSORS[self.link]
