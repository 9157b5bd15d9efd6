"""Append-only files of lines beside the database. A line that a full disk cut short is removed before the next one."""

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
    """Appends a line, made from the line before it, durably and whole or not at all. Raises OSError."""
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
    """Removes what follows the last whole line, and returns it; None where nothing does. Raises OSError."""
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
    """The whole lines, each without its line break. Raises OSError."""
    with path.open("rb") as file:
        yield from (line[:-1] for line in file if line.endswith(b"\n"))


@contextmanager
def _held(path: Path, flags: int = 0) -> Iterator[IO[bytes]]:
    with os.fdopen(os.open(path, os.O_RDWR | flags, 0o644), "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _cut_torn_end(file: IO[bytes]) -> bytes | None:
    """As `cut_torn_end`; a last line that lacks only its line break gets one instead."""
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
    """The offset after the last line break of the file, or after the last one before the offset `before`."""
    at = file.seek(0, os.SEEK_END) if before is None else before
    while at > 0:
        first = max(0, at - BLOCK)
        file.seek(first)
        index = file.read(at - first).rfind(b"\n")
        if index >= 0:
            return first + index + 1
        at = first
    return 0


def _last_line(file: IO[bytes]) -> bytes | None:
    end = _end_of_lines(file)
    if end == 0:
        return None
    start = _end_of_lines(file, end - 1)
    file.seek(start)
    return file.read(end - 1 - start)
