"""Files of lines that only grow, beside the database. What a full disk tore is cut off before more follows."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import orjson

BLOCK = 64 * 1024


def append_line(path: Path, line: Callable[[bytes | None], bytes]) -> None:
    """Adds the line that is made of the one before it, durably; all of it, or nothing. Raises OSError."""
    with _held(path, os.O_CREAT) as file:
        _cut_torn_end(file)
        added = line(_last_line(file)) + b"\n"
        end = file.seek(0, os.SEEK_END)
        try:
            file.write(added)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), end)
            raise


def cut_torn_end(path: Path) -> bytes | None:
    """Cuts off what stands behind the last whole line, and returns it; None where nothing does. Raises OSError."""
    if not path.exists():
        return None
    with _held(path) as file:
        return _cut_torn_end(file)


def last_line(path: Path) -> bytes | None:
    """The last whole line; None where there is none. Raises OSError."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        return _last_line(file)


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines that end, each without its end. Raises OSError."""
    with path.open("rb") as file:
        yield from (line[:-1] for line in file if line.endswith(b"\n"))


@contextmanager
def _held(path: Path, flags: int = 0) -> Iterator[IO[bytes]]:
    with os.fdopen(os.open(path, os.O_RDWR | flags, 0o644), "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _cut_torn_end(file: IO[bytes]) -> bytes | None:
    """A line that is whole but for its end gets that: nothing of it is lost."""
    end = _end_of_lines(file)
    file.seek(end)
    torn = file.read()
    if not torn:
        return None
    try:
        orjson.loads(torn)
    except ValueError:
        os.ftruncate(file.fileno(), end)
        return torn
    file.write(b"\n")
    return None


def _end_of_lines(file: IO[bytes], before: int | None = None) -> int:
    """The place behind the last line's end, or behind the last one that lies before a place."""
    at = file.seek(0, os.SEEK_END) if before is None else before
    while at > 0:
        first = max(0, at - BLOCK)
        file.seek(first)
        found = file.read(at - first).rfind(b"\n")
        if found >= 0:
            return first + found + 1
        at = first
    return 0


def _last_line(file: IO[bytes]) -> bytes | None:
    end = _end_of_lines(file)
    if end == 0:
        return None
    start = _end_of_lines(file, end - 1)
    file.seek(start)
    return file.read(end - 1 - start)
