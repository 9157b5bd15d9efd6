"""Link functions, from a network's numbers to probabilities, or from an embedding to its direction: what each
computes, and what methods ask of it.

This is for numpy; on tensors the same functions are in `service.artefacts.links`, which the front does not import.

On a piece of a piecewise-linear network the logits z are affine in alpha, and their gradients G_j are constant. So the
integral of the gradient of a probability is the sum over j of G_j times the integral of its slope dp/dz_j, which
depends on nothing but the logits at both ends of the piece.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.domain import Contrast, Floats, Similarity, Target
from service.numerics.directions import cosine_piece_slopes, directions
from service.numerics.softmax_pieces import softmax, softmax_piece_slopes, softmax_piece_weights

F = TypeVar("F", bound=np.floating[Any])


@dataclass(frozen=True)
class Link(ABC):
    """A link function. All instances of a class are equal.

    `name` is part of what identifies an artefact. `onnx_operator`, with its attributes, computes the function in a
    graph. `is_shared` says that the probabilities of a row share one sum, so that as one rises others fall.
    """

    name: ClassVar[str]
    onnx_operator: ClassVar[tuple[str, Mapping[str, Any]]]
    is_shared: ClassVar[bool] = False

    @abstractmethod
    def probabilities(self, logits: NDArray[F]) -> NDArray[F]:
        """The probabilities of `logits`, both [n, outputs] and of one type; computed in float64."""

    @abstractmethod
    def spread(self, logits: Floats) -> float:
        """The largest difference between two numbers that a probability is made of, of `logits` [n, outputs]."""

    def piece_slopes(self, start: Floats, end: Floats, length: Floats, target: Target) -> Floats:
        """The integrals, over pieces of the lengths `length` [pieces], of the slopes of the target's probability with
        respect to each logit: [pieces, outputs].

        `start` and `end` [pieces, outputs] are the logits at the ends of the pieces.
        """
        if isinstance(target, Contrast):
            own, other = (self._piece_slopes(start, end, length, at) for at in (target.index, target.rather_than))
            return own - other
        assert isinstance(target, int)
        return self._piece_slopes(start, end, length, target)

    @abstractmethod
    def _piece_slopes(self, start: Floats, end: Floats, length: Floats, target: int) -> Floats: ...


class Softmax(Link):
    """The softmax of all outputs of a row."""

    name = "softmax"
    onnx_operator = ("Softmax", {"axis": 1})
    is_shared = True

    def probabilities(self, logits: NDArray[F]) -> NDArray[F]:
        return softmax(logits)

    def spread(self, logits: Floats) -> float:
        return float(np.ptp(logits, axis=1).max())

    def _piece_slopes(self, start: Floats, end: Floats, length: Floats, target: int) -> Floats:
        return softmax_piece_slopes(start, end, length, target)


class Sigmoid(Link):
    """The sigmoid of each output on its own."""

    name = "sigmoid"
    onnx_operator = ("Sigmoid", {})

    def probabilities(self, logits: NDArray[F]) -> NDArray[F]:
        return (0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))).astype(logits.dtype, copy=False)

    def spread(self, logits: Floats) -> float:
        return float(np.abs(logits).max())

    def _piece_slopes(self, start: Floats, end: Floats, length: Floats, target: int) -> Floats:
        slopes = np.zeros_like(start)  # sigmoid(z) is the softmax of z and zero
        slopes[:, target] = softmax_piece_weights(start[:, target], end[:, target], length)
        return slopes


class Identity(Link):
    """No link: the network's numbers are what the model answers, and there are no probabilities."""

    name = "identity"
    onnx_operator = ("Identity", {})

    def probabilities(self, logits: NDArray[F]) -> NDArray[F]:
        return logits

    def spread(self, logits: Floats) -> float:  # noqa: ARG002
        return 0.0

    def _piece_slopes(self, start: Floats, end: Floats, length: Floats, target: int) -> Floats:  # noqa: ARG002
        slopes = np.zeros_like(start)
        slopes[:, target] = length
        return slopes


class UnitLength(Link):
    """The direction of all outputs of a row together, an embedding; see `service.numerics.directions`."""

    name = "unit length"
    onnx_operator = ("LpNormalization", {"axis": 1, "p": 2})

    def probabilities(self, logits: NDArray[F]) -> NDArray[F]:
        """The directions of embeddings [n, outputs]."""
        return directions(logits.astype(np.float64)).astype(logits.dtype, copy=False)

    def spread(self, logits: Floats) -> float:  # noqa: ARG002
        return 0.0

    def piece_slopes(self, start: Floats, end: Floats, length: Floats, target: Target) -> Floats:
        """Those of the cosine."""
        assert isinstance(target, Similarity)
        return cosine_piece_slopes(start, end, length, target.coefficients)

    def _piece_slopes(self, start: Floats, end: Floats, length: Floats, target: int) -> Floats:
        unit = np.zeros(start.shape[1])
        unit[target] = 1.0
        return cosine_piece_slopes(start, end, length, unit)


SOFTMAX, SIGMOID, IDENTITY, UNIT_LENGTH = Softmax(), Sigmoid(), Identity(), UnitLength()
