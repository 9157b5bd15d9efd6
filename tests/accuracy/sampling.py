"""Whether `standard_error` says how far the Expected Gradients of a baseline set are from those of its population."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from service.domain import Floats, OutputSpace
from service.engine.kernels.kernel import Deployed, DeployedKernel
from service.engine.worker.device import DeviceModel
from service.engine.worker.prepared_baselines import prepare_baseline
from tests.accuracy.engine import SET, device_model, explained
from tests.accuracy.known import Known, fingerprint
from tests.accuracy.measuring import SPACES, case_of
from tests.accuracy.networks import INPUTS
from tests.accuracy.truths import along, lines

SIZES = (8, 16, 32, 128)
DRAWS, ROWS_EXPLAINED = 10, 4
DEVIATIONS = 1.96
NEGLIGIBLE = 1e-3
"""Of the population's largest attribution: units that even the whole population hardly reaches are not counted. Those
that no row of a set reaches are."""
POPULATION_LIMIT = 0.01
"""How far the truth may be off, relative to its L1 norm: a tenth of a usual standard error."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Of a network, space and `size` of sets: how many of so many attributions have the population's within 1.96
    standard errors."""

    network: str
    space: str
    size: int
    covered: int
    whole: int


def sampled(
    network: str, truths: Path | None, sizes: tuple[int, ...] = SIZES, explained_rows: int = ROWS_EXPLAINED
) -> list[Sampled]:
    """Rows explained from sets drawn, with replacement, from the rows that are not explained."""
    torch.set_num_threads(1)
    case, draws = case_of(network), np.random.default_rng(7)
    population, exact = case.rows[INPUTS:], copy.deepcopy(case.network).double()
    model, known = device_model(copy.deepcopy(case.network), population), Known(truths, fingerprint(case.network))
    counts = {(space, size): np.zeros(2, dtype=int) for space in SPACES for size in sizes}
    limits = np.full(len(SPACES), POPULATION_LIMIT)
    for row in case.rows[:explained_rows]:
        target = int(case.network(torch.from_numpy(row[None]).float()).argmax())
        truth = known.truth(
            "population", (population, row), target, limits,
            partial(along, exact, lines(population, row), target, limits, 1, len(population), 4),
        )  # fmt: skip
        for size in sizes:
            for _ in range(DRAWS):
                drawn = _with_set(model, population[draws.integers(len(population), size=size)])
                for at, space in enumerate(SPACES):
                    counts[space, size] += _covered(drawn, row, target, space, truth.values[at])
    return [Sampled(network, space.value, size, *found.tolist()) for (space, size), found in counts.items()]


def _with_set(model: DeviceModel, rows: Floats) -> DeviceModel:
    (deployed,) = model.kernels[Deployed]
    assert isinstance(deployed, DeployedKernel)
    return replace(model, baselines={SET: prepare_baseline(rows.reshape(len(rows), -1), deployed, None)})


def _covered(model: DeviceModel, row: Floats, target: int, space: OutputSpace, truth: Floats) -> Floats:
    """How many units are covered, of how many."""
    answer = explained(model, row, "expected_gradients", space, 0.05, target=target)
    told, errors = np.array(answer.attributions), np.array(answer.standard_error)
    if truth.size != errors.size:  # an image's standard errors are those of pixels
        told, truth = (values.reshape(row.shape).sum(axis=0).ravel() for values in (told, truth))
    counts = np.abs(truth) > NEGLIGIBLE * np.abs(truth).max()
    result: Floats = np.array([(np.abs(told - truth) <= DEVIATIONS * errors)[counts].sum(), counts.sum()])
    return result
