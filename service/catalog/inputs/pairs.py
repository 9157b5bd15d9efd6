"""Pairs of texts: one row of tokens, in which a separator stands behind the first text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.errors import CatalogError, InvalidRequest, Kind, invalid

if TYPE_CHECKING:
    from tokenizers import Encoding

    from service.catalog.inputs.tokens import TokenInputs

EMPTY = ("", "")
PROBE = ("a", "b")


def is_second(tokens: NDArray[Any], separator: int) -> NDArray[np.bool_]:
    """Which of the tokens [..., length] stand behind the first separator, padding included: the second part's."""
    is_separator = tokens == separator
    behind: NDArray[np.bool_] = np.cumsum(is_separator, axis=-1) > is_separator
    return behind


def part_of(tokens: Sequence[float], separator: int | None) -> list[int] | None:
    """For each token of a row 0 or 1, the part that it belongs to; None of a model that takes one text."""
    if separator is None:
        return None
    parts: list[int] = is_second(np.array(tokens), separator).astype(int).tolist()
    return parts


def texts_of(inputs: TokenInputs, text: object) -> tuple[str, ...] | None:
    """The one text of an instance, or both of a pair; None where it is neither.

    Raises InvalidRequest for a text where the model takes two, and for two where it takes one.
    """
    match text:
        case str():
            texts: tuple[str, ...] = (text,)
        case [str(first), str(second)]:
            texts = first, second
        case _:
            return None
    takes_two = inputs.separator is not None
    if takes_two and len(texts) == 1:
        raise invalid(Kind.WRONG_INSTANCE, "/text", 'the model takes two texts: {"text": ["query", "document"]}')
    if len(texts) == 2 and not takes_two:
        detail = "the model takes one text; in the manifest of one that takes two, inputs name the `separator` of both"
        raise invalid(Kind.WRONG_INSTANCE, "/text", detail)
    return texts


def check_tokenizer(file: str, encoded: Encoding, inputs: TokenInputs) -> None:
    """Holds what a tokenizer makes of a pair against the manifest, which says how the parts are told apart.

    Raises CatalogError.
    """
    assert inputs.separator is not None
    if not _are_told_apart(encoded, inputs.separator):
        raise CatalogError(f"{file} puts no token {inputs.separator}, the `separator`, between the texts of a pair")
    types = part_of(encoded.ids, inputs.separator)
    if inputs.has_parts and encoded.type_ids != types:
        raise CatalogError(
            f"{file} gives the tokens of a pair the types {encoded.type_ids}, and `parts` would give them {types}"
        )


def check_parts(encoded: Encoding, separator: int) -> None:
    """Raises InvalidRequest where the first text holds the separator itself: the model would take it for the end."""
    if not _are_told_apart(encoded, separator):
        token = encoded.tokens[encoded.ids.index(separator)]
        raise invalid(
            Kind.WRONG_INSTANCE,
            "/text/0",
            f"the first text holds {token}, by which the model tells the second from it; take it out",
        )


def _are_told_apart(encoded: Encoding, separator: int) -> bool:
    second = part_of(encoded.ids, separator)
    assert second is not None
    return all(own is None or own == part for own, part in zip(encoded.sequence_ids, second, strict=True))


def first_too_long(encoded: Encoding, length: int) -> InvalidRequest:
    """The error of a first text that leaves no room for the second, as the tokens of both without truncation say."""
    first = encoded.sequence_ids.count(0)
    added = encoded.sequence_ids.count(None)
    return invalid(
        Kind.WRONG_INSTANCE,
        "/text/0",
        f"the first text has {first} tokens, the model takes {length} of both, {added} of which are its own: shorten "
        "it; only the second text is cut",
    )
