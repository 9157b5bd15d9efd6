"""Looks for networks on which the stated error fails: `python -m tests.accuracy.blind_spots`.

The score is smooth but for two steep steps, one up in the first input and one down in the second, at places drawn along
the path. Where both fall between the same two of the first nodes, the outputs at the nodes are what they would be
without them, and so are the gradients: nothing that is evaluated there tells of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from service.domain import Floats, OutputSpace
from service.methods.shared.refining import FIRST_OF_ONE_LINE
from tests.accuracy.engine import device_model, explained

DRAWS = 100
STEEPNESS = 500.0
FIRST_NODES = (np.arange(FIRST_OF_ONE_LINE) + 0.5) / FIRST_OF_ONE_LINE
"""Those of the rule `midpoint`."""


class TwoSteps(nn.Module):
    """Two labels: the score, from rows [n, 3], and nothing."""

    def __init__(self, up: float, down: float) -> None:
        super().__init__()
        self.up, self.down = up, down

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.sigmoid(STEEPNESS * (x[:, :1] - self.up)) - torch.sigmoid(STEEPNESS * (x[:, 1:2] - self.down))
        return torch.cat([steps + 4 * x[:, 2:] ** 2, torch.zeros_like(steps)], dim=1)


TRUTH = np.array([1.0, -1.0, 4.0])
"""The attributions of ones, from zeros: each input moves a term of its own."""


@dataclass(frozen=True, slots=True)
class Found:
    """The places of the two steps, and the true relative L1 error by the stated one."""

    up: float
    down: float
    true: float
    stated: float

    @property
    def is_covered(self) -> bool:
        return self.true <= self.stated

    @property
    def is_in_one_gap(self) -> bool:
        """Whether both steps are between the same two of the first nodes."""
        up, down = np.searchsorted(FIRST_NODES, [self.up, self.down])
        return bool(up == down)


def search(draws: int, tolerance: float = 0.01, seed: int = 0) -> list[Found]:
    """So many networks with steps at random places, by the rule that `auto` takes for smooth networks."""
    places = np.random.default_rng(seed).uniform(0.02, 0.98, size=(draws, 2))
    return [_tried(up, down, tolerance) for up, down in places.tolist()]


def _tried(up: float, down: float, tolerance: float) -> Found:
    model = device_model(TwoSteps(up, down), np.zeros((1, 3)))
    answer = explained(model, np.ones(3), "integrated_gradients", OutputSpace.LOGIT, tolerance, target=0)
    assert answer.attribution_error is not None
    values: Floats = np.array(answer.attributions)
    return Found(up, down, float(np.abs(values - TRUTH).sum() / np.abs(TRUTH).sum()), answer.attribution_error)


def main() -> None:
    """Prints how many of the networks that were drawn are missed, and the worst."""
    torch.set_num_threads(1)
    for tolerance in (0.05, 0.01, 0.001):
        found = search(DRAWS, tolerance)
        missed = [one for one in found if not one.is_covered]
        together = sum(one.is_in_one_gap for one in found)
        print(f"tolerance {tolerance:g}: {len(missed)} of {DRAWS} not covered; in {together} both steps are in one gap")
        if missed:
            worst = max(missed, key=lambda one: one.true)
            print(f"  up at {worst.up:.4f}, down at {worst.down:.4f}: true {worst.true:.2g}, stated {worst.stated:.1e}")


if __name__ == "__main__":
    main()
