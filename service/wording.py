"""How sentences tell numbers, and what is wrong with a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number_of(count: int, noun: str, plural: str | None = None) -> str:
    """`1 row`, `2 rows`; `plural` where it is not the noun with an s."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def others_listed(count: int) -> str:
    """What follows the first fault of a refusal, where its `errors` list so many others."""
    if not count:
        return ""
    return f"; {number_of(count, 'more fault')} {'is' if count == 1 else 'are'} listed in `errors`"


VALIDATED: Mapping[str, str] = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "model_type": "must be an object of named values",
    "model_attributes_type": "must be an object of named values",
    "dict_type": "must be an object of named values",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "string_type": "must be a text",
    "string_too_short": "must have at least {characters}",
    "string_too_long": "must have at most {characters}",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "too_short": "must have at least {items}",
    "too_long": "must have at most {items}",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number, and not as large",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be over {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be under {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "union_tag_invalid": "has an unknown {discriminator}; it must be one of {expected_tags}",
    "union_tag_not_found": "needs {discriminator}",
}
"""What pydantic finds wrong, by the kind of its error: its own sentences are about Python."""
UNFIT = "must have the form that the documentation says"
SENTENCE = "sentence"
"""The kind of pydantic errors (`PydanticCustomError`) whose message is this program's own sentence."""


def sentence_of_fault(place: str, fault: Mapping[str, Any]) -> str:
    """What is wrong at a place, from one of pydantic's errors with its context, in this program's own words.

    Of its own validators' sentences those that begin with `must` go on from the place.
    """
    kind, context = fault["type"], fault.get("ctx") or {}
    if kind in VALIDATED:
        return f"{place} {_predicate(kind, context)}".lstrip()
    own = str(context["error"]) if kind == "value_error" else str(fault["msg"]) if kind == SENTENCE else UNFIT
    return f"{place} {own}".lstrip() if own.startswith("must ") else f"{place}: {own}" if place else own


def _predicate(kind: str, context: Mapping[str, Any]) -> str:
    length = context.get("min_length", context.get("max_length", 0))
    return VALIDATED[kind].format_map(
        {**context, "characters": number_of(length, "character"), "items": number_of(length, "item")}
    )
