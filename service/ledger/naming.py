"""The spelling of people's names: one name is one person, however Unicode encodes its letters.

Unicode encodes `é` in two ways, as one character or as a letter and an accent, which look the same. Names are converted
to the composed form (NFC) wherever they enter. Names recorded before that are found by either spelling.
"""

from __future__ import annotations

import unicodedata


def normal(name: str) -> str:
    """The name in the form in which it is stored."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def spellings(name: str) -> tuple[str, ...]:
    """The name as it is stored, then as earlier versions may have stored it."""
    if name.isascii():
        return (name,)
    return tuple(dict.fromkeys((normal(name), unicodedata.normalize("NFD", name), name)))
