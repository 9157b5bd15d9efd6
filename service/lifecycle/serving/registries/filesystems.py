"""Files at an address of fsspec: S3, Google Cloud Storage, Azure, https, or a mounted folder.

Imported only where one is named. Credentials come from where each filesystem looks for them: the environment, its
files, or the machine's role.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any
from urllib.parse import urlsplit

from fsspec.core import url_to_fs

from service.errors import CatalogError
from service.extras import install
from service.lifecycle.serving.registries.files import MANIFEST, NoSuchFile, RegistryUnreachable, exact_part, within

CONNECT_SECONDS, READ_SECONDS = 5, 30
_S3 = {
    "config_kwargs": {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retries": {"max_attempts": 1}}
}
OPTIONS: dict[str, dict[str, Any]] = {"s3": _S3}
"""Fetching tries again by itself, where it stopped."""


def shown_address(address: str) -> str:
    """The address without user, password and query, which may hold a token or a signature."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


class FilesystemFiles:
    """Version folders at an address such as `s3://bucket/models`."""

    def __init__(self, address: str) -> None:
        self.shown = shown_address(address)
        scheme = urlsplit(address).scheme
        self._open = partial(
            url_to_fs, address, use_listings_cache=False, skip_instance_cache=True, **OPTIONS.get(scheme, {})
        )

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The filesystem and the path in it; some ask for their credentials when they are made."""
        filesystem, root = self._open()
        if hasattr(filesystem, "retries"):  # s3fs tries five times in each of five attempts
            filesystem.retries = 1
        return filesystem, root.rstrip("/")

    def folders(self) -> list[str]:
        with self._reaching():
            top = self._names("")
        if MANIFEST in top:
            return [""]
        found = []
        for model in top:
            for version in self._within(model):
                path = within(model, version)
                if MANIFEST in self._within(path):
                    found.append(path)
        return found

    def _within(self, path: str) -> list[str]:
        try:
            with self._reaching(path):
                return self._names(path)
        except NoSuchFile:
            return []

    def _names(self, path: str) -> list[str]:
        filesystem, root = self._opened
        here = within(root, path)
        entries = filesystem.ls(here, detail=True)
        names = [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in entries if not _is_itself(entry, here)]
        return sorted({name for name in names if name})

    def size(self, path: str) -> int:
        with self._reaching(path):
            filesystem, root = self._opened
            size = filesystem.info(within(root, path))["size"]
        if not isinstance(size, int):
            raise CatalogError(f"{self.shown} does not say how large {path} is: use a server that sends Content-Length")
        return size

    def read(self, path: str, start: int, length: int) -> bytes:
        with self._reaching(path):
            filesystem, root = self._opened
            answer: bytes = filesystem.cat_file(within(root, path), start=start, end=start + length)
        return exact_part(answer, start, length, self.shown)

    @contextmanager
    def _reaching(self, path: str | None = None) -> Iterator[None]:
        """Turns whatever a filesystem raises into an error of ours: each has its own, with no base class in common."""
        try:
            yield
        except CatalogError:
            raise
        except FileNotFoundError as error:
            if path is not None and not _is_of_connection(error.__cause__):
                raise NoSuchFile(f"there is no {path} in {self.shown}") from None
            if path is None and not _is_of_connection(error.__cause__):
                raise RegistryUnreachable(f"there is nothing at {self.shown}: check ANSWERABLE_MODELS") from None
            raise self._unreachable(error) from None
        except ImportError:
            raise RegistryUnreachable(f"a package is missing to read {self.shown}: {install('remote')}") from None
        except PermissionError:
            raise RegistryUnreachable(f"{self.shown} may not be read: check the service's credentials for it") from None
        except Exception as error:  # noqa: BLE001 - see above
            raise self._unreachable(error) from None

    def _unreachable(self, error: BaseException) -> RegistryUnreachable:
        kind = type(error.__cause__ or error).__name__
        return RegistryUnreachable(f"{self.shown} cannot be reached ({kind}): check the network and the credentials")


def _is_itself(entry: Any, folder: str) -> bool:
    """Whether a listing has the folder itself, or the file that stands where a folder was asked for."""
    return str(entry["name"]).rstrip("/") == folder


def _is_of_connection(cause: BaseException | None) -> bool:
    """Whether the error behind a missing file, which fsspec's HTTP raises for any failure, is of the connection."""
    return cause is not None and (
        isinstance(cause, OSError | asyncio.TimeoutError) or "Connection" in type(cause).__name__
    )
