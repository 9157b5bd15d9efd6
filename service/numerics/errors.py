"""The two errors that an explanation carries, and the factors that make an estimate of them a bound.

How the error of an integral is read from its vectors is said in `service.numerics.cells`. What is left for E, the sum
of absolute defects (`service.numerics.refinement`), are paths with fewer than three nodes and those with corners. E
sees only the sum over the features; on the held-out rows of the loan model, both output spaces, the true L1 error is
1.0 to 1.9 times E in the median and at most 4.5 times in 95 of 100, hence `PATH_SAFETY`. What paths of a sweep miss of
their own changes partly cancels in the mean: there `SWEEP_SAFETY` held in 95 of 100.

The exact rule misses nothing but what float32 does not resolve; see `rounding_error`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.domain import Floats

PATH_SAFETY = 5.0
SWEEP_SAFETY = 2.0
RESOLUTION = float(np.finfo(np.float32).eps)
"""Gradients are float32: a smaller relative difference between two of them is rounding."""
GRADIENT_ROUNDING, PLACE_ROUNDING, SLOPE_ROUNDING = 1.8, 1.0, 0.7
"""By how much gradients, the places of kinks and a softmax's slopes are rounded, in units of what float32 resolves."""
TERMS_ROUNDING = 3.0
"""By how much more a sum is rounded than the root of the sum of its terms' squares."""
STEEPEST = 1e4
ROUNDED = 4.0
"""By how much integrals that are sums of gradients are rounded, in units of what float32 resolves of them."""
NOISE = 20.0
"""But not where what the vectors say of the error is exactly nothing: in units of that."""
SUM_ROUNDING = 8.0
"""Likewise an output, relative to the largest logit: less than that tells nothing."""


def resolution(outputs: Floats) -> float:
    """What `outputs` [n] do not tell of a change from one to another: the rounding of both, if they are float32.

    A softmax in float32 rounds by up to 1.2 times what that resolves.
    """
    is_single = bool((outputs == outputs.astype(np.float32)).all())
    return 2 * RESOLUTION * float(np.abs(outputs).max()) if is_single else 0.0


def completeness_error(values: Floats, output: float, baseline_output: float, floor: float) -> float:
    """|sum of the attributions - (f(x) - f(x'))| relative to |f(x) - f(x')|, or to `floor` where that is larger."""
    change = output - baseline_output
    return abs(float(values.sum()) - change) / max(abs(change), floor)


def relative_to_attributions(error: float, values: Floats, floor: float) -> float:
    """An absolute L1 error of the attributions, relative to their L1 norm, or to `floor` where that is larger."""
    return error / max(float(np.abs(values).sum()), floor)


@dataclass(frozen=True, slots=True)
class PieceGradients:
    """The gradients that the exact rule took, n in all, along the line from `start` to `end` [inputs].

    `contributions` [n, inputs] are gradients times the way, `weights` [n] what they count, `slopes` [n] their weights
    over the lengths of their pieces, and `changes` [n] by how much what they are gradients of changes on its piece.
    `follows` [n] says which is of the piece behind that of the one before it.
    """

    start: Floats
    end: Floats
    contributions: Floats
    weights: Floats
    slopes: Floats
    changes: Floats
    follows: NDArray[np.bool_]


def rounding_error(
    taken: PieceGradients,
    residuals: Floats,
    missed: float,
    spread: float,
    largest: float,
    *,
    has_double_rows: bool = False,
) -> float:
    """The L1 error of the attributions by the exact rule, in units of the output.

    They are sums of float32 gradients over pieces. Four errors that do not depend on each other:

    - Gradients are rounded relative to their size, and the same weights are in all of them: relative to the sum.
    - Kinks are not quite where they are taken to be. What a unit rounds, relative to what it sums, is the larger, the
      larger its inputs are than their way; by its slope along the way that is a distance. Its share in the jump of the
      contributions is both: the jump's norm goes with the one, its sum with the other. What lies between the two places
      gets the wrong gradient, by the jump.
    - The slope of a softmax over a piece is rounded as its logits are, which are `spread` apart at most (0 without
      one) and are sums of terms that are the larger, the larger the inputs are than their way; relative to their own
      change where that is more than one.
    - What the gradients miss of their pieces' changes (`residuals` [pieces]) or of the whole (`missed`) beyond the
      rounding of outputs, whose logits are `largest` at most, is more than rounding, and of one input or all.

    On 118 random networks (5 to 200 inputs, some far from zero, up to 120 pieces, no to four hidden layers, weights of
    up to eight times the usual size, two to five labels, both output spaces) it covers 96 of 100 errors, and is 4 times
    the error in the median, and more than 10 times in that of 8 networks: measured before the terms of logits were
    counted. With them 95 of 100 rows of iris and wine are covered, by logistic regressions in the data's units and
    scaled, and it is more than 10 times the error in the median of 2 of the 16 networks of the tests.
    """
    way = float(np.linalg.norm(taken.end - taken.start))
    reach = 1.0
    if way > 0 and not has_double_rows:  # rows in double precision are not rounded themselves
        reach = float(np.linalg.norm(np.maximum(np.abs(taken.start), np.abs(taken.end)))) / way
    rounded = float(np.abs(taken.weights @ taken.contributions).sum())
    jumps = np.diff(taken.contributions, axis=0)[taken.follows[1:]]
    slopes = (taken.slopes[:-1] + taken.slopes[1:])[taken.follows[1:]] / 2
    sums = np.abs(jumps.sum(axis=1))
    steep = np.divide(np.linalg.norm(jumps, axis=1), sums, out=np.zeros_like(sums), where=sums > 0)
    places = _root_sum_square(jumps, reach * slopes * (1 + np.minimum(steep, STEEPEST)))
    summed = 0.0
    if spread and not has_double_rows:
        moves = taken.end - taken.start
        factors = np.divide(
            np.maximum(np.abs(taken.start), np.abs(taken.end)), moves, out=np.zeros_like(moves), where=moves != 0
        )
        summed = TERMS_ROUNDING * float(np.linalg.norm(taken.contributions * factors, axis=1).max(initial=0.0))
    slope = (spread + summed) * _root_sum_square(
        taken.contributions, taken.weights / np.maximum(1.0, np.abs(taken.changes))
    )
    of_float = [GRADIENT_ROUNDING * rounded, PLACE_ROUNDING * places, SLOPE_ROUNDING * slope]
    resolved = SUM_ROUNDING * RESOLUTION * largest
    beyond = np.maximum(np.abs(residuals) - resolved, 0.0)
    of_sum = np.sqrt(taken.contributions.shape[1]) * float(np.linalg.norm(beyond))
    return float(np.linalg.norm([*(RESOLUTION * part for part in of_float), of_sum, max(abs(missed) - resolved, 0.0)]))


def _root_sum_square(vectors: Floats, factors: Floats) -> float:
    """The L1 norm of the roots of the sums of squares of `factors` [n] times `vectors` [n, inputs]."""
    return float(np.sqrt(factors**2 @ vectors**2).sum())
