"""Holds stated errors against true ones, network by network: `make accuracy`.

For each network, method and tolerance: in how many answers the true relative L1 error is at most `attribution_error`,
the true error over the stated one (median and 95th percentile), points, and how many did not converge.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from service.catalog.outputs.classes import Classes
from service.domain import Contrast, Explanation, Floats, OptionValue, OutputSpace, Target
from service.engine.worker.device import DeviceModel
from tests.accuracy.engine import device_model, explained
from tests.accuracy.networks import NETWORKS, Case, Network
from tests.accuracy.truths import in_pieces, on_line

TOLERANCES = (0.05, 0.01, 0.001)
MIDPOINTS = {1: 16_384, 2: 4096, 3: 4096}
"""By the number of dimensions of an input."""
PATHS, MIDPOINTS_A_PATH = 12, 1024
Truth = Callable[[nn.Module, Case, Floats, int, OutputSpace, int], Floats]


def index_of(target: Target) -> int:
    """The number of the one output that is explained."""
    assert not isinstance(target, Contrast)
    return target


@dataclass(frozen=True, slots=True)
class Asked:
    """A method with its options, where it applies, and what is true of it."""

    name: str
    method: str
    options: dict[str, OptionValue]
    truth: Truth
    applies: Callable[[DeviceModel], bool] = lambda _: True


@dataclass(frozen=True, slots=True)
class Line:
    """The figures of one network, method, output space and tolerance."""

    network: Network
    method: str
    space: OutputSpace
    tolerance: float
    ratios: Floats
    true: Floats
    points: Floats
    converged: int

    @property
    def covered(self) -> int:
        return int((self.ratios <= 1).sum())

    def __str__(self) -> str:
        middle, high = np.percentile(self.ratios, [50, 95])
        cells = (
            self.network.name + ("*" if self.network.is_tuned else ""),
            self.method,
            f"{self.space} {self.tolerance:g}",
            f"{self.covered} of {len(self.ratios)}",
            f"{middle:.2g}, {high:.2g}",
            f"{np.median(self.true):.1e}",
            f"{self.points.mean():.0f}",
            f"{self.converged} of {len(self.ratios)}",
        )
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| network | method | space, tolerance | covered | true over stated: median, 95th | true, median | points "
    "| converged |\n"
    "|---|---|---|---|---|---|---|---|"
)


def _from_mean(network: nn.Module, case: Case, row: Floats, target: int, space: OutputSpace, coarser: int) -> Floats:
    start = case.baselines.mean(axis=0).astype(np.float32).astype(np.float64)
    if case.has_few_pieces:
        return in_pieces(network, start, row, target, space)
    return on_line(network, start, row, target, space, MIDPOINTS[row.ndim] // coarser)


def _from_each(network: nn.Module, case: Case, row: Floats, target: int, space: OutputSpace, coarser: int) -> Floats:
    lines = [on_line(network, start, row, target, space, MIDPOINTS_A_PATH // coarser) for start in case.baselines]
    mean: Floats = np.mean(lines, axis=0)
    return mean


ASKED = (
    Asked("integrated_gradients", "integrated_gradients", {}, _from_mean),
    Asked(
        "… midpoint", "integrated_gradients", {"rule": "midpoint"}, _from_mean, lambda m: m.traits.is_piecewise_linear
    ),
    Asked(
        "… gauss_legendre", "integrated_gradients", {"rule": "gauss_legendre"}, _from_mean, lambda m: not m.traits.bends
    ),
    Asked("expected_gradients", "expected_gradients", {}, _from_each),
)


def lines_of(
    network: Network, asked: Asked, inputs: int, tolerances: tuple[float, ...], coarser: int = 1
) -> Iterator[Line]:
    """The figures of a network; what is true is taken with so many times fewer midpoints."""
    case = network.make()
    rows = case.rows[:inputs].astype(np.float32).astype(np.float64)
    baselines = case.baselines
    if asked.truth is _from_each:
        baselines = case.rows[-PATHS:].astype(np.float32).astype(np.float64)
        rows = rows[: -PATHS or None]
        case = Case(case.network, rows, baselines)
    model = device_model(copy.deepcopy(case.network), baselines)
    if not asked.applies(model):
        return
    exact = copy.deepcopy(case.network).double()
    for space in Classes.spaces:
        truths: dict[int, Floats] = {}
        for tolerance in tolerances:
            ratios, true, points, converged = [], [], [], 0
            for number, row in enumerate(rows):
                answer = explained(model, row, asked.method, space, tolerance, asked.options)
                if number not in truths:
                    truths[number] = asked.truth(exact, case, row, index_of(answer.target), space, coarser)
                error = _error(model, answer, truths[number])
                assert answer.attribution_error is not None
                true.append(error)
                ratios.append(error / max(answer.attribution_error, 1e-300))
                points.append(answer.evaluations)
                converged += answer.converged
            yield Line(
                network, asked.name, space, tolerance, np.array(ratios), np.array(true), np.array(points), converged
            )


def _error(model: DeviceModel, answer: Explanation, truth: Floats) -> float:
    """The true relative L1 error, over what is told as one."""
    told = np.array(answer.attributions)
    if model.traits.has_embeddings:
        truth = truth.sum(axis=-1)
    return float(np.abs(told - truth.ravel()).sum() / np.abs(truth).sum())


def main() -> None:
    """Prints the table, and what holds of all networks together."""
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="*", default=[asked.name for asked in ASKED])
    parser.add_argument("--inputs", type=int, default=25)
    parser.add_argument("--tolerances", type=float, nargs="*", default=TOLERANCES)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(HEAD)
    lines = []
    for name in chosen.networks:
        for asked in ASKED:
            if asked.name in chosen.methods:
                for line in lines_of(NETWORKS[name], asked, chosen.inputs, tuple(chosen.tolerances)):
                    print(line, flush=True)
                    lines.append(line)
    for is_tuned in (True, False):
        own = [line for line in lines if line.network.is_tuned is is_tuned]
        if own:
            covered, all_of_them = sum(line.covered for line in own), sum(len(line.ratios) for line in own)
            which = "tuned (*)" if is_tuned else "not seen before"
            print(f"\nNetworks {which}: {covered} of {all_of_them} covered ({covered / all_of_them:.1%}).")


if __name__ == "__main__":
    main()
