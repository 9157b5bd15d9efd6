"""Texts and files become tokens, and tokens keep their places in what was sent."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from service.catalog.inputs.kind import Row
from service.catalog.inputs.sequences import MAX_CHARACTERS, Spans, TextTokenizer, read_sequence, read_tokenizer
from service.catalog.inputs.tokens import TokenInputs
from service.errors import CatalogError, InvalidRequest

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ignore", "all", "##ing", "walk", "cafe", "!"]
LENGTH = 8


def tokenizer_json() -> bytes:
    """WordPiece as BERT has it, with fixed padding and truncation of its own, which must not be used."""
    parsed = Tokenizer(models.WordPiece({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    parsed.normalizer = normalizers.BertNormalizer()
    parsed.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    parsed.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    parsed.enable_padding(length=4)
    parsed.enable_truncation(4)
    return parsed.to_str().encode()


def inputs(content: bytes = b"", **changes: Any) -> TokenInputs:
    named = {"file": "tokenizer.json", "sha256": hashlib.sha256(content or tokenizer_json()).hexdigest()}
    given = {
        "kind": "tokens",
        "tensor": "ids",
        "length": LENGTH,
        "vocabulary": len(WORDS),
        "padding": 0,
        "mask": 4,
        "special": [2, 3],
        "tokenizer": {**named, **changes.pop("tokenizer", {})},
    }
    return TokenInputs.model_validate(given | changes)


def tokenizer(declared: TokenInputs) -> TextTokenizer:
    assert declared.tokenizer is not None
    return TextTokenizer(tokenizer_json(), declared.tokenizer, declared)


def spans_of(read: Row) -> Spans:
    assert isinstance(read.places, Spans)
    return read.places


def test_tokens_have_their_places_in_the_text() -> None:
    """Which is counted in characters, of the text as it came: accents and capitals are the tokenizer's business."""
    declared = inputs()
    read = read_sequence(declared, {"text": "Ignore walking Café!"}, tokenizer(declared))
    assert read.values == (2, 5, 8, 7, 9, 10, 3, 0)
    spans = spans_of(read)
    assert spans.positions == (0, 1, 2, 3, 4, 5, 6)
    assert spans.tokens == ("[CLS]", "ignore", "walk", "##ing", "cafe", "!", "[SEP]")
    text = "Ignore walking Café!"
    pieces = [text[start:end] for start, end in zip(spans.starts, spans.ends, strict=True)]
    assert pieces == ["", "Ignore", "walk", "ing", "Café", "!", ""]
    assert spans.starts[-1] == len(text)
    assert not spans.truncated


def test_a_text_that_is_too_long_is_refused_or_cut_as_the_manifest_says() -> None:
    declared, text = inputs(), {"text": "all " * 20}
    with pytest.raises(InvalidRequest, match="the text has 22 tokens, the model takes 8"):
        read_sequence(declared, text, tokenizer(declared))
    cutting = inputs(tokenizer={"truncate": True})
    read = read_sequence(cutting, text, tokenizer(cutting))
    assert read.values == (2, 6, 6, 6, 6, 6, 6, 3)
    assert spans_of(read).truncated
    assert spans_of(read_sequence(cutting, {"text": "all"}, tokenizer(cutting))).truncated is False


def test_a_text_beyond_all_bounds_is_refused_before_it_is_read() -> None:
    declared = inputs(tokenizer={"truncate": True})
    with pytest.raises(InvalidRequest, match="characters"):
        read_sequence(declared, {"text": "a" * (MAX_CHARACTERS + 1)}, tokenizer(declared))


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=300))
def test_whatever_text_is_sent_the_places_are_in_it(text: str) -> None:
    declared = inputs(tokenizer={"truncate": True})
    spans = spans_of(read_sequence(declared, {"text": text}, tokenizer(declared)))
    assert len(spans.positions) == len(spans.tokens) == len(spans.starts) == len(spans.ends) <= LENGTH
    for start, end in zip(spans.starts, spans.ends, strict=True):
        assert 0 <= start <= end <= len(text)


AWKWARD = {
    "an emoji": "🙂",
    "a skin tone": "👍🏽",
    "a family of joined emoji": "👩‍👩‍👧‍👦",
    "a flag": "🇩🇪",
    "a combining accent": "e\u0301",
    "many combining marks": "Z\u0351\u036b\u0343\u036a\u0302",
    "a composed letter": "\u00e9",
    "a ligature": "\ufb01",
    "Arabic": "مرحبا",
    "Hebrew with points": "שָׁלוֹם",
    "a mark of direction": "\u202e\u202d",
    "Chinese": "漢字",
    "Japanese with voicing": "か\u3099",
    "Hangul by its letters": "\u1112\u1161\u11ab",
    "Thai": "สวัสดี",
    "Devanagari": "नमस्ते",
    "letters beyond the first plane": "𝔘𝔫𝔦",
    "lines of Windows": "\r\n\r\n",
    "tabs and a space that does not break": "\t\u00a0",
    "nothing that is seen": "\u200b\u200d\ufeff",
    "control characters": "\x00\x07\x1b",
}


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD.keys())
def test_awkward_characters_move_no_other_tokens_place(text: str) -> None:
    """Places count the characters of what was sent: whatever stands before, between and behind."""
    declared = inputs(length=64)
    sent = f"{text} Walking {text} all {text}"
    spans = spans_of(read_sequence(declared, {"text": sent}, tokenizer(declared)))
    found = {token: sent[a:b] for token, a, b in zip(spans.tokens, spans.starts, spans.ends, strict=True)}
    assert (found["walk"], found["##ing"], found["all"]) == ("Walk", "ing", "all")
    assert list(spans.starts) == sorted(spans.starts)
    assert not spans.truncated


INSTANCES = [
    "a text",
    {"text": 1},
    {"text": "all", "more": 1},
    {"bytes": ""},
    {"tokens": "all"},
    {"tokens": [1.5]},
    [],
    [99],
    [True],
    None,
    3,
    {},
]


@pytest.mark.parametrize("instance", INSTANCES, ids=map(str, INSTANCES))
def test_what_is_no_text_is_refused(instance: object) -> None:
    declared = inputs()
    with pytest.raises(InvalidRequest):
        read_sequence(declared, instance, tokenizer(declared))


def test_tokens_are_taken_as_ever() -> None:
    declared = inputs()
    for instance in ([2, 6, 3], {"tokens": [2, 6, 3]}):
        read = read_sequence(declared, instance, None)
        assert read.values == (2, 6, 3, 0, 0, 0, 0, 0)
        assert read.places is None


WRONG: dict[str, tuple[TokenInputs, bytes, str]] = {
    "special tokens unnamed": (inputs(special=[2]), tokenizer_json(), r"adds the tokens \[2, 3\]"),
    "a smaller vocabulary": (inputs(vocabulary=9), tokenizer_json(), "has 11 tokens"),
    "no room for a text": (inputs(length=2), tokenizer_json(), "as many tokens"),
    "not JSON": (inputs(b"tokens"), b"tokens", "is no tokenizer"),
    "not text": (inputs(b"\xff"), b"\xff", "is no tokenizer"),
}


@pytest.mark.parametrize(("declared", "content", "detail"), WRONG.values(), ids=WRONG.keys())
def test_a_tokenizer_that_does_not_fit_is_refused(
    declared: TokenInputs, content: bytes, detail: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CatalogError, match=detail):
        read_tokenizer(tmp_path, declared)


def test_the_tokenizers_digest_is_that_of_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json() + b" ")
    with pytest.raises(CatalogError, match="sha256"):
        read_tokenizer(tmp_path, inputs())


FILES = TokenInputs.model_validate(
    {
        "kind": "tokens",
        "tensor": "bytes",
        "length": 10,
        "vocabulary": 257,
        "padding": 256,
        "mask": 256,
        "bytes": {"first": 6, "last": 4, "block": 12},
    }
)


def of_file(content: bytes) -> Any:
    return read_sequence(FILES, {"bytes": base64.b64encode(content).decode()}, None)


def test_a_file_is_its_first_and_last_bytes_without_the_white_space_around() -> None:
    read = of_file(b"  \n%PDF-1.4 ... EOF\n")
    assert bytes(map(int, read.values)) == b"%PDF-1" + b" EOF"
    assert read.places.starts == (3, 4, 5, 6, 7, 8, 15, 16, 17, 18)
    assert read.places.truncated


def test_a_short_file_is_padded_in_the_middle() -> None:
    read = of_file(b"ab")
    assert read.values == (97, 98, 256, 256, 256, 256, 256, 256, 97, 98)
    assert read.places.positions == (0, 1, 8, 9)
    assert read.places.starts == (0, 1, 0, 1)
    assert read.places.tokens == (97, 98, 97, 98)
    assert not read.places.truncated


@given(st.binary(max_size=40))
def test_every_place_in_a_file_holds_its_byte(content: bytes) -> None:
    try:
        spans = of_file(content).places
    except InvalidRequest:
        assert not content.strip()
        return
    assert [content[start] for start in spans.starts] == list(spans.tokens)


@pytest.mark.parametrize("content", ["", "not base64!", "é", base64.b64encode(b" \n").decode()])
def test_what_is_no_file_is_refused(content: str) -> None:
    with pytest.raises(InvalidRequest):
        read_sequence(FILES, {"bytes": content}, None)


CHANGES: dict[str, dict[str, Any]] = {
    "a mask that is the padding": {"mask": 0, "side": {"mask": "mask"}},
    "texts and bytes": {"bytes": {"first": 4, "last": 4, "block": 8}},
    "bytes without a vocabulary": {"tokenizer": None, "bytes": {"first": 4, "last": 4, "block": 8}},
    "another number of bytes": {"tokenizer": None, "vocabulary": 300, "bytes": {"first": 4, "last": 3, "block": 8}},
    "a block too small": {"tokenizer": None, "vocabulary": 300, "bytes": {"first": 4, "last": 4, "block": 3}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_manifest_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TokenInputs.model_validate(inputs().model_dump() | change)
