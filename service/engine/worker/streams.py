"""Streams: the chunks under way on a device, in the order in which they end."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from service.engine.kernels.kernel import Kernel, Launched, Overlapping
from service.engine.worker.packing import PackedChunk

MAX_UNDER_WAY = 2
"""How many chunks of a stream are launched at once: one that the device computes, one that waits for it."""
PATIENCE_SECONDS = (0.0005, 0.002)
PATIENCE_SHARE = 1 / 16
POLLS = 3
"""For a chunk under way the worker waits for that share of the time that it has taken so far, within these limits, and
then looks for new requests; it looks so often whether the chunk is done. Beside a chunk of 0.15 s there is no need to
look every 0.2 ms."""


@dataclass(frozen=True, slots=True)
class ChunkUnderWay:
    """A chunk that was `started` at that time of the monotonic clock."""

    packed: PackedChunk
    launched: Launched
    started: float


class Streams:
    """The chunks under way on each stream; kernels that do not overlap have none."""

    def __init__(self) -> None:
        self._under_way: defaultdict[str, deque[ChunkUnderWay]] = defaultdict(deque)

    def __bool__(self) -> bool:
        """Whether any chunk is under way."""
        return any(self._under_way.values())

    def has_room_for(self, kernel: Kernel) -> bool:
        """Whether a chunk of this kernel can be started now."""
        return not isinstance(kernel, Overlapping) or len(self._under_way[kernel.stream]) < MAX_UNDER_WAY

    def launch(self, kernel: Overlapping, packed: PackedChunk) -> None:
        """Starts a chunk behind those of its stream. Raises what the kernel raises."""
        started = time.monotonic()
        self._under_way[kernel.stream].append(ChunkUnderWay(packed, kernel.launch(packed.segments), started))

    def take_first(self, kernel: Overlapping) -> ChunkUnderWay | None:
        """The chunk of the kernel's stream that ends first, which is no longer held here."""
        chunks = self._under_way[kernel.stream]
        return chunks.popleft() if chunks else None

    def take_all(self, kernel: Kernel) -> Iterator[PackedChunk]:
        """The chunks of the kernel's stream, the last first; they are computed in vain."""
        chunks = self._under_way[kernel.stream] if isinstance(kernel, Overlapping) else deque()
        while chunks:
            yield chunks.pop().packed

    def take_done(self) -> Iterator[ChunkUnderWay]:
        """The chunks that the device has computed, each stream's in order."""
        for chunks in self._under_way.values():
            while chunks and chunks[0].launched.is_done():
                yield chunks.popleft()

    def withdraw_bulk(self, stream: str) -> Iterator[PackedChunk]:
        """Takes back the chunks of bulk work that the device has not begun, the last first."""
        chunks = self._under_way[stream]
        while chunks and chunks[-1].packed.is_bulk and chunks[-1].launched.withdraw():
            yield chunks.pop().packed

    def wait(self) -> None:
        """Returns when the first chunk of a stream is done, or after a while that is short beside the time it takes."""
        first = [chunks[0] for chunks in self._under_way.values() if chunks]
        now = time.monotonic()
        least, most = PATIENCE_SECONDS
        seconds = min(max(least, (now - max(chunk.started for chunk in first)) * PATIENCE_SHARE), most)
        while not any(chunk.launched.is_done() for chunk in first) and time.monotonic() < now + seconds:
            time.sleep(seconds / POLLS)
