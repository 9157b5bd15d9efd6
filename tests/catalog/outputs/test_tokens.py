"""Language models: what a prediction says, which continuations can be asked for, and what of them is read."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import orjson
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from service.answers.encoding import encode
from service.answers.reading import read
from service.catalog.inputs.prompts import PromptInputs
from service.catalog.inputs.sequences import Tokenizer as Declared
from service.catalog.outputs.predictions import prediction_kind, target_kind
from service.catalog.outputs.tokens import Tokens
from service.domain import Continuation, OutputSpace
from service.errors import InvalidRequest

SPACE = OutputSpace.LOG_PROBABILITY
LIKELIEST, LONGEST = 2, 4
ANSWERED = [-3.0, -1.0, -2.0, 0.0, 0.0, math.log(0.5), math.log(0.25), 7.0, 3.0]
"""The whole, each token of a continuation, then the likeliest tokens' log-probabilities and numbers."""
WORDS = ["<unk>", "▁", "▁Paris", "Paris", "▁is", "s", "▁the", "▁capital", "a", "\n", "P"]


def unbound() -> Tokens:
    return Tokens(kind="tokens", likeliest=LIKELIEST, longest=LONGEST)


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    """With a tokenizer that takes the beginning of a text for that of a word, as Llama's does."""
    folder = tmp_path_factory.mktemp("vocabulary")
    parsed = Tokenizer(models.Unigram([(word, -1.0 - 0.1 * (len(word) < 2)) for word in WORDS], unk_id=0))
    parsed.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    parsed.decoder = decoders.Metaspace(prepend_scheme="first")
    parsed.save(str(folder / "tokenizer.json"))
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    declared = Declared(file="tokenizer.json", sha256=digest)
    inputs = PromptInputs(kind="prompt", length=16, vocabulary=len(WORDS), mask=0, tokenizer=declared)
    return unbound().with_files(folder, inputs)


def test_a_prediction_is_the_likeliest_tokens(bound: Tokens) -> None:
    shown = orjson.loads(encode(bound.prediction_item(ANSWERED, SPACE)))
    assert shown == {
        "next": [
            {"token": " capital", "id": 7, "log_probability": pytest.approx(math.log(0.5))},
            {"token": "Paris", "id": 3, "log_probability": pytest.approx(math.log(0.25))},
        ],
        "output_space": "log_probability",
    }
    assert read(prediction_kind(shown), shown) == bound.prediction_item(ANSWERED, SPACE)
    assert unbound().prediction_item(ANSWERED, SPACE).next[0].token is None
    assert bound.prediction_item([math.nan, *ANSWERED[1:]], SPACE).next == ()
    assert bound.width == len(ANSWERED)


@pytest.mark.parametrize(
    ("asked", "target"),
    [
        ("predicted", None),
        ({"continuation": "Paris"}, Continuation((3,))),
        ({"continuation": " Paris"}, Continuation((2,))),
        ({"continuation": " is", "rather_than": "s"}, Continuation((4,), (5,))),
        ({"continuation": " Paris is", "per_token": True}, Continuation((2, 4), per_token=True)),
        ({"continuation": " Paris", "rather_than": None, "per_token": False}, Continuation((2,))),
    ],
)
def test_continuations_begin_where_the_prompt_ends(bound: Tokens, asked: Any, target: object) -> None:
    """With a space where they have one, and without one where they have none, whatever begins a text."""
    assert bound.read_target(asked) == target


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (0, "a language model explains a text"),
        ({"rather_than": "s"}, "a language model explains a text"),
        ({"continuation": " is", "of": "x"}, "a language model explains a text"),
        ({"continuation": ""}, "continuation: it is empty"),
        ({"continuation": 5}, "continuation: it must be a text"),
        ({"continuation": " is", "rather_than": ""}, "rather_than: it is empty"),
        ({"continuation": " is", "rather_than": " is"}, "name another"),
        ({"continuation": " is is is", "rather_than": " the the"}, "it has 5 tokens; at most 4"),
    ],
)
def test_other_targets_are_refused(bound: Tokens, asked: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence) as refusal:
        bound.read_target(asked)
    assert str(refusal.value.faults[0].pointer).startswith("/parameters/target")


def test_without_a_tokenizer_texts_have_no_tokens() -> None:
    with pytest.raises(InvalidRequest, match="the model has no tokenizer"):
        unbound().read_target({"continuation": " is"})


def test_a_target_says_its_text_and_its_tokens(bound: Tokens) -> None:
    target = Continuation((2, 4), (5,))
    item = bound.target_item(target)
    assert item.text == "' Paris is' rather than 's'"
    written = orjson.loads(encode(item))
    assert read(target_kind(written), written) == item
    assert [vars(token) for token in bound.token_items(target, ANSWERED)] == [
        {"token": " Paris", "id": 2, "log_probability": -1.0},
        {"token": " is", "id": 4, "log_probability": -2.0},
        {"token": "s", "id": 5, "rather_than": True, "log_probability": 0.0},
    ]
    assert [token.log_probability for token in bound.token_items(target, None)] == [None] * 3


def test_rules_read_the_likeliest_token(bound: Tokens) -> None:
    assert bound.quantity("probability", None, ANSWERED, SPACE) == pytest.approx(0.5)
    assert bound.quantity("margin", None, ANSWERED, SPACE) == pytest.approx(math.log(2))
    assert bound.decision(ANSWERED, SPACE) == " capital"
    for quantity, of in [("value", None), ("label", None), ("probability", "is")]:
        with pytest.raises(ValueError, match=r"tokens|likeliest"):
            bound.check_quantity(quantity, of)


def test_only_explanations_of_the_likeliest_token_are_like_each_other(bound: Tokens) -> None:
    assert bound.is_usual(None)
    assert not bound.is_usual(Continuation((2,)))


@pytest.mark.parametrize("text", [" Paris is", "Paris", "s is the capital"])
def test_a_vocabulary_gives_texts_back(bound: Tokens, text: str) -> None:
    target = bound.read_target({"continuation": text})
    assert target is not None
    assert bound.target_item(target).continuation == text
