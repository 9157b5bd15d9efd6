"""What lengths in the space of inputs are measured in, where a method compares those of different inputs."""

from __future__ import annotations

import numpy as np

from service.domain import Floats
from service.methods.problem import Problem


def units_of_length(problem: Problem) -> Floats:
    """In a table, whose features have units of their own, each feature's range; elsewhere one: [inputs]."""
    extent = problem.high - problem.low
    if not problem.traits.has_features:
        return np.ones_like(extent)
    return np.where(extent > 0, extent, 1.0)
