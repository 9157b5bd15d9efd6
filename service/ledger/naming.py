"""What a person may be called. One name is one person, however its letters are put together.

Unicode has two spellings of `é`, a letter or a letter and an accent, that nobody can tell apart. Names are brought to
the composed one (NFC) wherever they enter. Those recorded before that was so are found by either spelling.
"""

from __future__ import annotations

import unicodedata


def normal(name: str) -> str:
    """The name, as it is kept."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def spellings(name: str) -> tuple[str, ...]:
    """The name as it is kept, then as it may have been kept before."""
    if name.isascii():
        return (name,)
    return tuple(dict.fromkeys((normal(name), unicodedata.normalize("NFD", name), name)))
