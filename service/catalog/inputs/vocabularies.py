"""Vocabularies: the tokens of a text that continues another one, and the text of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from service.catalog.inputs.sequences import MAX_CHARACTERS, Tokenizer, parse_tokenizer
from service.catalog.version_files import read_verified

if TYPE_CHECKING:
    pass

BEFORE = ("\n", "a", ".", "1")
"""What a continuation is tokenised behind, up to the first with which it shares no token: many tokenizers take the
beginning of a text for that of a word."""
MAX_VOCABULARIES = 64


class Vocabulary:
    """The tokens of a tokenizer, between the tokens of a prompt and the end of what follows it."""

    def __init__(self, content: bytes, file: str) -> None:
        """Raises CatalogError when the file is no tokenizer."""
        self._parsed = parse_tokenizer(content, file)
        self._shown = self._ids("a")
        self._before = self._parsed.decode(self._shown, skip_special_tokens=False)

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """The tokens of a text that continues another one, without special ones. Raises ValueError, saying why."""
        if not text:
            raise ValueError("it is empty")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"it has {len(text)} characters; at most {MAX_CHARACTERS} are read")
        for before in BEFORE:
            known, whole = self._ids(before), self._ids(before + text)
            if whole[: len(known)] == known:
                return tuple(whole[len(known) :])
        return tuple(self._ids(text))

    def text_of(self, tokens: Sequence[int]) -> str:
        """Their text, behind another one."""
        whole: str = self._parsed.decode([*self._shown, *tokens], skip_special_tokens=False)
        return whole.removeprefix(self._before)

    def _ids(self, text: str) -> list[int]:
        """The batch call is used for the one text, since the call for a single text holds the interpreter's lock."""
        (encoding,) = self._parsed.encode_batch([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids


@lru_cache(MAX_VOCABULARIES)
def read_vocabulary(folder: Path, declared: Tokenizer) -> Vocabulary:
    """That of the version in `folder`. Raises CatalogError."""
    return Vocabulary(read_verified(folder, declared.file, declared.sha256), declared.file)
