"""Drops: what the probability of the explained label loses when the input is seen through its explanation.

The attributions become a map of shares m from 0 to 1: their positive part over its largest. With x * m the input of
which each component is left by its share, and the rest is what stands in for it, and Y the probability of the label:

    average_drop                max(0, Y(x) - Y(x * m)) / Y(x): less is better
    average_drop_in_deletion    (Y(x) - Y(x * (1 - m))) / Y(x): more is better
    increase_in_confidence      1 where Y(x * m) > Y(x), else 0: the mean over inputs is the paper's share

Chattopadhay, Sarkar, Howlader and Balasubramanian, "Grad-CAM++", WACV 2018, section 5.1 (average drop, increase in
confidence, there of I * m alone: the replacement `zero`); Jung and Oh, "Towards better explanations of class activation
mapping", ICCV 2021 (average drop in deletion). As shares, where the papers have per cent.

Between two tokens or categories there is nothing, so that inputs with such do not fade; nor do inpainted pixels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from service.domain import Floats
from service.faithfulness.spec import Better, MetricSpec
from service.faithfulness.subject import Measured, Measuring, Subject, no_figure
from service.methods.questions import Steps
from service.methods.spec import Facts

NO_PROBABILITY = "the explained output is no probability of one label"
NOTHING_BETWEEN = "between these components and what stands in for them there is nothing; use deletion"
ZERO = "the probability of the label is 0"


def shares(values: Floats) -> Floats:
    """The map: the positive part of the attributions over its largest; zeros where none is positive."""
    positive = np.maximum(values, 0)
    largest = positive.max(initial=0.0)
    return positive / largest if largest else positive


def _through(subject: Subject) -> Steps[Floats | str]:
    """The probabilities [3] of the input, of what the map leaves and of what it takes away; or why there are none."""
    if not subject.has_probabilities:
        return NO_PROBABILITY
    seen = shares(subject.values)
    faded = subject.faded(np.stack([np.ones_like(seen), seen, 1 - seen]))
    if faded is None:
        return NOTHING_BETWEEN
    key = subject.measure.replace, "drops"
    if key not in subject.known:
        subject.known[key] = yield from faded
    found = subject.known[key]
    return found if found[0] > 0 else ZERO


def average_drop(subject: Subject) -> Measuring:
    """See the module's docstring."""
    found = yield from _through(subject)
    return no_figure(found) if isinstance(found, str) else Measured(float(max(0, found[0] - found[1]) / found[0]))


def average_drop_in_deletion(subject: Subject) -> Measuring:
    """See the module's docstring."""
    found = yield from _through(subject)
    return no_figure(found) if isinstance(found, str) else Measured(float((found[0] - found[2]) / found[0]))


def increase_in_confidence(subject: Subject) -> Measuring:
    """See the module's docstring."""
    found = yield from _through(subject)
    return no_figure(found) if isinstance(found, str) else Measured(float(found[1] > found[0]))


def _three(facts: Facts) -> int:  # noqa: ARG001
    return 3


AVERAGE_DROP = MetricSpec(
    name="average_drop",
    measure=average_drop,
    better=Better.LOWER,
    description="the share of the label's probability that is lost where only what the explanation points at is left",
    citation="Chattopadhay, Sarkar, Howlader and Balasubramanian, WACV 2018",
    removes=True,
    rows=_three,
)
AVERAGE_DROP_IN_DELETION = replace(
    AVERAGE_DROP,
    name="average_drop_in_deletion",
    measure=average_drop_in_deletion,
    better=Better.HIGHER,
    description="the share of the label's probability that is lost where what the explanation points at is taken away",
    citation="Jung and Oh, ICCV 2021",
)
INCREASE_IN_CONFIDENCE = replace(
    AVERAGE_DROP,
    name="increase_in_confidence",
    measure=increase_in_confidence,
    better=Better.HIGHER,
    description="the share of inputs whose label becomes likelier where only what the explanation points at is left",
)
