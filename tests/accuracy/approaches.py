"""What is held against what: the truths, and the methods and rules that approach each of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from service.catalog.traits import Traits
from service.domain import Explanation, Floats, OptionValue, OutputSpace
from service.methods import registry
from service.methods.questions import Question, Rows
from service.methods.spec import Facts
from tests.accuracy.known import Known
from tests.accuracy.networks import INPUTS, Case
from tests.accuracy.truths import Truth, along, blurs, hessian_integral, in_pieces, line, lines, polyline

PATHS = {1: 16, 2: 6, 3: 4}
"""The size of a baseline set, by the number of dimensions of an input."""
SIGMA_MAX = 0.2
SOFTPLUS_BETA = 10.0


@dataclass(frozen=True, slots=True)
class Rule:
    """A method with its options, by a name for the table. `heeds_tolerance`: it goes on until the tolerance holds.
    `differs` says on which models it is not the same as another rule."""

    name: str
    method: str
    options: dict[str, OptionValue] = field(default_factory=dict)
    heeds_tolerance: bool = True
    differs: Callable[[Traits], bool] = lambda _: True

    def applies(self, traits: Traits) -> bool:
        """Whether the service offers it for such a model, and it is a rule of its own there."""
        options = {**registry.BY_NAME[self.method].defaults(), **self.options}
        return self.differs(traits) and registry.BY_NAME[self.method].not_applicable(Facts(traits, 1, options)) is None


@dataclass(frozen=True, slots=True)
class Answer:
    """An explanation, and what its method asked for on the way."""

    rule: Rule
    space: OutputSpace
    tolerance: float
    explanation: Explanation
    questions: list[Question]


@dataclass(frozen=True, slots=True)
class Subject:
    """A row [...shape] of a case to be explained, with the network in float64; `limits` [spaces] are how sure the truth
    is to be, relative to its L1 norm, and `points` is how many the service took for it."""

    network: nn.Module
    case: Case
    row: Floats
    target: int
    limits: Floats
    points: int
    known: Known


@dataclass(frozen=True, slots=True)
class Approach:
    """A kind of truth and the `rules` that approach it. It is of a subject, and where the method finds its own path, of
    an answer (`has_own_path`)."""

    name: str
    rules: tuple[Rule, ...]
    truth: Callable[[Subject, Answer], Truth]
    baselines: Callable[[Case], Floats] = lambda case: case.baselines
    has_own_path: bool = False


def _straight(subject: Subject, _: Answer) -> Truth:
    start = subject.case.baselines.mean(axis=0).astype(np.float32).astype(np.float64)
    network, row, target = subject.network, subject.row, subject.target

    def take() -> Truth:
        if subject.case.is_piecewise_linear:
            return in_pieces(network, start, row, target)
        return along(network, line(start, row), target, subject.limits, 3 * subject.points // 2)

    return subject.known.truth("straight", (start, row), target, subject.limits, take)


def baseline_set(case: Case) -> Floats:
    """The first rows of those that are not explained."""
    return case.rows[INPUTS : INPUTS + PATHS[case.rows.ndim - 1]]


def _from_each(subject: Subject, _: Answer) -> Truth:
    starts, row, target = baseline_set(subject.case), subject.row, subject.target
    first = 3 * subject.points // 2
    return subject.known.truth(
        "each", (starts, row), target, subject.limits,
        lambda: along(subject.network, lines(starts, row), target, subject.limits, first, len(starts), 20),
    )  # fmt: skip


def _sharpening(subject: Subject, _: Answer) -> Truth:
    row, target = subject.row, subject.target
    path = blurs(row, SIGMA_MAX * max(row.shape[1:]))
    return subject.known.truth(
        "blurs", (row,), target, subject.limits,
        lambda: along(subject.network, path, target, subject.limits, 3 * subject.points // 2),
    )  # fmt: skip


def _own_steps(subject: Subject, answer: Answer) -> Truth:
    """On the path that the method has taken; where it went is read off its questions."""
    asked = [question.rows for question in answer.questions if isinstance(question, Rows)]
    corners = np.concatenate([*asked, subject.row.reshape(1, -1)]).reshape(-1, *subject.row.shape)
    steps = len(corners) - 1
    return subject.known.truth(
        f"steps in {answer.space}", (corners,), subject.target, subject.limits,
        lambda: along(subject.network, polyline(corners), subject.target, subject.limits, steps, steps, 1),
    )  # fmt: skip


def softened(network: nn.Module) -> nn.Module:
    """The network with a softplus for each ReLU, as `smooth: softplus` explains it."""
    softer = copy.deepcopy(network)
    for name, module in network.named_modules():
        if isinstance(module, nn.ReLU):
            softer.set_submodule(name, nn.Softplus(beta=SOFTPLUS_BETA))
    return softer


def _pairs(subject: Subject, answer: Answer) -> Truth:
    start = subject.case.baselines.mean(axis=0).astype(np.float32).astype(np.float64)
    network = softened(subject.network) if answer.rule.options else subject.network
    return subject.known.truth(
        "pairs", (start, subject.row), subject.target, subject.limits,
        lambda: hessian_integral(network, start, subject.row, subject.target, subject.limits),
    )  # fmt: skip


IG = "integrated_gradients"
APPROACHES = (
    Approach(
        IG,
        (
            Rule(IG, IG),
            Rule(f"{IG}, midpoint", IG, {"rule": "midpoint"}, differs=lambda traits: traits.is_piecewise_linear),
            Rule(f"{IG}, gauss_legendre", IG, {"rule": "gauss_legendre"}),
            Rule(f"{IG}, exact", IG, {"rule": "exact"}, heeds_tolerance=False),
        ),
        _straight,
    ),
    Approach("expected_gradients", (Rule("expected_gradients", "expected_gradients"),), _from_each, baseline_set),
    Approach("blur_ig", (Rule("blur_ig", "blur_ig"),), _sharpening),
    Approach(
        "guided_ig",
        tuple(Rule(f"guided_ig, {n} steps", "guided_ig", {"steps": n}, heeds_tolerance=False) for n in (40, 200)),
        _own_steps,
        has_own_path=True,
    ),
    Approach("integrated_hessians", (Rule("integrated_hessians", "integrated_hessians"),), _pairs),
    Approach(
        "integrated_hessians, softplus",
        (
            Rule(
                "integrated_hessians, softplus",
                "integrated_hessians",
                {"smooth": "softplus"},
                differs=lambda traits: traits.has_relu,
            ),
        ),
        _pairs,
    ),
)
BY_NAME = {approach.name: approach for approach in APPROACHES}
