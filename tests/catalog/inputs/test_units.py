"""Words, sentences and named segments of texts, held against the tokenizers' own numbering."""

from __future__ import annotations

import hashlib
import json
from itertools import groupby
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from service.answers.encoding import encode
from service.catalog.inputs.kind import Detail, Row, Units
from service.catalog.inputs.segments import read_segments
from service.catalog.inputs.sequences import TextTokenizer, read_sequence
from service.catalog.inputs.tokens import TokenInputs
from service.catalog.inputs.units import sentence_starts
from service.errors import InvalidRequest
from tests.huggingface_folders import TEXTS, trained_tokenizer

LENGTH = 96
FIRST = "Nobody  likes\nwaiting, 🙂 naïve in. A [SEP] proposal"
SECOND = "The actors moved me: why?"
PAIRS = {"bert": 3, "roberta": 2}
"""Their separators."""


def of_sentencepiece() -> Tokenizer:
    """Byte pairs as Llama has them: tokens begin with white space, and nothing divides a text before they are found."""
    parsed = Tokenizer(models.BPE(unk_token="<unk>"))
    parsed.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer: Any = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"])
    parsed.train_from_iterator(TEXTS, trainer)
    own = {**json.loads(parsed.to_str()), "pre_tokenizer": None}
    whole = Tokenizer.from_str(json.dumps(own))
    whole.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return whole


def inputs(parsed: Tokenizer, **changes: Any) -> tuple[TokenInputs, TextTokenizer]:
    content = parsed.to_str().encode()
    declared = TokenInputs.model_validate(
        {
            "kind": "tokens",
            "tensor": "ids",
            "length": LENGTH,
            "vocabulary": parsed.get_vocab_size(),
            "padding": 0,
            "mask": 4,
            "special": sorted({0, *parsed.encode("").ids}),
            "tokenizer": {"file": "tokenizer.json", "sha256": hashlib.sha256(content).hexdigest()},
            **changes,
        }
    )
    assert declared.tokenizer is not None
    return declared, TextTokenizer(content, declared.tokenizer, declared)


def units_of(declared: TokenInputs, row: Row, units: Units) -> list[Any]:
    """Of attributions 2 ** position, whose sums tell which tokens they are of."""
    values = [2.0**at for at in range(LENGTH)]
    attributions: Any = declared.attributions(values, (LENGTH,), row, detail=Detail(units=units))
    assert attributions.detail == Detail(units=units)
    written: list[Any] = attributions.to_json()
    return written


def sum_of(positions: Any) -> float:
    return float(sum(2.0**at for at in positions))


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_words_are_those_of_the_tokenizer(kind: str) -> None:
    parsed = trained_tokenizer(kind)
    declared, tokenizer = inputs(parsed)
    row = read_sequence(declared, {"text": FIRST}, tokenizer)
    ids = parsed.encode(FIRST).word_ids
    by_word = [
        ([*members], word)
        for word, members in groupby(range(len(ids)), lambda at: ids[at] if ids[at] is not None else -at - 1)
    ]
    written = units_of(declared, row, Units.WORDS)
    assert [one["attribution"] for one in written] == [sum_of(members) for members, _ in by_word]
    assert [one.get("word") is not None for one in written] == [word >= 0 for _, word in by_word]
    for one in written:
        if "word" in one:
            assert FIRST[one["start"] : one["end"]] == one["word"]
    said = "".join(one.get("word", "") for one in written)
    assert "".join(said.split()) == "".join(FIRST.split())


def test_words_of_a_tokenizer_that_divides_no_text() -> None:
    declared, tokenizer = inputs(of_sentencepiece())
    text = " ".join(TEXTS[:2])
    row = read_sequence(declared, {"text": text}, tokenizer)
    assert {*of_sentencepiece().encode(text).word_ids} == {0}
    written = units_of(declared, row, Units.WORDS)
    assert [one["word"] for one in written] == text.split()
    assert sum(one["attribution"] for one in written) == sum_of(range(len(of_sentencepiece().encode(text))))


@pytest.mark.parametrize("kind", PAIRS)
def test_words_and_sentences_of_a_pair(kind: str) -> None:
    """Each part's are its own."""
    parsed, separator = trained_tokenizer(kind), PAIRS[kind]
    declared, tokenizer = inputs(parsed, separator=separator)
    first = FIRST.replace("[SEP]", "")
    row = read_sequence(declared, {"text": [first, SECOND]}, tokenizer)
    encoded = parsed.encode(first, SECOND)
    keys = [*zip(encoded.sequence_ids, encoded.word_ids, strict=True)]
    words = [key for key, _ in groupby(keys) if key[0] is not None]
    written = [one for one in units_of(declared, row, Units.WORDS) if "word" in one]
    for one, word in zip(written, words, strict=True):
        assert one["attribution"] == sum_of(at for at, key in enumerate(keys) if key == word)
        assert one["part"] == word[0]
        assert (first, SECOND)[one["part"]][one["start"] : one["end"]] == one["word"]
    sentences = [one for one in units_of(declared, row, Units.SENTENCES) if "sentence" in one]
    assert [(one["part"], one["sentence"]) for one in sentences] == [
        (0, "Nobody  likes\nwaiting, 🙂 naïve in."),
        (0, "A  proposal"),
        (1, SECOND),
    ]
    assert sum(one["attribution"] for one in sentences) == sum(one["attribution"] for one in written)


SENTENCES = {
    "One. Two! Three? Four": ["One. ", "Two! ", "Three? ", "Four"],
    'She said "No." Then she left.': ['She said "No." ', "Then she left."],
    "Dr. Smith, e.g. Anna, of J. Doe Inc. came.": ["Dr. Smith, e.g. Anna, of J. Doe Inc. came."],
    "It costs 3.50 in v1.2, see a.b for more.": ["It costs 3.50 in v1.2, see a.b for more."],
    "a heading\n\na paragraph... and on": ["a heading\n\n", "a paragraph... and on"],
    "今日は。元気ですか？はい": ["今日は。", "元気ですか？", "はい"],
    "": [""],
}


@pytest.mark.parametrize("text", SENTENCES)
def test_where_sentences_begin(text: str) -> None:
    starts = sentence_starts(text)
    assert [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)] == SENTENCES[text]


def segment(name: str, start: int, end: int, **part: int) -> dict[str, Any]:
    return {"name": name, "start": start, "end": end, **part}


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_a_segment_has_the_tokens_of_its_characters(kind: str) -> None:
    """At the ends of words, where no token lies across; the white space before a segment is nobody's."""
    parsed = trained_tokenizer(kind)
    declared, tokenizer = inputs(parsed)
    start, inner, end = FIRST.index("likes"), FIRST.index("waiting"), FIRST.index(" A ")
    sent = [segment("outer", start, end), segment("inner", inner, inner + len("waiting")), segment("none", end, end)]
    row = read_sequence(declared, {"text": FIRST, "segments": sent}, tokenizer)
    encoded = parsed.encode(FIRST)
    for found in declared.segments_of(row):
        characters = range(found.sent.start, found.sent.end)
        own = {at for at, word in enumerate(encoded.word_ids) if word is not None}
        assert {*found.components} == {
            at for at in own if encoded.offsets[at][1] - 1 in characters and encoded.offsets[at][1] > found.sent.start
        }
        assert {encoded.char_to_token(at) for at in characters if not FIRST[at].isspace()} <= {*found.components}
    again = declared.of_record(orjson.loads(encode(declared.to_record(row))))
    assert [vars(one.sent) for one in declared.segments_of(again)] == sent
    assert read_sequence(declared, {"text": FIRST}, tokenizer).values == row.values


def test_segments_of_a_pair_are_of_one_part() -> None:
    declared, tokenizer = inputs(trained_tokenizer("bert"), separator=3)
    sent = [segment("all", 0, len(SECOND), part=1), segment("actors", 4, 10, part=1), segment("asked", 0, 6, part=0)]
    row = read_sequence(declared, {"text": ["Nobody likes", SECOND], "segments": sent}, tokenizer)
    encoded = trained_tokenizer("bert").encode("Nobody likes", SECOND)
    whole, actors, asked = declared.segments_of(row)
    assert [*whole.components] == [at for at, part in enumerate(encoded.sequence_ids) if part == 1]
    assert {*actors.components} == {encoded.char_to_token(at, 1) for at in range(4, 10)} < {*whole.components}
    assert {*asked.components} == {encoded.char_to_token(at, 0) for at in range(6)}


PLACES = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda places: (min(places), max(places)))


@given(st.lists(PLACES, max_size=5))
def test_segments_may_nest_but_not_cross(places: list[tuple[int, int]]) -> None:
    sent = [segment(str(at), start, end) for at, (start, end) in enumerate(places)]
    characters = [{*range(start, end)} for start, end in places]
    crosses = any(one & other and one - other and other - one for one in characters for other in characters)
    if crosses:
        with pytest.raises(InvalidRequest, match="cross: one may lie in the other, or behind it"):
            read_segments(sent, ("twelve chars",))
    else:
        assert [(one.start, one.end) for one in read_segments(sent, ("twelve chars",))] == places


WRONG: dict[str, tuple[Any, str, str]] = {
    "no list": ("context", "/segments", "a list of at most 64"),
    "too many": ([segment(str(at), 0, 0) for at in range(65)], "/segments", "a list of at most 64"),
    "no object": (["context"], "/segments/0", "an object of name, start and end"),
    "more": ([{**segment("a", 0, 1), "weight": 2}], "/segments/0", "an object of name, start and end"),
    "a part of one text": ([segment("a", 0, 1, part=0)], "/segments/0", "an object of name, start and end"),
    "no name": ([segment("", 0, 1)], "/segments/0/name", "from 1 to 64 characters"),
    "twice": ([segment("a", 0, 1), segment("a", 1, 2)], "/segments/1/name", "two segments are called 'a'"),
    "behind the text": ([segment("a", 0, 13)], "/segments/0/end", "from 0 to 12, the text's length"),
    "before it": ([segment("a", -1, 3)], "/segments/0/start", "from 0 to 12, the text's length"),
    "true": ([{"name": "a", "start": True, "end": 3}], "/segments/0/start", "a whole number"),
    "backwards": ([segment("a", 3, 1)], "/segments/0/end", "ends before it starts"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_segment_is_refused_with_its_place(name: str) -> None:
    sent, pointer, sentence = WRONG[name]
    with pytest.raises(InvalidRequest, match=sentence) as refused:
        read_segments(sent, ("twelve chars",))
    assert [fault.pointer for fault in refused.value.faults] == [pointer]


def test_a_segment_of_a_pair_names_its_part() -> None:
    for one, sentence in ((segment("a", 0, 1), "part 0 is the first text"), (segment("a", 0, 1, part=2), "0 or 1")):
        with pytest.raises(InvalidRequest, match=sentence):
            read_segments([one], ("a", "b"))


def test_listed_segments_must_be_named_in_what_is_explained() -> None:
    declared, tokenizer = inputs(trained_tokenizer("bert"), segments=["context", "question"])
    named = [segment("question", 0, 6), segment("context", 6, 12)]
    declared.check_explained(read_sequence(declared, {"text": FIRST, "segments": named}, tokenizer), Detail())
    for instance in ({"text": FIRST, "segments": named[:1]}, {"text": FIRST}, {"tokens": [5, 6]}):
        with pytest.raises(InvalidRequest, match="no segment is called 'context'"):
            declared.check_explained(read_sequence(declared, instance, tokenizer), Detail())
    row = read_sequence(declared, {"tokens": [5, 6]}, tokenizer)
    with pytest.raises(InvalidRequest, match="only a text has words"):
        declared.check_explained(row, Detail(units=Units.WORDS))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"segments": ["context"], "tokenizer": None}, "segments are those of texts"),
        ({"segments": ["context", "context"]}, "two segments have the same name"),
        ({"segments": ["The Context"]}, "should match pattern"),
        ({"segments": list("abcdef")}, "at most 5 items"),
    ],
)
def test_a_manifest_lists_few_names(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        inputs(trained_tokenizer("bert"), **changes)


def test_errors_of_words_are_bounds_on_the_errors_of_their_sums() -> None:
    declared, tokenizer = inputs(trained_tokenizer("bert"))
    row = read_sequence(declared, {"text": FIRST}, tokenizer)
    draws = np.random.default_rng(0).normal(size=(2, LENGTH))
    errors: Any = declared.attributions(
        np.abs(draws[0] - draws[1]), (LENGTH,), row, detail=Detail(units=Units.WORDS).of_errors
    )
    one, other = (
        declared.attributions(each, (LENGTH,), row, detail=Detail(units=Units.WORDS)).values for each in draws
    )
    assert (np.abs(np.subtract(one, other)) <= np.array(errors.values) + 1e-12).all()
