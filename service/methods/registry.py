"""The methods this service knows: a plain tuple, one entry a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.domain import Completeness
from service.methods.expected_gradients import expected_gradients
from service.methods.integrated_gradients import integrated_gradients
from service.methods.oracle import Method, Problem


@dataclass(frozen=True, slots=True)
class Option:
    """One of a method's own options: its default and the values it may take."""

    name: str
    default: str
    choices: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """A method by its wire name.

    `least_points` gives, for a baseline set of a size, the smallest number of gradient points that give any answer,
    and `usual_points` the number to reckon with when work is admitted.
    `draws` says that the seed matters.
    """

    name: str
    attribute: Callable[[Problem], Method]
    completeness: tuple[Completeness, ...]
    draws: bool
    least_points: Callable[[int], int]
    usual_points: Callable[[int], int]
    options: tuple[Option, ...]
    description: str
    citation: str


METHODS: tuple[MethodEntry, ...] = (
    MethodEntry(
        name="integrated_gradients",
        attribute=integrated_gradients,
        completeness=(Completeness.EXACT, Completeness.ASYMPTOTIC),
        draws=False,
        least_points=lambda _size: 1,
        usual_points=lambda _size: 64,
        options=(
            Option(
                "rule",
                "auto",
                ("auto", "exact", "gauss_legendre", "midpoint"),
                "how the path integral is taken; auto is exact where the network is piecewise linear",
            ),
        ),
        description="the path integral of the gradient from the mean of the baseline set to the input",
        citation="Sundararajan, Taly and Yan, ICML 2017",
    ),
    MethodEntry(
        name="expected_gradients",
        attribute=expected_gradients,
        completeness=(Completeness.BY_CONSTRUCTION,),
        draws=True,
        least_points=lambda size: size,
        usual_points=lambda size: 8 * size,
        options=(),
        description="the mean of integrated gradients over every row of the baseline set",
        citation="Erion et al., Nature Machine Intelligence 2021",
    ),
)

BY_NAME = {entry.name: entry for entry in METHODS}
