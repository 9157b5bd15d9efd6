"""Secrets in files that only their owner may read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from service.errors import SetupError


class SecretFileError(SetupError):
    """The file of a secret cannot be used; the message says which, and what to do."""


def read_secret(path: Path) -> bytes:
    """The content of the file. Raises FileNotFoundError, and SecretFileError when others may read it."""
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SecretFileError(f"{path} cannot be read: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise SecretFileError(f"{path} can be read by others than its owner; run chmod 600 on it")
    return content


def create_secret(path: Path, content: bytes) -> bool:
    """Writes a new file that only its owner may read; returns whether it did: False when there is one already.

    The file is whole and on the disk when it can be found. Raises SecretFileError.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)  # unlike a rename, it replaces nothing
        except FileExistsError:
            return False
        finally:
            part.unlink()
    except OSError as error:
        raise SecretFileError(f"{path} cannot be written: {error.strerror}") from error
    return True
