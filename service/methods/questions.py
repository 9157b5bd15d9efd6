"""What a method asks of the model, and what it is answered: the vocabulary between methods and the engine.

A method is a generator. It is given a `Problem` (`service.methods.problem`), yields a question (`Points`, `Rows`,
`Breakpoints` ...), is sent the answer (`Evaluated`, `Pieces` ...) and returns an `Attribution`. It never sees a device,
a queue or another request; whoever drives it, the scheduler or a test with a plain function, decides where the work is
done. When the deadline passes while a question is open, `DeadlinePassed` is thrown into the generator: it may return
what it has, or let the exception pass.

Inputs, gradients and attributions are flat, [inputs]; `Problem.shape` says how an input is laid out.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeVar, cast

import numpy as np

from service.domain import (
    Combination,
    Floats,
    Indices,
    OutputSpace,
    Target,
)
from service.numerics.cells import Grouping, LocalErrors, Stencils
from service.numerics.panels import PanelErrors, Panels


class Readout(IntEnum):
    """The scalar of the network's numbers z that is explained at a point.

    `LOGIT` is z_t, also where z are values and no logits; `PROBABILITY` is link(z)_t, by the model's link; and
    `MARGIN`, for two labels, is z_t - z_other: the log-odds. Of a contrast it is the difference of two of them, and of
    a similarity the dot product of z, or of link(z), with the target's coefficients.
    """

    LOGIT = 0
    PROBABILITY = 1
    MARGIN = 2


@dataclass(frozen=True, slots=True)
class Points:
    """Gradient points on straight lines: point i is starts[line[i]] + alphas[i] (end - starts[line[i]]).

    `starts` [lines, inputs], `end` [inputs], `line` [n], `alphas` [n]. Answered with `Evaluated`.
    """

    starts: Floats
    end: Floats
    line: Indices
    alphas: Floats
    readout: Readout
    target: Target

    def __len__(self) -> int:
        return len(self.alphas)


@dataclass(frozen=True, slots=True)
class Rows:
    """Explicit gradient points: the `rows` [n, inputs], and for each the output in `targets` [n].

    Where they have one `target` that is more than an output, it counts. Answered with `Evaluated`, whose contributions
    are here the gradients themselves. They share chunks with `Points`.
    """

    rows: Floats
    readout: Readout
    targets: Indices
    target: Combination | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class RowsOfOneTarget:
    """What is asked at `rows` [n, inputs], all with one `target`, and is not the plain gradient."""

    rows: Floats
    readout: Readout
    target: Target

    def __len__(self) -> int:
        return len(self.rows)


class BackwardRule(IntEnum):
    """How a gradient R passes a ReLU backwards, whose output is A.

    `DECONVNET` relu(R); `GUIDED` relu(R) where A > 0; `RECTIFIED` R where A * R exceeds the `percentile` of A * R over
    the layer, each row by itself.
    """

    DECONVNET = 0
    GUIDED = 1
    RECTIFIED = 2


@dataclass(frozen=True, slots=True)
class BackwardRuleRows(RowsOfOneTarget):
    """Asks for gradients with another `rule` in the place of the gradient of every ReLU.

    `percentile`, from 0 to 100, is that of `BackwardRule.RECTIFIED`. Answered with `Evaluated`.
    """

    rule: BackwardRule
    percentile: float = 0.0


@dataclass(frozen=True, slots=True)
class LayerRows(RowsOfOneTarget):
    """Asks for the last convolution's feature maps. Answered with `FeatureMaps`."""


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """The `outputs` [n], the last convolution's `activations` [n, channels, ...space], the nonlinearity and batch norm
    behind it included, and the `gradients` of the output with respect to them, of the same shape."""

    outputs: Floats
    activations: Floats
    gradients: Floats


@dataclass(frozen=True, slots=True)
class BiasRows(RowsOfOneTarget):
    """Asks for the gradients of every bias. Answered with `BiasMaps`."""


@dataclass(frozen=True, slots=True)
class BiasMaps:
    """What each layer's bias adds to the output.

    `outputs` [n], `gradients` [n, inputs] of the input, `totals` [n]: the sum of bias times its gradient over all
    layers, and `maps` [n, inputs / channels]: per pixel, the sum over the convolutional layers and their channels of
    psi(bias * gradient), psi as in FullGrad.
    """

    outputs: Floats
    gradients: Floats
    totals: Floats
    maps: Floats


@dataclass(frozen=True, slots=True)
class HessianRows(RowsOfOneTarget):
    """Asks, at each row, for the Hessian times the vector of the same number in `vectors` [n, inputs].

    Every ReLU is replaced by a softplus where the network has one. Answered with `Curvatures`.
    """

    vectors: Floats


@dataclass(frozen=True, slots=True)
class Curvatures:
    """The `outputs` [n], `gradients` [n, inputs] and Hessian-vector `products` [n, inputs]."""

    outputs: Floats
    gradients: Floats
    products: Floats


@dataclass(frozen=True, slots=True)
class Forwards:
    """Asks for the outputs at `rows` [n, inputs] of the deployed artefact; of the twin where the rows are embeddings,
    which the artefact does not take. Answered with `Outputs`."""

    rows: Floats

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Deployed:
    """Asks for the outputs at `rows` [n, columns], which are rows as the artefact takes them, of that artefact.

    Answered with `Outputs`.
    """

    rows: Floats

    def __len__(self) -> int:
        return len(self.rows)


Outputs = Mapping[OutputSpace, Floats]
"""By output space, the outputs [n, outputs]."""


class Evaluated(Protocol):
    """The answer to `Points`: the outputs [n] and, on the device, the contributions [n, inputs].

    A contribution is the gradient times the direction of its line, elementwise; `derivatives` [n] are their sums, the
    derivatives of the output along the path. To `Rows`, a contribution is the gradient.
    """

    @property
    def outputs(self) -> Floats: ...

    @property
    def derivatives(self) -> Floats: ...

    @property
    def contributions(self) -> Floats:
        """All contributions, in float64, on the host: [n, inputs]."""
        ...

    def weighted_sum(self, weights: Floats) -> Floats:
        """The sum of weights [n] times contributions [n, inputs], in float64 and in one fixed order: [inputs]."""
        ...

    def run_sums(self, lengths: Indices, weights: Floats | None = None) -> Floats:
        """The sums over runs of so many points each, one after the other, in float64: [runs, inputs]. With `weights`
        [n], of weights times contributions."""
        ...

    def squares(self) -> Floats:
        """The sum of the squared contributions of all points, in float64: [inputs]."""
        ...

    def vector_errors(self, stencil: Stencils | Panels, grouping: Grouping) -> LocalErrors | PanelErrors:
        """What the contributions say of the error of an integral; see `service.numerics.cells` and `panels`."""
        ...

    def joined(self, later: Evaluated) -> Evaluated:
        """These points followed by those of `later`."""
        ...


@dataclass(frozen=True, slots=True)
class Breakpoints:
    """Asks where a piecewise-linear network bends on the line from `start` to `end`. Answered with `Pieces`."""

    start: Floats
    end: Floats
    max_pieces: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """The ends of the linear pieces in order: `alphas` [p + 1] from 0 to 1 and the `logits` [p + 1, outputs] there.

    None of both when there are more pieces than were allowed.
    """

    alphas: Floats | None
    logits: Floats | None


def coefficients_of(readout: Readout, target: Target, outputs: int) -> Floats:
    """What a target reads of so many outputs, as coefficients [outputs]; of a probability, behind the link."""
    if isinstance(target, Combination):
        coefficients = target.coefficients(outputs)
    else:
        coefficients = np.zeros(outputs)
        coefficients[target] = 1
    return 2 * coefficients - coefficients.sum() if readout is Readout.MARGIN else coefficients


class DeadlinePassed(Exception):
    """Thrown into a method whose deadline has passed while its question was open."""


Question = Points | Rows | BackwardRuleRows | LayerRows | BiasRows | HessianRows | Forwards | Deployed | Breakpoints
Answer = Evaluated | FeatureMaps | BiasMaps | Curvatures | Outputs | Pieces
T = TypeVar("T")
Steps = Generator[Question, Answer, T]


def evaluated(question: Points | Rows | BackwardRuleRows) -> Steps[Evaluated]:
    """Asks for gradient points; to be used with `yield from`, as are the others."""
    return cast(Evaluated, (yield question))


def pieces_of(line: Breakpoints) -> Steps[Pieces]:
    """Asks for the pieces of a line."""
    return cast(Pieces, (yield line))


def feature_maps(question: LayerRows) -> Steps[FeatureMaps]:
    """Asks for the feature maps of the last convolution."""
    return cast(FeatureMaps, (yield question))


def bias_maps(question: BiasRows) -> Steps[BiasMaps]:
    """Asks for what the biases add."""
    return cast(BiasMaps, (yield question))


def curvatures(question: HessianRows) -> Steps[Curvatures]:
    """Asks for Hessian-vector products."""
    return cast(Curvatures, (yield question))


def outputs_at(rows: Floats) -> Steps[Outputs]:
    """Asks for the deployed outputs."""
    return cast(Outputs, (yield Forwards(rows)))


def deployed_at(rows: Floats) -> Steps[Outputs]:
    """Asks for the outputs at rows as the artefact takes them."""
    return cast(Outputs, (yield Deployed(rows)))
