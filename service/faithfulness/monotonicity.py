"""Monotonicity: does the output rise with every component that is put back, the least relevant first?

From an input of which nothing is left, components are put back in the order of rising attributions. The figure is the
share of steps that do not lower the output. Arya et al., "One explanation does not fit all: a toolkit and taxonomy of
AI explainability techniques", 2019, section 4.2, asks whether all do; there and in Quantus the figure is 1 or 0.

It takes a model whose output every component raises, which few are; for others insertion says more.
"""

from __future__ import annotations

import numpy as np

from service.faithfulness.curves import NOTHING_LEFT, curve, most_relevant_first
from service.faithfulness.spec import STEPS, Better, MetricSpec, one_curve
from service.faithfulness.subject import Measured, Measuring, Subject, no_figure, numbers


def monotonicity(subject: Subject) -> Measuring:
    """See the module's docstring. To put back the least relevant first is to remove the most relevant first, read
    backwards."""
    if not len(subject.removable):
        return no_figure(NOTHING_LEFT)
    rising = (yield from curve(subject, most_relevant_first(subject)))[::-1]
    return Measured(float((np.diff(rising) >= 0).mean()), numbers(rising))


MONOTONICITY = MetricSpec(
    name="monotonicity",
    measure=monotonicity,
    better=Better.HIGHER,
    description="the share of steps that do not lower the output while components are put back, least relevant first",
    citation="Arya et al., 2019",
    removes=True,
    options=(STEPS,),
    rows=one_curve,
)
