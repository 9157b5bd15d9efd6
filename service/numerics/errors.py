"""The two errors that an explanation carries, and the factors that make an estimate of them a bound.

E (see `service.numerics.refinement`) sees only the sum over the features of what quadrature missed; the L1 error over
the features can be larger. On the held-out rows of the loan model, both output spaces, midpoint and Gauss-Legendre,
the true L1 error is 1.0 to 1.9 times E in the median and at most 4.5 times in 95 of 100. For expected gradients,
whose errors over many baselines partly cancel, it is at most 0.8 times E in 95 of 100 at a tolerance of 0.01; on a
smooth network at 0.001 the factor 1.5 held in 94 of 100, so it is 2.
"""

from __future__ import annotations

import numpy as np

from service.domain import Floats

PATH_SAFETY = 5.0
SWEEP_SAFETY = 2.0


def completeness_error(values: Floats, output: float, baseline_output: float, floor: float) -> float:
    """|sum of the attributions - (f(x) - f(x'))| relative to |f(x) - f(x')|, or to `floor` where that is larger."""
    change = output - baseline_output
    return abs(float(values.sum()) - change) / max(abs(change), floor)


def relative_to_attributions(error: float, values: Floats, floor: float) -> float:
    """An absolute L1 error of the attributions, relative to their L1 norm, or to `floor` where that is larger."""
    return error / max(float(np.abs(values).sum()), floor)
