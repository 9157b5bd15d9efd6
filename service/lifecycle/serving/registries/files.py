"""What is known of a place elsewhere that holds version folders: which there are, and the bytes of their files."""

from __future__ import annotations

from typing import Protocol

from service.errors import CatalogError

MANIFEST = "manifest.yaml"
BLOCK_BYTES = 8 * 1024 * 1024
"""The most that is asked for at once, and so the most that a cut connection costs."""


class RegistryUnreachable(CatalogError):
    """Nothing is known of what is there now: no connection, no right to look, or nothing at the address."""


class NoSuchFile(CatalogError):
    """There is no such file, although the place itself answers."""


class Files(Protocol):
    """Files elsewhere; the paths of theirs have `/` between folders. Calls block; whoever makes them has a thread.

    Every method raises RegistryUnreachable; its sentence holds no credential and nothing of the address but `shown`.
    """

    shown: str
    """The address without whatever may be secret in it."""

    def folders(self) -> list[str]:
        """The folders that hold a manifest: `NAME/VERSION` each, or "" alone where the address itself is a version."""

    def size(self, path: str) -> int:
        """Bytes of a file. Raises NoSuchFile."""

    def read(self, path: str, start: int, length: int) -> bytes:
        """At most `length` bytes (at most BLOCK_BYTES) from `start` on; fewer at the end. Raises NoSuchFile."""


def within(path: str, *parts: str) -> str:
    """A path of a folder, which may be "", and what lies in it."""
    return "/".join(part for part in (path, *parts) if part)


def exact_part(answer: bytes, start: int, length: int, shown: str) -> bytes:
    """The part that was asked for, of a server's answer that may be the whole file. Raises CatalogError.

    A server that knows no ranges sends the whole file each time, which is refused where that is not one block.
    """
    if len(answer) <= length:
        return answer
    if start:
        raise CatalogError(f"{shown} sends whole files only: use a server that answers requests with Range")
    return answer[:length]
