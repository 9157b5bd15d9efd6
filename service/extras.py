"""How packages are installed that only some need: the extras of this project, which lies in no registry."""

from __future__ import annotations


def install(extra: str) -> str:
    """The command that installs an extra, in the folder that this project was checked out to."""
    return f".venv/bin/pip install --constraint deploy/constraints.txt --editable '.[{extra}]'"
