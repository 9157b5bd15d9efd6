"""What opening an artefact of any format returns: the artefact that predicts, and the twin that explains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from service.artefacts.links import ON_TENSORS
from service.catalog.inputs.encodings import Encoding
from service.catalog.inputs.kind import Inputs
from service.catalog.outputs.kind import OutputKind
from service.domain import SINGLE, OutputSpace, RowType


class DeployedArtefact(Protocol):
    """The artefact in production."""

    def outputs(self, rows: NDArray[np.floating]) -> Mapping[OutputSpace, NDArray[np.floating]]:
        """The outputs [n, outputs] in every output space, for rows [n, columns], flat."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """An artefact and its differentiable twin.

    The twin maps rows [n, ...shape], encoded where there is an `encoding`, to logits or values [n, outputs]. `forwards`
    computes outputs for the twin's inputs, also those that no instance is encoded as, such as a mean of categories: it
    is the artefact where that takes them, else the twin. `worst` names the operator that differs most for rows on which
    twin and artefact differ; it is None where that cannot be determined. `row_type` represents rows exactly as the
    artefact takes them; the twin takes the same type. `cut_to` opens the same artefact for rows that are cut to fewer
    places, as one of `Inputs.cut` has them, or raises CatalogError; None: it takes whole rows only. An artefact
    that takes rows `alone` runs one at a time.
    """

    deployed: DeployedArtefact
    twin: fx.GraphModule
    encoding: Encoding | None
    forwards: DeployedArtefact
    worst: Callable[[NDArray[np.floating]], str] | None = None
    row_type: RowType = SINGLE
    cut_to: Callable[[Inputs], Opened] | None = None
    alone: bool = False


def log_odds(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """Both labels' log-odds [n, 2], from a zero and the one logit [n, 2]: each is the other's negative."""
    odds: NDArray[np.floating] = logits - logits[:, ::-1]
    return odds


class Encoded:
    """An artefact that takes encoded rows: instances' rows are encoded first."""

    def __init__(self, artefact: DeployedArtefact, encoding: Encoding) -> None:
        self._artefact = artefact
        self._encoding = encoding

    def outputs(self, rows: NDArray[np.floating]) -> Mapping[OutputSpace, NDArray[np.floating]]:
        """The outputs [n, outputs] in every output space, for rows [n, columns], flat."""
        return self._artefact.outputs(self._encoding(rows.astype(np.float64)).astype(np.float32))


def opened(artefact: DeployedArtefact, twin: fx.GraphModule, encoding: Encoding | None) -> Opened:
    """An artefact that takes what the twin takes: encoded rows if there is an `encoding`."""
    deployed = artefact if encoding is None else Encoded(artefact, encoding)
    return Opened(deployed, twin, encoding, artefact)


class TorchOutputs:
    """A torch module from rows [n, ...shape] to the network's numbers, in the artefact's place.

    `outputs` says what these numbers are. Takes at most `most` rows at a time. A twin with one logit answers zero and
    that logit; see `log_odds`.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        shape: tuple[int, ...],
        outputs: OutputKind,
        most: int | None = None,
    ) -> None:
        self._module = module
        self._device = device
        self._shape = shape
        self._most = most
        self._outputs = outputs

    @torch.inference_mode()
    def outputs(self, rows: NDArray[np.floating]) -> Mapping[OutputSpace, NDArray[np.floating]]:
        """The outputs [n, outputs] in every output space, for rows [n, inputs], flat."""
        tensor = torch.from_numpy(rows.reshape(-1, *self._shape)).to(self._device)
        answers = torch.cat([self._module(part) for part in torch.split(tensor, self._most or len(tensor))])
        return in_every_space(answers, self._outputs)


def in_every_space(answers: torch.Tensor, outputs: OutputKind) -> Mapping[OutputSpace, NDArray[np.floating]]:
    """The network's numbers [n, outputs] as the model's outputs in every output space."""
    own = answers.cpu().numpy()
    spaces = {outputs.network_space: log_odds(own) if outputs.has_one_logit else own}
    if OutputSpace.PROBABILITY in outputs.spaces:
        spaces[OutputSpace.PROBABILITY] = ON_TENSORS[outputs.network_link].probabilities(answers).cpu().numpy()
    return spaces
