"""Prompts of a language model: texts, of which it is explained what follows them.

The row that the network is given holds the prompt and, behind it, the continuation that is explained, and the one that
this is compared with. Tokens of the one are numbered from the vocabulary's size on, those of the other from twice that,
so that a row says of each token what it is. They are given to the network as they are, and never explained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from service.catalog.formats import Artefact
from service.catalog.inputs.kind import PLAIN, Detail, Row
from service.catalog.inputs.sequences import Tokenizer
from service.catalog.inputs.tokens import TokenAttributions, TokenInputs
from service.catalog.nearest import Searches
from service.domain import Continuation, Floats, PlanTarget, RowType
from service.errors import InvalidRequest
from service.wording import number_of

LIKELIEST = Continuation((0,))
"""Stands for the likeliest token where that is not known yet: it takes one place."""
SOME = 4
"""Tokens of a random continuation, at most."""


class PromptInputs(TokenInputs):
    """Tokens below `vocabulary`, of which `length` are taken together with their continuation.

    Rows are padded with what is no token: one that a tokenizer pads with may well stand in a prompt. The baseline
    `mask` has the token `mask` in the place of every token but the `special` ones; places are the same.
    """

    kind: Literal["prompt"]  # type: ignore[assignment]
    are_prompts: ClassVar[bool] = True
    padding: Literal[-1] = -1

    @model_validator(mode="after")
    def _consistent(self) -> PromptInputs:
        if max((self.mask, *self.special)) >= self.vocabulary:
            raise ValueError("mask and special tokens must be below the vocabulary's size")
        if self.bytes is not None or self.side:
            raise ValueError("a prompt is a text or a list of tokens: it has no `bytes`, and no `side`")
        if self.tokenizer is not None and self.tokenizer.truncate:
            raise ValueError("a prompt that is cut is continued in its middle: `truncate` is for texts that are judged")
        return self

    def __hash__(self) -> int:
        return super().__hash__()

    @property
    def has_mask(self) -> bool:
        """Always: padding stands behind what is continued."""
        return True

    def check_artefact(self, artefact: Artefact) -> None:
        """Only of a Hugging Face folder is it known how to ask for continuations."""
        if not artefact.takes_tokens:
            raise ValueError(f"prompts are continued by a Hugging Face folder, not by the format {artefact.format}")
        super().check_artefact(artefact)

    @property
    def text_tokenizer(self) -> Tokenizer | None:
        return self.tokenizer

    def read(self, instance: object, folder: Path | None = None, searches: Searches | None = None) -> Row:
        """As of other tokens; one place must be left for what follows."""
        row = super().read(instance, folder, searches)
        tokens = self.length_of(row.values)
        if tokens >= self.length:
            raise InvalidRequest(
                f"the prompt has {tokens} tokens, and the model takes {self.length} together with what follows; "
                "shorten it"
            )
        return row

    def with_target(self, values: tuple[float, ...], target: PlanTarget | None) -> tuple[float, ...]:
        """The prompt, and behind it the continuation."""
        continuation = target if isinstance(target, Continuation) else LIKELIEST
        behind = [self.vocabulary + token for token in continuation.tokens]
        behind += [2 * self.vocabulary + token for token in continuation.rather_than]
        start = self.length_of(values)
        if start + len(behind) > self.length:
            raise InvalidRequest(
                f"the prompt has {number_of(start, 'token')} and what follows {len(behind)}; the model takes "
                f"{self.length} together"
            )
        return (*values[:start], *map(float, behind), *values[start + len(behind) :])

    def attributions(
        self, values: Sequence[float], shape: tuple[int, ...], row: Row, *, detail: Detail = PLAIN
    ) -> TokenAttributions:
        """By token of the prompt."""
        if row.places is None:
            tokens = self.length_of(row.values)
            row, values = Row(row.values[:tokens]), values[:tokens]
        return super().attributions(values, shape, row, detail=detail)

    def random_rows(self, count: int, row_type: RowType) -> NDArray[np.floating]:
        """Prompts with a continuation of a few tokens, every other one of which is compared with another one; and
        padding behind every other pair."""
        draws = np.random.default_rng(0)
        rows = np.full((count, self.length), self.padding, dtype=row_type)
        some = min(SOME, max(1, (self.length - 1) // 3))
        for number, row in enumerate(rows):
            lengths = draws.integers(1, some + 1, 2)
            own, other = int(lengths[0]), int(lengths[1]) if number % 2 and self.length > 2 * some else 0
            most = self.length - own - other
            prompt = most if number % 4 < 2 else int(draws.integers(1, most + 1))
            row[: prompt + own + other] = draws.integers(0, self.vocabulary, prompt + own + other)
            row[prompt : prompt + own] += self.vocabulary
            row[prompt + own : prompt + own + other] += 2 * self.vocabulary
        return rows

    def whole_rows(self, count: int) -> NDArray[np.floating]:
        """Prompts that are continued by one token in the last place."""
        tokens = np.random.default_rng(0).integers(0, self.vocabulary, (count, self.length)).astype(np.float32)
        tokens[:, -1] += self.vocabulary
        return tokens


@dataclass(frozen=True, slots=True)
class PromptEncoding:
    """Tokens of a prompt by the `table` [vocabulary, dimensions] of their embeddings, and in one dimension more what
    stands there: 0 for padding, 1 for a token of the prompt, and 2 and more, in the order of rows, for one of a
    continuation, whose embedding the network looks up itself."""

    table: NDArray[np.float32]
    length: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.length, self.table.shape[1] + 1

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        low, high = (np.append(limit(axis=0), 0).astype(np.float64) for limit in (self.table.min, self.table.max))
        return np.tile(low, self.length), np.tile(high, self.length)

    @property
    def fixed(self) -> NDArray[np.bool_]:
        is_code = np.zeros(self.shape, dtype=np.bool_)
        is_code[:, -1] = True
        return is_code.ravel()

    def __call__(self, rows: Floats) -> Floats:
        tokens, size = rows.astype(np.int64), len(self.table)
        is_prompt = (tokens >= 0) & (tokens < size)
        embedded = np.where(is_prompt[..., None], self.table[np.where(is_prompt, tokens, 0)], np.float32(0))
        codes = np.where(is_prompt, 1, np.where(tokens < 0, 0, tokens - size + 2))
        flat: Floats = np.concatenate([embedded, codes[..., None]], axis=-1).reshape(len(rows), -1).astype(np.float64)
        return flat
