"""How far one explanation rests on the choices that it was made with: a sensitivity table.

Nobody can say that a baseline, a seed, a tolerance or noise is the right one. So the explanation is computed with
others too, one choice changed at a time, and each of its statements is held against all of them. The statements are

- of each principal component, the largest by its absolute attribution: that it moves the output up, or down;
- of each two neighbours among them: that the first counts for more than the second;
- of each principal reason: that it is one.

A sign holds where the value is farther from zero than it may be off, an order where the values are farther apart than
both may be off together, as far as errors are known. All is said of values as the key's policy shows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from service.access.visibility import Item
from service.answers.items import DisclosureItem, ReasonItem, RecordedNoise, StabilityItem
from service.numerics.ranking import rank_correlation

PRINCIPAL = 5
"""So many of the largest components have statements."""


class StatementItem(Item):
    """Something that the explanation says."""

    kind: Annotated[
        Literal["sign", "order", "reason"],
        Field(
            description="`sign`: the component moves the output up or down; `order`: the first counts for more than "
            "the second; `reason`: it is among the principal reasons"
        ),
    ]
    components: Annotated[
        tuple[str, ...],
        Field(
            description="what it is about: features by name, pixels by row and column, tokens by place; of a reason "
            "its code, or its feature"
        ),
    ]
    text: Annotated[str, Field(description="the statement in words")]
    survives: Annotated[bool, Field(description="whether it holds under every choice that was computed")]
    fails: Annotated[tuple[int, ...], Field(description="the places in `choices` of those under which it does not")]


class ChoiceItem(Item):
    """The explanation as it is with one choice changed, or why it cannot be computed with that."""

    changed: Annotated[
        Literal["nothing", "baseline", "seed", "tolerance", "noise"],
        Field(description="what is not as in the record; `nothing`: the first, by the plan on record"),
    ]
    baseline: Annotated[str | None, Field(description="the baseline that was taken instead")] = None
    seed: Annotated[int | None, Field(description="the seed that was taken instead")] = None
    tolerance: Annotated[float | None, Field(description="the tolerance that was asked for instead")] = None
    noise: Annotated[
        RecordedNoise | None, Field(description="the noise instead; absent where the noise of the record was left out")
    ] = None
    converged: Annotated[bool | None, Field(description="whether the tolerance was met")] = None
    rank_correlation: Annotated[
        float | None,
        Field(description="Spearman's, of all absolute attributions with those on record; for keys that see all"),
    ] = None
    attributions: Annotated[
        dict[str, float] | None, Field(description="of the components that statements are about, as far as shown")
    ] = None
    why: Annotated[str | None, Field(description="why nothing was computed with it")] = None


class RobustnessReply(Item):
    """A sensitivity table of a stored explanation."""

    id: Annotated[str, Field(description="of the explanation")]
    statements: Annotated[tuple[StatementItem, ...], Field(description="signs, orders, reasons, the strongest first")]
    choices: Annotated[tuple[ChoiceItem, ...], Field(description="the record, and one choice after the other changed")]
    stability: Annotated[
        StabilityItem | None,
        Field(
            description="how much of the ranking is left near the input; absent for a key whose policy limits values"
        ),
    ] = None
    evaluations: Annotated[int, Field(description="gradient points spent on the choices")]
    disclosure: Annotated[
        DisclosureItem | None, Field(description="what the key's policy keeps back, where it does")
    ] = None


@dataclass(frozen=True, slots=True)
class Shown:
    """What a key is shown of one explanation: `values` by the places of their components, `errors` of all components
    where they are known, and `reasons`, the strongest first."""

    values: Mapping[int, float]
    errors: Sequence[float] | None = None
    reasons: Sequence[ReasonItem] = ()

    def value(self, place: int) -> float:
        """Of the component at that place; 0 where others are larger and it is not shown."""
        return self.values.get(place, 0.0)

    def error(self, place: int) -> float:
        """How far that value may be off, as far as is known."""
        return 0.0 if self.errors is None else self.errors[place]


@dataclass(frozen=True, slots=True)
class _Statement:
    kind: Literal["sign", "order", "reason"]
    components: tuple[str, ...]
    text: str
    holds: Callable[[Shown], bool]


def principal(recorded: Shown) -> list[int]:
    """The places of the components that statements are about, the largest first."""
    places = sorted((at for at, value in recorded.values.items() if value), key=lambda at: -abs(recorded.value(at)))
    return places[:PRINCIPAL]


def statements(names: Sequence[str], recorded: Shown, computed: Mapping[int, Shown]) -> tuple[StatementItem, ...]:
    """What the explanation on record says, and under which of the choices that does not hold.

    `names` are those of the components; `computed` are by the place of their choice, and have the record among them.
    """
    places = principal(recorded)
    stated = [
        *(_sign(names, place, recorded.value(place) > 0) for place in places),
        *(_order(names, first, second) for first, second in pairwise(places)),
        *(_reason(reason) for reason in recorded.reasons),
    ]
    failing = [tuple(at for at, shown in computed.items() if not one.holds(shown)) for one in stated]
    return tuple(
        StatementItem(kind=one.kind, components=one.components, text=one.text, survives=not fails, fails=fails)
        for one, fails in zip(stated, failing, strict=True)
    )


def _sign(names: Sequence[str], place: int, is_up: bool) -> _Statement:
    def holds(shown: Shown) -> bool:
        return (shown.value(place) if is_up else -shown.value(place)) > shown.error(place)

    return _Statement("sign", (names[place],), f"{names[place]} moves the output {'up' if is_up else 'down'}", holds)


def _order(names: Sequence[str], first: int, second: int) -> _Statement:
    def holds(shown: Shown) -> bool:
        apart = abs(shown.value(first)) - abs(shown.value(second))
        return apart > shown.error(first) + shown.error(second)

    text = f"{names[first]} counts for more than {names[second]}"
    return _Statement("order", (names[first], names[second]), text, holds)


def _reason(reason: ReasonItem) -> _Statement:
    def holds(shown: Shown) -> bool:
        return any(_same(reason, other) for other in shown.reasons)

    name = reason.code or reason.feature
    return _Statement("reason", (name,), f"{name}, {reason.text}, is among the principal reasons", holds)


def _same(one: ReasonItem, other: ReasonItem) -> bool:
    """Features that share a code are one reason, whichever of them is the strongest."""
    return one.code == other.code and (one.code is not None or one.feature == other.feature)


def correlation(recorded: Shown, other: Shown) -> float | None:
    """The rank correlation of the absolute values, which are those of all components; None where there is none."""
    values = [np.abs(np.array([*shown.values.values()])) for shown in (recorded, other)]
    found = rank_correlation(*values)
    return found if math.isfinite(found) else None
