"""Perturbation curves: what the output does while components are removed, or put back, in the order of their
attributions.

With x_k the input without the k most relevant of n components (most relevant first, MoRF), or without the k least
relevant ones (LeRF), L steps of equal size, and f the explained output in the space of the explanation:

    deletion    the area under f(x_k), MoRF, over k / n from 0 to 1, by the trapezoid rule
    insertion   the same while the most relevant components are put back into an input of which nothing is left: with
                what stands in, an input without the n - k least relevant ones, so that it is the curve LeRF read
                backwards
    aopc_morf   1 / (L + 1) sum over k = 0 .. L of f(x) - f(x_k), MoRF
    aopc_lerf   the same, LeRF
    abpc        the area between the curves LeRF and MoRF
    deletion_against_random     the mean deletion of `orders` random orders, minus deletion: above zero where the order
                of the attributions is worth more than chance

Petsiuk, Das and Saenko, "RISE", BMVC 2018 (deletion, insertion); Samek, Binder, Montavon, Lapuschkin and Mueller,
"Evaluating the visualization of what a deep neural network has learned", TNNLS 2017, equation 12 (AOPC); Schulz, Sixt,
Tombari and Landgraf, "Restricting the flow", ICLR 2020, section 4 (the area between both; here it is not normalised).

RISE inserts into a blurred image and deletes with zeros; here both have the one replacement that is named. Components
of equal attributions are taken in their own order. Special tokens and padding stay.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from service.catalog.inputs.removal import Mask
from service.domain import Floats, Indices
from service.faithfulness.spec import STEPS, Better, MetricSpec, one_curve
from service.faithfulness.subject import Measured, Measuring, Subject, no_figure, numbers
from service.methods.questions import Steps
from service.methods.spec import Facts, Number

NOTHING_LEFT = "there is no component that could be removed"


def curve(subject: Subject, order: Indices) -> Steps[Floats]:
    """The outputs while components, by number in that `order`, are removed: [steps + 1], the first of the whole
    input."""
    masks = removed_in_order(order, int(subject.number("steps")), len(subject.values))
    key = subject.measure.replace, masks.tobytes()
    if key not in subject.known:
        left = yield from subject.without(masks[1:])
        subject.known[key] = np.concatenate([[subject.problem.output], left])
    return subject.known[key]


def removed_in_order(order: Indices, steps: int, components: int) -> Mask:
    """What is removed after each of at most so many steps, in `order`: [steps + 1, components], nothing at first."""
    steps = min(steps, len(order))
    counts = np.rint(np.linspace(0, len(order), steps + 1)).astype(np.intp)
    place = np.full(components, len(order))
    place[order] = np.arange(len(order))
    return place < counts[:, None]


def most_relevant_first(subject: Subject) -> Indices:
    """The components that can be removed, by falling attribution."""
    return subject.removable[np.argsort(-subject.judged, kind="stable")]


def least_relevant_first(subject: Subject) -> Indices:
    """The other way round, so that components of equal attributions are the last here that are the first there."""
    return most_relevant_first(subject)[::-1]


def area(values: Floats) -> float:
    """By the trapezoid rule, over equal steps from 0 to 1."""
    return float(np.trapezoid(values, dx=1 / (len(values) - 1)))


def deletion(subject: Subject) -> Measuring:
    """See the module's docstring."""
    if not len(subject.removable):
        return no_figure(NOTHING_LEFT)
    falling = yield from curve(subject, most_relevant_first(subject))
    return Measured(area(falling), numbers(falling))


def insertion(subject: Subject) -> Measuring:
    """See the module's docstring; the curve begins where nothing is left."""
    if not len(subject.removable):
        return no_figure(NOTHING_LEFT)
    rising = (yield from curve(subject, least_relevant_first(subject)))[::-1]
    return Measured(area(rising), numbers(rising))


def aopc_morf(subject: Subject) -> Measuring:
    """See the module's docstring."""
    return (yield from _aopc(subject, most_relevant_first(subject)))


def aopc_lerf(subject: Subject) -> Measuring:
    """See the module's docstring."""
    return (yield from _aopc(subject, least_relevant_first(subject)))


def _aopc(subject: Subject, order: Indices) -> Measuring:
    if not len(order):
        return no_figure(NOTHING_LEFT)
    values = yield from curve(subject, order)
    return Measured(float((values[0] - values).mean()), numbers(values))


def abpc(subject: Subject) -> Measuring:
    """See the module's docstring; the curve is the one minus the other."""
    if not len(subject.removable):
        return no_figure(NOTHING_LEFT)
    most = yield from curve(subject, most_relevant_first(subject))
    least = yield from curve(subject, least_relevant_first(subject))
    return Measured(area(least - most), numbers(least - most))


def deletion_against_random(subject: Subject) -> Measuring:
    """See the module's docstring."""
    if not len(subject.removable):
        return no_figure(NOTHING_LEFT)
    own = yield from curve(subject, most_relevant_first(subject))
    generator = np.random.default_rng(subject.problem.seed)
    areas = []
    for _ in range(int(subject.number("orders"))):
        values = yield from curve(subject, generator.permutation(subject.removable))
        areas.append(area(values))
    return Measured(float(np.mean(areas)) - area(own))


def _several_curves(facts: Facts) -> int:
    return int(facts.number("steps") * (1 + facts.number("orders")))


RISE = "Petsiuk, Das and Saenko, BMVC 2018"
SAMEK = "Samek et al., TNNLS 2017"

DELETION = MetricSpec(
    name="deletion",
    measure=deletion,
    better=Better.LOWER,
    description="the area under the output while the most relevant components are removed",
    citation=RISE,
    removes=True,
    options=(STEPS,),
    rows=one_curve,
)
INSERTION = replace(
    DELETION,
    name="insertion",
    measure=insertion,
    better=Better.HIGHER,
    description="the area under the output while the most relevant components are put back",
)
AOPC_MORF = replace(
    DELETION,
    name="aopc_morf",
    measure=aopc_morf,
    better=Better.HIGHER,
    description="the mean fall of the output while the most relevant components are removed",
    citation=SAMEK,
)
AOPC_LERF = replace(
    AOPC_MORF,
    name="aopc_lerf",
    measure=aopc_lerf,
    better=Better.LOWER,
    description="the mean fall of the output while the least relevant components are removed",
)
ABPC = replace(
    DELETION,
    name="abpc",
    measure=abpc,
    better=Better.HIGHER,
    description="the area between the curves of removing the least and the most relevant components first",
    citation="Schulz, Sixt, Tombari and Landgraf, ICLR 2020",
    rows=lambda facts: 2 * one_curve(facts),
)
DELETION_AGAINST_RANDOM = replace(
    DELETION,
    name="deletion_against_random",
    measure=deletion_against_random,
    better=Better.HIGHER,
    description="how much larger deletion is for components in random orders than in the order of the attributions",
    options=(STEPS, Number("orders", 5, 1, 100, "random orders, of which the mean is taken")),
    rows=_several_curves,
)
