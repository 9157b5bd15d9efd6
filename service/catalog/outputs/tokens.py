"""Tokens: what a language model writes behind a prompt. The explained number is the log-probability of a continuation,
the sum of its tokens' log-probabilities, each behind the prompt and the tokens before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, PrivateAttr

from service.access.visibility import ALWAYS, PARTS, Item
from service.catalog.inputs.kind import Inputs
from service.catalog.inputs.vocabularies import Vocabulary, read_vocabulary
from service.catalog.outputs.kind import (
    PREDICTED,
    TRUNCATED,
    KnownOutputs,
    OutputKind,
    Outputs,
    OutputsItem,
    PredictionItem,
    Space,
    TokenItem,
    are_finite,
)
from service.domain import Continuation, Floats, OutputSpace, PlanTarget
from service.errors import InvalidRequest, Kind, invalid, pointer_to
from service.numerics.links import IDENTITY, Link

FLOOR = 0.01
"""Nats: the least change of a log-probability that errors are relative to."""
FIRST_TOKEN = 1
"""The place of the first token's log-probability among the outputs; before it is that of the whole continuation."""
FIELDS = frozenset({"continuation", "rather_than", "per_token"})


class TokensPrediction(PredictionItem):
    """What the deployed artefact would write next."""

    next: Annotated[
        tuple[TokenItem, ...],
        PARTS,
        Field(description="the likeliest tokens behind the prompt, the likeliest first; empty where none is finite"),
    ]
    output_space: Annotated[Space, ALWAYS, Field(description="what the outputs are")]
    truncated: Annotated[bool | None, ALWAYS, TRUNCATED] = None


class ContinuationTarget(Item):
    """The text whose log-probability is explained, perhaps as compared with another's. What it says may be of a person,
    so that a record has it in its personal part."""

    continuation: Annotated[str, ALWAYS, Field(description="the text behind the prompt")]
    rather_than: Annotated[
        str | None, ALWAYS, Field(description="the text whose log-probability is taken away from this one's")
    ] = None

    @property
    def text(self) -> str:
        """The target in words."""
        own = repr(self.continuation)
        return own if self.rather_than is None else f"{own} rather than {self.rather_than!r}"


class Tokens(OutputKind):
    """The `likeliest` tokens are answered, and continuations of at most `longest` tokens explained, of both texts
    together where two are compared.

    The network's numbers are the log-probability of the continuation less that of the other; those of each token, at
    most `longest`; those of the likeliest tokens; and their numbers. The last two are the deployed artefact's alone.
    """

    noun: ClassVar[str] = "continuation"
    network_noun: ClassVar[str] = "numbers"
    spaces: ClassVar[tuple[OutputSpace, ...]] = (OutputSpace.LOG_PROBABILITY,)
    network_space: ClassVar[OutputSpace] = OutputSpace.LOG_PROBABILITY
    network_link: ClassVar[Link] = IDENTITY
    adverse: ClassVar[None] = None

    kind: Literal["tokens"]
    likeliest: PositiveInt = 10
    longest: PositiveInt = 64
    default_space: OutputSpace = OutputSpace.LOG_PROBABILITY

    _vocabulary: Vocabulary | None = PrivateAttr(None)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.noun,)

    @property
    def width(self) -> int:
        return FIRST_TOKEN + self.longest + 2 * self.likeliest

    def with_files(self, folder: Path, inputs: Inputs) -> Self:
        declared = inputs.text_tokenizer
        if declared is None:
            return self
        bound = self.model_copy()
        bound._vocabulary = read_vocabulary(folder, declared)
        return bound

    def check_inputs(self, inputs: Inputs) -> None:
        if not inputs.are_prompts:
            raise ValueError(f"outputs of kind tokens are those of prompts, not of inputs of kind {inputs.kind}")

    def parity_scale(self, deployed: NDArray[np.floating]) -> NDArray[np.floating]:
        """Each number's largest magnitude, one at least. The likeliest tokens are known of the artefact alone."""
        scale: NDArray[np.floating] = np.maximum(1.0, np.abs(deployed).max(axis=0))
        scale[FIRST_TOKEN + self.longest :] = np.inf
        return scale

    def read_target(self, requested: object) -> Continuation | None:
        if requested == PREDICTED:
            return None
        if not isinstance(requested, Mapping) or not {"continuation"} <= requested.keys() <= FIELDS:
            detail = 'target: a language model explains a text, as in {"continuation": " yes"}, or `predicted`'
            raise invalid(Kind.WRONG_VALUE, pointer_to("parameters", "target"), detail)
        own = self._tokens(requested, "continuation")
        other = self._tokens(requested, "rather_than") if requested.get("rather_than") is not None else ()
        if own == other:
            raise _wrong("rather_than", "`rather_than` is the continuation itself; name another")
        if len(own) + len(other) > self.longest:
            raise _wrong(
                "continuation", f"it has {len(own) + len(other)} tokens; at most {self.longest} are explained together"
            )
        return Continuation(own, other, bool(requested.get("per_token")))

    def _tokens(self, requested: Mapping[str, object], field: str) -> tuple[int, ...]:
        text = requested[field]
        if not isinstance(text, str):
            raise _wrong(field, "it must be a text")
        if self._vocabulary is None:
            raise _wrong(field, "the model has no tokenizer, so that texts have no tokens")
        try:
            return self._vocabulary.tokens_of(text)
        except ValueError as error:
            raise _wrong(field, str(error)) from None

    def default_target(self, outputs: NDArray[np.floating]) -> PlanTarget:
        """The likeliest token."""
        return Continuation((int(outputs[-self.likeliest]),))

    @property
    def usual_target(self) -> str:
        return PREDICTED

    def adverse_sign(self, target: PlanTarget) -> int | None:  # noqa: ARG002
        return None

    def target_item(self, target: Continuation) -> ContinuationTarget:
        other = self._text(target.rather_than) if target.rather_than else None
        return ContinuationTarget(continuation=self._text(target.tokens), rather_than=other)

    def token_items(self, target: Continuation, outputs: Outputs | None) -> tuple[TokenItem, ...]:
        own = len(target.tokens)
        return tuple(
            TokenItem(
                token=self._text_or_none(token),
                id=token,
                rather_than=True if at >= own else None,
                log_probability=None if outputs is None else outputs[FIRST_TOKEN + at],
            )
            for at, token in enumerate((*target.tokens, *target.rather_than))
        )

    def prediction_item(
        self, outputs: Outputs | None, space: OutputSpace, truncated: bool | None = None
    ) -> TokensPrediction:
        answered = outputs if outputs is not None and are_finite(outputs) else ()
        tokens, log_probabilities = self._likeliest(answered)
        return TokensPrediction(
            next=tuple(
                TokenItem(token=self._text_or_none(token), id=token, log_probability=log_probability)
                for token, log_probability in zip(tokens, log_probabilities, strict=True)
            ),
            output_space=space.value,
            truncated=truncated,
        )

    def _likeliest(self, outputs: Outputs) -> tuple[list[int], Sequence[float]]:
        """The likeliest tokens, and their log-probabilities."""
        start = FIRST_TOKEN + self.longest
        return [int(token) for token in outputs[start + self.likeliest :]], outputs[start : start + self.likeliest]

    def _text(self, tokens: Sequence[int]) -> str:
        """Their text; where there is no tokenizer their numbers."""
        return " ".join(map(str, tokens)) if self._vocabulary is None else self._vocabulary.text_of(tokens)

    def _text_or_none(self, token: int) -> str | None:
        return None if self._vocabulary is None else self._vocabulary.text_of([token])

    def decision(self, outputs: Outputs, space: OutputSpace) -> str | None:  # noqa: ARG002
        (token, *_), _ = self._likeliest(outputs)
        return self._text([token])

    def is_adverse(self, outputs: Outputs, space: OutputSpace) -> bool:  # noqa: ARG002
        return False

    def default_floor(self, space: OutputSpace, over_baselines: Floats, target: PlanTarget) -> float:  # noqa: ARG002
        return FLOOR

    def check_quantity(self, quantity: str, of: str | None) -> None:
        if quantity not in {"probability", "margin"}:
            raise ValueError(f"`{quantity}` is not told of tokens; they have `probability` and `margin`")
        if of is not None:
            raise ValueError(f"`{quantity}` is that of the likeliest token, so nothing stands in brackets behind it")

    def quantity(self, quantity: str, of: str | None, outputs: Outputs, space: OutputSpace) -> float | None:  # noqa: ARG002
        """The likeliest token's probability, or how much more likely (as logarithm) it is than the second."""
        _, log_probabilities = self._likeliest(outputs)
        if quantity == "probability":
            return exp(log_probabilities[0])
        return log_probabilities[0] - log_probabilities[1] if len(log_probabilities) > 1 else None

    def labels_of(self, outputs: Outputs, space: OutputSpace) -> frozenset[str]:  # noqa: ARG002
        return frozenset()

    @classmethod
    def declaration(cls, known: KnownOutputs) -> dict[str, Any]:  # noqa: ARG003 - the network's own tokens
        return {"kind": "tokens"}

    def described(self) -> OutputsItem:
        return OutputsItem(
            kind=self.kind,
            adverse=None,
            spaces=[space.value for space in self.spaces],
            default_space=self.default_space.value,
        )


def _wrong(field: str, detail: str) -> InvalidRequest:
    return invalid(Kind.WRONG_VALUE, pointer_to("parameters", "target", field), f"target: {field}: {detail}")
