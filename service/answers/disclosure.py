"""Disclosure: the policy of a key, applied to replies and to stored records alike.

A gradient explanation gives away the model: one integrated-gradients query of a linear model holds all its weights
(Milli, Schmidt, Dragan and Hardt, "Model reconstruction from model explanations", 2019). A policy withholds values and
rounds those that it shows, relative to the largest: a caller who chooses the inputs could make any absolute rounding
negligible. Every query still reveals something; quotas bound how much.

Each field says how it is shown under a policy (`service.access.visibility`); a field that does not is not shown.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from typing import TypeVar

from service.access.permissions import Policy
from service.access.visibility import Limits, limited_to, on_grid, outputs_in, step_of
from service.answers.explanation import Explained
from service.answers.items import DisclosureItem
from service.catalog.outputs.registry import AnyPrediction

T = TypeVar("T", bound=Explained)
P = TypeVar("P", bound=AnyPrediction)


def limited_prediction(prediction: P, policy: Policy) -> P:
    """A `predictions` item as the policy lets it be seen."""
    if not policy.limits_values:
        return prediction
    return limited_to(prediction, Limits(policy, None, None, step_of(outputs_in(prediction), policy)))


def limited(explanation: T, policy: Policy, prediction: AnyPrediction | None = None) -> T:
    """An explanation, or a record of one, as the policy lets it be seen; it then says so in `disclosure`.

    `prediction` is the one that belongs to the explanation. All outputs are rounded on one grid: if a small one were
    rounded relative to itself, it would reveal the logit, however extreme.
    """
    if not policy.limits_values:
        return explanation
    attributions = explanation.attributions
    values = () if attributions is None else attributions.values
    outputs = chain(outputs_in(prediction), outputs_in(explanation))
    limits = Limits(policy, _largest(values, policy.top), step_of(values, policy), step_of(outputs, policy))
    return limited_to(explanation, limits).adding(disclosure=DisclosureItem.of(policy))


def shown_values(values: Sequence[float], policy: Policy) -> dict[int, float]:
    """Of the values of components those that the policy shows, by their places, rounded as it says."""
    kept, step = _largest(values, policy.top), step_of(values, policy)
    return {at: on_grid(value, step) for at, value in enumerate(values) if kept is None or at in kept}


def _largest(values: Collection[float], top: int | None) -> frozenset[int] | None:
    """The places of the `top` largest values; None for all."""
    if top is None:
        return None
    sizes = [-abs(value) for value in values]
    return frozenset(sorted(range(len(sizes)), key=lambda at: (sizes[at], at))[:top])
