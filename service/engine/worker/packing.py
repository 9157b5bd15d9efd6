"""Packing: what waits for a kernel, and what of it goes into the next chunk.

Interactive work is packed before bulk, and inside a class each explanation gets `quantum` slots in turn, so that a
large one never keeps a small one waiting for more than a chunk.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from service.domain import Priority
from service.engine.kernels.kernel import Kernel, Kernels, Segment
from service.engine.worker.explanation import Steps

MIN_QUANTUM = 64
SHARES = 4


@dataclass(slots=True, eq=False)
class Live:
    """An explanation under way.

    Its open `question`, the `asked`th, counts `slots`; `parts` are the answers so far, to `answered` slots, by their
    first slot.
    """

    task: int
    steps: Steps
    kernels: Kernels
    model: str
    priority: Priority
    deadline: float | None
    received: float
    started: float | None = None
    question: object = None
    asked: int = 0
    slots: int = 0
    answered: int = 0
    parts: dict[int, object] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Portion:
    """Slots of an open question that one kernel answers: those before `packed` are in chunks, those to `stop` wait.

    Whole questions of the same `identity` have the same answer; None for parts of one, and where nobody asks the same.
    """

    live: Live
    kernel: Kernel
    packed: int
    stop: int
    identity: Hashable = None

    @property
    def remaining(self) -> int:
        """Slots that no chunk has taken yet."""
        return self.stop - self.packed


Taken = list[tuple[Portion, Segment]]
"""What of which portion is in a chunk. Portions that ask the same have the same segment, which is in the chunk once."""


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """A chunk for a kernel, with what it holds of which portion."""

    kernel: Kernel
    taken: Taken

    @property
    def segments(self) -> list[Segment]:
        """Each once."""
        return list({id(segment): segment for _, segment in self.taken}.values())

    @property
    def is_bulk(self) -> bool:
        """Whether no interactive explanation has a part in it."""
        return all(portion.live.priority is Priority.BULK for portion, _ in self.taken)


def quantum(capacity: int) -> int:
    """The slots of a chunk that one explanation gets before the next has its turn.

    A quarter of the chunk, since each explanation in it costs the host some time; at least 64, so that small questions
    are not cut up.
    """
    return max(MIN_QUANTUM, capacity // SHARES)


class Queue:
    """What waits for one kernel of one model, by class; and, of questions that no chunk has begun, which are alike."""

    def __init__(self) -> None:
        self._waiting: dict[Priority, deque[Portion]] = {priority: deque() for priority in Priority}
        self._alike: defaultdict[Hashable, list[Portion]] = defaultdict(list)

    def __bool__(self) -> bool:
        return any(self._waiting.values())

    @property
    def is_urgent(self) -> bool:
        """Whether interactive work waits here."""
        return bool(self._waiting[Priority.INTERACTIVE])

    def add(self, portion: Portion) -> None:
        self._waiting[portion.live.priority].append(portion)
        if portion.identity is not None and not portion.packed:
            self._alike[portion.identity].append(portion)

    def take(self, capacity: int, alive: dict[int, Live]) -> Taken:
        """Segments of at most `capacity` slots together; cancelled and expired explanations are dropped.

        Whoever asks what one of them asks as a whole gets the same segment, for no slots of its own.
        """
        taken: dict[Portion, Segment] = {}
        followers: list[tuple[Portion, Portion]] = []
        most = quantum(capacity)
        for priority in Priority:
            waiting = self._waiting[priority]
            while waiting and capacity:
                portion = waiting.popleft()
                live = portion.live
                alike = [one for one in self._alike.pop(portion.identity, []) if one is not portion]
                if alive.get(live.task) is not live:
                    self._keep_alike(alike)
                    continue
                slots = min(most, portion.remaining, capacity)
                start = taken[portion].start if portion in taken else portion.packed
                portion.packed += slots
                capacity -= slots
                taken[portion] = Segment(live.question, start, portion.packed)
                if portion.remaining:
                    waiting.append(portion)
                if slots < portion.stop:
                    self._keep_alike(alike)
                    continue
                for other in alike:
                    self._waiting[other.live.priority].remove(other)
                    other.packed = other.stop
                    followers.append((other, portion))
        shared = ((other, taken[leader]) for other, leader in followers if alive.get(other.live.task) is other.live)
        return [*taken.items(), *shared]

    def _keep_alike(self, others: list[Portion]) -> None:
        if others:
            self._alike[others[0].identity] = others
