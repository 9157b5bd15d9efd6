"""Frames on the socket between the front and a worker: a length and a pickle. Both are this program's own processes."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from typing import Any

HEADER = struct.Struct("!I")


def frame(message: object) -> bytes:
    """The frame that carries `message`."""
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(content)) + content


class Unframer:
    """Puts what arrives together into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that `data` completes, in order."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            content = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield pickle.loads(content)  # noqa: S301
