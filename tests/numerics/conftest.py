"""One-dimensional paths whose outputs and derivatives are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from service.domain import Floats


@dataclass(frozen=True, slots=True)
class BentPath:
    """A piecewise-linear output along a path: the sum of heights * relu(alpha - kinks) and slope * alpha."""

    slope: float
    kinks: Floats
    heights: Floats

    def output(self, alpha: Floats) -> Floats:
        rising: Floats = np.maximum(np.asarray(alpha)[..., None] - self.kinks, 0) @ self.heights
        return self.slope * np.asarray(alpha) + rising

    def derivative(self, alpha: Floats) -> Floats:
        rising: Floats = (np.asarray(alpha)[..., None] > self.kinks) @ self.heights
        return self.slope + rising

    @property
    def change(self) -> float:
        return float(self.output(np.array(1.0)) - self.output(np.array(0.0)))


@pytest.fixture(scope="session")
def bent_paths() -> list[BentPath]:
    """128 of them, with 1 to 40 kinks."""
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 41, 128)
    return [
        BentPath(float(generator.normal()), generator.uniform(0, 1, count), generator.normal(size=count))
        for count in counts
    ]
