"""A network's stated errors, and how often they hold."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from service.catalog.outputs.classes import Classes
from service.domain import Floats
from service.engine.worker.device import DeviceModel
from service.methods.questions import Question
from tests.accuracy.approaches import BY_NAME, Answer, Approach, Rule, Subject
from tests.accuracy.engine import device_model, explained
from tests.accuracy.known import Known, fingerprint
from tests.accuracy.networks import INPUTS, NETWORKS, Case, Network
from tests.accuracy.truths import Truth, distances

TOLERANCES = (0.05, 0.01, 0.001)
SPACES = Classes.spaces
DOUBT = 1 / 6
"""How far the two finest rules of a truth may be apart, as a share of the smallest stated error: it then errs by a
tenth of that where there are many kinks; see `truths`."""
LEAST_DOUBT = 1e-8


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one answer: its `true` and its `stated` relative L1 error, the `points` it took, whether it `converged`, and
    whether the truth is known closely enough to tell (`sure`)."""

    true: float
    stated: float
    points: int
    converged: bool
    sure: bool


@dataclass(frozen=True, slots=True)
class Line:
    """The figures of one network, rule, output space and tolerance, of all inputs."""

    network: str
    rule: str
    space: str
    tolerance: float
    figures: tuple[Figures, ...]

    def of(self, name: str) -> Floats:
        """One of the figures, of all inputs."""
        return np.array([getattr(figures, name) for figures in self.figures], dtype=np.float64)

    @property
    def ratios(self) -> Floats:
        """The true errors over the stated ones."""
        ratios: Floats = self.of("true") / np.maximum(self.of("stated"), 1e-300)
        return ratios

    @property
    def covered(self) -> int:
        """Of how many inputs the true error is within the stated one."""
        return int((self.ratios <= 1).sum())


@lru_cache(maxsize=2)
def case_of(name: str) -> Case:
    """The case of a network, made once for all approaches to it; some are trained."""
    case = NETWORKS[name].make()
    return Case(case.network, _single(case.rows), _single(case.baselines), case.is_piecewise_linear)


def _single(rows: Floats) -> Floats:
    """As they reach the service."""
    return rows.astype(np.float32).astype(np.float64)


def lines_of(
    network: Network,
    approach: Approach,
    inputs: int = INPUTS,
    tolerances: Sequence[float] = TOLERANCES,
    truths: Path | None = None,
) -> list[Line]:
    """The figures of a network by all rules of an approach, in both spaces; truths are kept in the folder `truths`."""
    case = case_of(network.name)
    model = device_model(copy.deepcopy(case.network), approach.baselines(case))
    rules = [rule for rule in approach.rules if rule.applies(model.traits)]
    exact, known = copy.deepcopy(case.network).double(), Known(truths, fingerprint(case.network))
    found: dict[tuple[str, str, float], list[Figures]] = {}
    for row in case.rows[:inputs] if rules else ():
        target = int(case.network(torch.from_numpy(row[None]).float()).argmax())
        answers = list(_answers(model, row, target, rules, tolerances))
        for group in [[answer] for answer in answers] if approach.has_own_path else [answers]:
            points = max(answer.explanation.evaluations for answer in group if answer.rule is group[0].rule)
            truth = approach.truth(Subject(exact, case, row, target, _limits(group), points, known), group[0])
            for answer in group:
                key = (answer.rule.name, answer.space.value, answer.tolerance)
                found.setdefault(key, []).append(_figures(answer, truth))
    return [Line(network.name, *key, tuple(figures)) for key, figures in found.items()]


Job = tuple[str, str]
"""A network and an approach, by their names."""


def measured(job: Job, inputs: int, tolerances: Sequence[float], truths: Path | None) -> tuple[Job, list[Line]]:
    """The lines of one network and approach, in a process of its own."""
    torch.set_num_threads(1)
    network, approach = job
    return job, lines_of(NETWORKS[network], BY_NAME[approach], inputs, tolerances, truths)


def _answers(
    model: DeviceModel, row: Floats, target: int, rules: Sequence[Rule], tolerances: Sequence[float]
) -> Iterator[Answer]:
    for rule in rules:
        for space in SPACES:
            for tolerance in tolerances if rule.heeds_tolerance else tolerances[:1]:
                questions: list[Question] = []
                answer = explained(
                    model, row, rule.method, space, tolerance, rule.options, target=target, questions=questions
                )
                yield Answer(rule, space, tolerance, answer, questions)


def _stated(answer: Answer) -> float:
    assert answer.explanation.attribution_error is not None
    return answer.explanation.attribution_error


def _limits(answers: Sequence[Answer]) -> Floats:
    """How far two rules of the truth may be apart: [spaces]. Of a space without an answer, any way."""
    least = [min((_stated(answer) for answer in answers if answer.space is space), default=np.inf) for space in SPACES]
    limits: Floats = np.maximum(DOUBT * np.array(least), LEAST_DOUBT)
    return limits


def _figures(answer: Answer, truth: Truth) -> Figures:
    explanation, space = answer.explanation, SPACES.index(answer.space)
    told = explanation.attributions if explanation.interactions is None else explanation.interactions
    true = float(distances(np.array(told).reshape(1, -1), truth.values[space].reshape(1, -1))[0])
    stated = _stated(answer)
    is_sure = bool(truth.doubts[space] <= max(DOUBT * stated, LEAST_DOUBT))
    return Figures(true, stated, explanation.evaluations, explanation.converged, is_sure)
