"""Kernels: the computations a device does, each for one model and at one fixed shape.

A kernel takes *segments*, consecutive parts of questions from many explanations, fills them up to its capacity with
padding, computes once, and gives each segment its part of the result. One shape means that a row's result does not
depend on who shares the chunk, bit for bit; see `design.md`, idea 4, for the measurement.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.domain import SINGLE, Floats, OutputSpace, RowType
from service.engine.kernels.piecewise import PiecewiseLinear
from service.methods.questions import Breakpoints, Forwards, Pieces


@dataclass(frozen=True, slots=True)
class Deployed:
    """Asks the deployed artefact for its outputs at `rows` [n, inputs]. Answered with `DeployedOutputs`."""

    rows: Floats

    def __len__(self) -> int:
        return len(self.rows)


Q = TypeVar("Q")

DeployedOutputs = dict[OutputSpace, Floats]
"""By output space, the outputs [n, labels]."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a question for its slots `start` to `stop`."""

    question: object
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Kernel(ABC):
    """One computation at one shape; a segment's part is joined with its siblings into the answer.

    `capacity` is how many slots a chunk has, each for a row, a point or a line; it falls when the device runs out of
    memory.
    """

    name: str
    capacity: int

    @abstractmethod
    def run(self, segments: Sequence[Segment]) -> list[object]:
        """The parts of the segments, which take at most `capacity` slots together."""

    @abstractmethod
    def join(self, parts: Sequence[object]) -> object:
        """The answer to a question from the parts of all its segments, in order."""

    def identity_of(self, question: object) -> Hashable:  # noqa: ARG002
        """All that the answer to a question depends on: of several with the same, one is answered for all of them.

        None for a question that nobody else is likely to ask.
        """
        return None


MOST_PADDING = 0.25
"""Of a chunk whose rows cost as much each as the next: more is cut into smaller chunks, each of which has a cost of its
own."""


class Kernels(Mapping[type, Sequence[Kernel]]):
    """The kernels of a model by type of question, from the smallest to the largest of each.

    A question goes to the first that it fits as built, or, where its type is among the `graded`, to several that it
    fills; whatever else waits: so the shapes it is computed at, and with them the last bits of its answer, depend on
    nothing but itself. Those `on_demand` are built when they are first needed.
    """

    def __init__(
        self,
        by_type: Mapping[type, Sequence[Kernel]],
        on_demand: Mapping[type, Callable[[], Kernel]] | None = None,
        graded: Collection[type] = (),
    ) -> None:
        self.graded = frozenset(graded)
        self._by_type = dict(by_type)
        self._as_built = {kind: [(kernel.capacity, kernel) for kernel in kernels] for kind, kernels in by_type.items()}
        self._on_demand = dict(on_demand or {})

    def __getitem__(self, kind: type) -> Sequence[Kernel]:
        return self._by_type[kind]

    def __iter__(self) -> Iterator[type]:
        return iter(self._by_type)

    def __len__(self) -> int:
        return len(self._by_type)

    def portions(self, question: object) -> list[tuple[Kernel, int, int]]:
        """Which kernel answers which slots of `question`, from one to another, in order.

        Of graded kernels the largest that the rest of it fills; what is left goes to the next larger one where at most
        a quarter of that is padding.
        """
        slots = slots_of(question)
        if type(question) not in self.graded or not slots:
            return [(self.of(question), 0, slots)]
        portions: list[tuple[Kernel, int, int]] = []
        start, kernels = 0, self._as_built[type(question)]
        while start < slots:
            left = slots - start
            filled = [(capacity, kernel) for capacity, kernel in kernels if capacity <= left]
            larger = next(((capacity, kernel) for capacity, kernel in kernels if capacity >= left), None)
            is_full = larger is None or (filled and MOST_PADDING * larger[0] < larger[0] - left)
            capacity, kernel = filled[-1] if is_full or larger is None else larger
            taken = min(left, capacity)
            if portions and portions[-1][0] is kernel:
                portions[-1] = kernel, portions[-1][1], start + taken
            else:
                portions.append((kernel, start, start + taken))
            start += taken
        return portions

    def of(self, question: object) -> Kernel:
        """The one kernel that answers `question`."""
        kind = type(question)
        if kind not in self._as_built:
            kernel = self._on_demand[kind]()
            self._by_type[kind], self._as_built[kind] = [kernel], [(kernel.capacity, kernel)]
        kernels = self._as_built[kind]
        slots = slots_of(question)
        return next((kernel for capacity, kernel in kernels if slots <= capacity), kernels[-1][1])


def slots_of(question: object) -> int:
    """How many slots of a chunk a question takes: one for each of its rows or points, or for its line."""
    return len(question) if isinstance(question, Sized) else 1


@dataclass(frozen=True, slots=True)
class Launched:
    """A launched chunk: whether it is done, and a call that waits for it and returns the parts.

    `withdraw` takes it back where it has not begun, and says whether it did.
    """

    is_done: Callable[[], bool]
    collect: Callable[[], list[object]]
    withdraw: Callable[[], bool] = lambda: False


class Overlapping(Kernel):
    """A kernel that computes a chunk on the device while other work continues.

    Of one `stream` two chunks may be under way at once, and the first ends first; those of another do not wait for it.
    """

    stream: str = "device"

    @abstractmethod
    def launch(self, segments: Sequence[Segment]) -> Launched:
        """Starts the chunk."""

    def run(self, segments: Sequence[Segment]) -> list[object]:
        return self.launch(segments).collect()


class HasOutputs(Protocol):
    """Something that maps rows [n, inputs] to outputs [n, labels] in every output space."""

    def outputs(self, rows: NDArray[np.floating]) -> Mapping[OutputSpace, NDArray[np.floating]]: ...


def filled_up(rows: NDArray[np.floating], capacity: int) -> NDArray[np.floating]:
    """The rows, padded with copies of the first: a model may have no finite answer for zeros."""
    chunk = np.empty((capacity, *rows.shape[1:]), dtype=rows.dtype)
    chunk[: len(rows)] = rows
    chunk[len(rows) :] = rows[0]
    return chunk


class DeployedKernel(Kernel):
    """Forward passes of the artefact in production, which takes rows of the `row_type`."""

    name = "deployed"

    def __init__(self, artefact: HasOutputs, capacity: int, row_type: RowType = SINGLE) -> None:
        self._artefact = artefact
        self.capacity = capacity
        self.row_type = row_type

    def run(self, segments: Sequence[Segment]) -> list[object]:
        rows = np.concatenate([_rows_of(s.question)[s.start : s.stop] for s in segments])
        chunk = filled_up(rows.astype(self.row_type), self.capacity)
        outputs = {space: values.astype(np.float64) for space, values in self._artefact.outputs(chunk).items()}
        ends = np.cumsum([len(segment) for segment in segments])
        return [
            {space: values[end - len(segment) : end] for space, values in outputs.items()}
            for segment, end in zip(segments, ends, strict=True)
        ]

    def identity_of(self, question: object) -> Hashable:
        return _rows_of(question).tobytes()

    def join(self, parts: Sequence[object]) -> DeployedOutputs:
        outputs = [part for part in parts if isinstance(part, dict)]
        return {space: np.concatenate([part[space] for part in outputs]) for space in outputs[0]}


NO_LIMIT = 2**31


class BreakpointsKernel(Kernel):
    """Breakpoints of a piecewise-linear network on many lines together, each with `most_pieces` at most."""

    name = "breakpoints"

    def __init__(
        self, network: PiecewiseLinear, capacity: int, shape: tuple[int, ...], most_pieces: int = NO_LIMIT
    ) -> None:
        self._network = network
        self._most_pieces = most_pieces
        self._shape = shape
        self.capacity = capacity

    def run(self, segments: Sequence[Segment]) -> list[object]:
        lines = [question_of(segment, Breakpoints) for segment in segments]
        starts, ends = (
            np.array(rows, dtype=self._network.row_type).reshape(-1, *self._shape)
            for rows in ([line.start for line in lines], [line.end for line in lines])
        )
        most = np.array([min(line.max_pieces, self._most_pieces) for line in lines])
        bends = self._network.breakpoints(starts, ends, most)
        logits = bends.logits.astype(np.float64)
        bounds = np.searchsorted(bends.line, np.arange(len(lines) + 1)).tolist()
        return [
            Pieces(None, None) if over else Pieces(bends.alpha[first:last], logits[first:last])
            for over, first, last in zip(bends.overflowed.tolist(), bounds[:-1], bounds[1:], strict=True)
        ]

    def identity_of(self, question: object) -> Hashable:
        assert isinstance(question, Breakpoints)
        return question.start.tobytes(), question.end.tobytes(), question.max_pieces

    def join(self, parts: Sequence[object]) -> object:
        (pieces,) = parts
        return pieces


def _rows_of(question: object) -> Floats:
    assert isinstance(question, Deployed | Forwards)
    return question.rows


def question_of(segment: Segment, kind: type[Q]) -> Q:
    """The question of a segment, which must be of this kind."""
    assert isinstance(segment.question, kind)
    return segment.question
