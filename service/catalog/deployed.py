"""What every format of an artefact gives once it is opened: the artefact that predicts, and the twin that explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from service.domain import OutputSpace


class DeployedArtefact(Protocol):
    """The artefact in production."""

    def outputs(self, rows: NDArray[np.float32]) -> Mapping[OutputSpace, NDArray[np.float32]]:
        """The outputs [n, labels] in every output space, for rows [n, columns], flat."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """An artefact and its differentiable twin.

    The twin leads from rows [n, ...shape] to logits [n, labels]; where there is an `embedding` [vocabulary,
    dimensions], from the embeddings of tokens.
    """

    deployed: DeployedArtefact
    twin: fx.GraphModule
    embedding: NDArray[np.float32] | None = None


class TorchOutputs:
    """A torch module from rows [n, ...shape] to logits, in the artefact's place. Takes `most` rows at a time."""

    def __init__(
        self, module: nn.Module, device: torch.device, shape: tuple[int, ...], most: int | None = None
    ) -> None:
        self._module = module
        self._device = device
        self._shape = shape
        self._most = most

    @torch.inference_mode()
    def outputs(self, rows: NDArray[np.float32]) -> Mapping[OutputSpace, NDArray[np.float32]]:
        """The outputs [n, labels] in every output space, for rows [n, inputs], flat."""
        given = torch.from_numpy(rows.reshape(-1, *self._shape)).to(self._device)
        logits = torch.cat([self._module(part) for part in torch.split(given, self._most or len(given))])
        probabilities = torch.softmax(logits, dim=1)
        return {OutputSpace.LOGIT: logits.cpu().numpy(), OutputSpace.PROBABILITY: probabilities.cpu().numpy()}
