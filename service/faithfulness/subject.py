"""What a metric is given, and what it returns: one explanation to be judged, and a figure.

A metric is a generator like a method (`service.methods.questions`): it yields questions, is sent the answers, and
returns a `Measured`. Its rows are points like any others, packed into chunks with all other work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from service.catalog.inputs.kind import Inputs
from service.catalog.inputs.removal import Mask, Removal
from service.catalog.outputs.kind import OutputKind
from service.domain import Floats, Indices, OptionValue, OutputSpace, read_target
from service.methods.problem import Method, Problem
from service.methods.questions import Outputs, Steps, deployed_at

A = TypeVar("A", Mask, Floats)
MOST_BYTES = 2**26
"""Of the rows of one question."""


@dataclass(frozen=True)
class Measure:
    """What is to be measured: a metric by its wire name, its options, and by name what stands in the place of removed
    components; None where the metric removes none. `boxes` are those around the object in an image, which come with it:
    top, left, bottom and right of each, the last two not included."""

    metric: str
    replace: str | None = None
    options: tuple[tuple[str, OptionValue], ...] = ()
    boxes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Measured:
    """The figure of one explanation; None, with the `reason`, where it has none.

    `curve` are the outputs behind it, from the whole input to none of it or the other way round, as the metric says.
    """

    value: float | None
    curve: tuple[float, ...] | None = None
    reason: str | None = None


Measuring = Steps[Measured]
"""A metric at work on one subject."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One explanation that is to be judged: all a metric may know.

    `problem` is what was explained, `values` [components] the attributions; `inputs` and `outputs` are the model's.
    `row` [columns] is the input as the artefact takes it, `baselines` [K, columns] the rows of the explanation's
    baseline. `attribute` explains another problem by the same method. `measure` is what to measure.

    What one metric asked is kept in `known` for the next: the same curve gives several figures.
    """

    problem: Problem
    values: Floats
    inputs: Inputs
    outputs: OutputKind
    row: Floats
    baselines: Floats
    attribute: Callable[[Problem], Method]
    measure: Measure
    known: dict[object, Floats] = field(default_factory=dict)

    @property
    def boxes(self) -> tuple[tuple[int, ...], ...]:
        """Those of the measure."""
        return self.measure.boxes

    def number(self, option: str) -> float:
        """The value of a numeric option."""
        value = dict(self.measure.options)[option]
        assert isinstance(value, int | float)
        return value

    def word(self, option: str) -> str:
        """The value of an option that is a word."""
        return str(dict(self.measure.options)[option])

    @property
    def removable(self) -> Indices:
        """The components that can be removed, by number."""
        return np.flatnonzero(self.inputs.removable(self.row))

    @property
    def judged(self) -> Floats:
        """The attributions of the components that can be removed: of those of tokens, not those of padding."""
        return self.values[self.removable]

    @property
    def whole(self) -> Mask:
        """A mask that removes nothing, [components]."""
        return np.zeros(len(self.values), dtype=np.bool_)

    @property
    def removal(self) -> Removal:
        """How components are removed, by what the measure names."""
        assert self.measure.replace is not None, "a metric that removes components says so"
        return self.inputs.removal(self.row, self.measure.replace, self.baselines, self.problem.seed)

    @property
    def has_probabilities(self) -> bool:
        """Whether the explained output is a probability, or the logit of one: no difference of two, and no value."""
        is_of_label = isinstance(self.problem.target, int)
        return is_of_label and self.problem.output_space in (OutputSpace.PROBABILITY, OutputSpace.LOGIT)

    def read(self, outputs: Outputs) -> Floats:
        """The explained output [n] of outputs [n, outputs], in the explanation's space."""
        return self.problem.read(outputs)

    def probability(self, outputs: Outputs) -> Floats:
        """The probability [n] of the explained label."""
        return read_target(outputs[OutputSpace.PROBABILITY], self.problem.target)

    def without(self, removed: Mask) -> Steps[Floats]:
        """The explained output [n] without the removed components, `removed` [n, components]."""
        removal = self.removal
        return (yield from self._mean(removal.rows, removed, removal.copies, self.read))

    def faded(self, kept: Floats) -> Steps[Floats] | None:
        """The probability of the label [n] where of each component that share is `kept` [n, components]; None where
        nothing can fade."""
        removal = self.removal
        if removal.faded(kept[:1]) is None:
            return None

        def rows_of(shares: Floats) -> Floats:
            rows = removal.faded(shares)
            assert rows is not None
            return rows

        return self._mean(rows_of, kept, removal.copies, self.probability)

    def at(self, rows: Floats) -> Steps[Outputs]:
        """The outputs at rows [n, columns] as the artefact takes them."""
        return (yield from deployed_at(rows))

    def _mean(
        self, rows_of: Callable[[A], Floats], masks: A, copies: int, read: Callable[[Outputs], Floats]
    ) -> Steps[Floats]:
        """What is `read` [n] of the outputs at the rows of masks [n, components], the mean over the copies of each.

        The rows of so many masks are made at a time that they stay within `MOST_BYTES`: those of a thousand steps of a
        photograph do not.
        """
        together = max(1, MOST_BYTES // (len(self.row) * 8 * copies))
        found: list[Floats] = []
        for at in range(0, len(masks), together):
            outputs = yield from deployed_at(rows_of(masks[at : at + together]))
            found.append(read(outputs).reshape(-1, copies).mean(axis=1))
        return np.concatenate(found)


def no_figure(reason: str) -> Measured:
    """Of an explanation that the metric says nothing of."""
    return Measured(None, reason=reason)


def numbers(values: Sequence[float] | Floats) -> tuple[float, ...]:
    """A curve as it is sent."""
    return tuple(float(value) for value in values)
