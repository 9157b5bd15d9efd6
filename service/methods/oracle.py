"""What a method asks of the model, and what it is told: the vocabulary between methods and the engine.

A method is a generator. It yields a question (`Points`, `Breakpoints`), is sent the answer (`Evaluated`, `Pieces`) and
returns an `Attribution`. It never sees a device, a queue or another request; whoever drives it, the scheduler or a
test with a plain function, decides where the work is done. When the deadline passes while a question is open,
`DeadlinePassed` is thrown into the generator: it may return what it has, or let the exception pass.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeVar

from service.domain import Completeness, Floats, Indices, OutputSpace


class Readout(IntEnum):
    """The scalar of the logits z that is explained at a point.

    `LOGIT` is z_t, `PROBABILITY` is softmax(z)_t, and `MARGIN`, for two labels, is z_t - z_other.
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
    target: int

    def __len__(self) -> int:
        return len(self.alphas)


class Evaluated(Protocol):
    """The answer to `Points`: the outputs [n] and, on the device, the contributions [n, inputs].

    A contribution is the gradient times the direction of its line, elementwise; `derivatives` [n] are their sums, the
    derivatives of the output along the path.
    """

    @property
    def outputs(self) -> Floats: ...

    @property
    def derivatives(self) -> Floats: ...

    def weighted_sum(self, weights: Floats) -> Floats:
        """The sum of weights [n] times contributions [n, inputs], in float64 and in one fixed order: [inputs]."""
        ...

    def group_sums(self, weights: Floats, group: Indices, groups: int) -> Floats:
        """The weighted sum over the points of each group (`group` [n], from 0 to groups - 1): [groups, inputs]."""
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
    """The ends of the linear pieces in order: `alphas` [p + 1] from 0 to 1 and the `logits` [p + 1, labels] there.

    None of both when there are more pieces than were allowed.
    """

    alphas: Floats | None
    logits: Floats | None


@dataclass(frozen=True, slots=True)
class Problem:
    """One explanation to be computed: all a method may know.

    `baselines` [K, inputs] with the deployed artefact's `baseline_outputs` [K]; `center` is the mean baseline, with the
    deployed `center_output`; `output` is the deployed output f(x). All outputs are of `target` in `output_space`.
    `floor` is the smallest denominator of a relative completeness error, in units of the output.
    """

    input: Floats
    output: float
    baselines: Floats
    baseline_outputs: Floats
    center: Floats
    center_output: float
    target: int
    labels: int
    output_space: OutputSpace
    tolerance: float
    floor: float
    max_evaluations: int
    seed: int
    options: Mapping[str, str | float | int]
    is_piecewise_linear: bool
    has_kinks: bool

    @property
    def readout(self) -> Readout:
        """The readout of the output space."""
        return Readout.LOGIT if self.output_space is OutputSpace.LOGIT else Readout.PROBABILITY


@dataclass(frozen=True, slots=True)
class Attribution:
    """What a method returns: `values` [inputs] and how well they are known.

    Complete values sum to f(x) - `baseline_output`. `path_error` is E (see `service.numerics.refinement`) or its
    counterpart, an estimate of the L1 error of the values in units of the output. `stopped` names what ended the
    computation before the tolerance was met: budget, deadline, or precision, that of the model's own arithmetic.
    """

    values: Floats
    baseline_output: float
    completeness: Completeness
    path_error: float
    evaluations: int
    rule: str
    stopped: str | None = None
    standard_error: Floats | None = None


class DeadlinePassed(Exception):
    """Thrown into a method whose deadline has passed while its question was open."""


Question = Points | Breakpoints
Answer = Evaluated | Pieces
T = TypeVar("T")
Steps = Generator[Question, Answer, T]
Method = Steps[Attribution]


def evaluated(points: Points) -> Steps[Evaluated]:
    """Asks for `points`; to be used with `yield from`."""
    answer = yield points
    assert not isinstance(answer, Pieces)
    return answer


def pieces_of(line: Breakpoints) -> Steps[Pieces]:
    """Asks for the pieces of a line; to be used with `yield from`."""
    answer = yield line
    assert isinstance(answer, Pieces)
    return answer
