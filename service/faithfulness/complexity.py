"""Complexity: over how many components an explanation is spread. It asks the model nothing.

With a_i the absolute attributions of n components, p_i = a_i / sum a, and a_(1) <= .. <= a_(n):

    entropy     - sum p_i ln p_i: 0 where one component has everything, ln n where all have the same
    gini        sum (2 i - n - 1) a_(i) / (n sum a): 0 where all have the same, nearly 1 where one has everything

Bhatt, Weller and Moura, "Evaluating and aggregating feature-based model explanations", IJCAI 2020, section 4.3;
Chalasani, Chen, Chowdhury, Jha and Wu, "Concise explanations of neural networks using adversarial training", ICML 2020.

They say how short an explanation is, and nothing of whether it is true: a map that points at one pixel at random is
perfectly concise.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np

from service.faithfulness.spec import Better, MetricSpec
from service.faithfulness.subject import Measured, Measuring, Subject, no_figure

ALL_ZERO = "the attributions are all zero"


def unasked(measured: Measured) -> Generator[Any, Any, Measured]:
    """A generator that asks nothing."""
    yield from ()
    return measured


def entropy(subject: Subject) -> Measuring:
    """See the module's docstring."""
    sizes = np.abs(subject.judged)
    if not sizes.any():
        return unasked(no_figure(ALL_ZERO))
    shares = sizes[sizes > 0] / sizes.sum()
    return unasked(Measured(float(-(shares * np.log(shares)).sum())))


def gini(subject: Subject) -> Measuring:
    """See the module's docstring."""
    sizes = np.sort(np.abs(subject.judged))
    if not sizes.any():
        return unasked(no_figure(ALL_ZERO))
    count = len(sizes)
    weights = 2 * np.arange(1, count + 1) - count - 1
    return unasked(Measured(float(weights @ sizes / (count * sizes.sum()))))


ENTROPY = MetricSpec(
    name="entropy",
    measure=entropy,
    better=Better.NEITHER,
    description="how evenly attributions are spread over the components",
    citation="Bhatt, Weller and Moura, IJCAI 2020",
)
GINI = MetricSpec(
    name="gini",
    measure=gini,
    better=Better.NEITHER,
    description="how few components have most of the attributions",
    citation="Chalasani, Chen, Chowdhury, Jha and Wu, ICML 2020",
)
