"""Infidelity and max-sensitivity: do attributions say what removing components does, and do they keep still?

Yeh, Hsieh, Suggala, Inouye and Ravikumar, "On the (in)fidelity and sensitivity of explanations", NeurIPS 2019.

    infidelity          the mean over random sets S of components of (b sum over i in S of A_i - (f(x) - f(x without
    S)))^2

Definition 2.1 with perturbations that move a random set of components to what stands in for them: attributions of what
components contribute, and not of slopes, are multiplied with the share of the way that a component goes, which is 1 in
S. Each component is in S with the probability `share`. The scale b is the one that fits best (`scale: best`, as in the
paper's appendix and in Captum's `normalize`), for attributions of different methods are not on one scale; or 1
(`as_is`).

    max_sensitivity     the largest of ||A(x + r) - A(x)|| / ||A(x)||, for `samples` draws of r

Definition 3.1, over the norm of A(x) as in Captum. Each number of r is drawn evenly from plus or minus `radius` times
the range of its input as methods see it (of tokens, their embeddings). The perturbed input is explained by the same
method with the same options. It is a lower bound of the largest in the ball: more samples only raise it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from service.faithfulness.spec import Better, MetricSpec
from service.faithfulness.subject import Measured, Measuring, Subject, no_figure
from service.methods.questions import outputs_at
from service.methods.shared.noise import COPIES_AT_ONCE
from service.methods.spec import Choice, Facts, Number

UNSTILL = "the attributions are all zero"
NOTHING_LEFT = "there is no component that could be removed"


def infidelity(subject: Subject) -> Measuring:
    """See the module's docstring."""
    if not len(subject.removable):
        return no_figure(NOTHING_LEFT)
    generator = np.random.default_rng(subject.problem.seed)
    chosen = generator.random((int(subject.number("samples")), len(subject.removable))) < subject.number("share")
    removed = np.tile(subject.whole, (len(chosen), 1))
    removed[:, subject.removable] = chosen
    left = yield from subject.without(removed)
    changes = subject.problem.output - left
    told = removed @ subject.values
    scale = 1.0
    if subject.word("scale") == "best":
        scale = float(told @ changes) / float(told @ told) if told.any() else 0.0
    return Measured(float(((scale * told - changes) ** 2).mean()))


def max_sensitivity(subject: Subject) -> Measuring:
    """See the module's docstring."""
    problem, own = subject.problem, subject.values
    length = float(np.linalg.norm(own))
    if not length:
        return no_figure(UNSTILL)
    generator = np.random.default_rng(problem.seed)
    radius = subject.number("radius") * (problem.high - problem.low)
    samples, changes = int(subject.number("samples")), []
    for begun in range(0, samples, COPIES_AT_ONCE):
        count = min(COPIES_AT_ONCE, samples - begun)
        inputs = problem.input + radius * generator.uniform(-1, 1, (count, problem.input.size))
        outputs = yield from outputs_at(inputs)
        for at, output in zip(inputs, problem.read(outputs).tolist(), strict=True):
            attribution = yield from subject.attribute(replace(problem, input=at, output=output))
            values = problem.components_of(attribution.values)
            changes.append(float(np.linalg.norm(values - own)) / length)
    return Measured(max(changes))


def _samples(facts: Facts) -> int:
    return int(facts.number("samples"))


INFIDELITY = MetricSpec(
    name="infidelity",
    measure=infidelity,
    better=Better.LOWER,
    description="the mean squared error of what attributions say that removing components does to the output",
    citation="Yeh, Hsieh, Suggala, Inouye and Ravikumar, NeurIPS 2019",
    removes=True,
    options=(
        Number("samples", 64, 2, 10_000, "random sets of components"),
        Number("share", 0.2, 0.001, 1.0, "of the components that are in a set, in the mean"),
        Choice("scale", "best", ("best", "as_is"), "what attributions are multiplied by: what fits best, or 1"),
    ),
    rows=_samples,
)
MAX_SENSITIVITY = MetricSpec(
    name="max_sensitivity",
    measure=max_sensitivity,
    better=Better.LOWER,
    description="the largest change of the attributions, relative to their size, under small changes of the input",
    citation=INFIDELITY.citation,
    options=(
        Number("samples", 10, 1, 1000, "perturbed inputs, each of which is explained"),
        Number("radius", 0.02, 0.0001, 1.0, "the largest change of an input, as a share of its range"),
    ),
    rows=_samples,
    explains=_samples,
)
