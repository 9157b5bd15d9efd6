"""The two errors that an explanation carries, and the factors that make an estimate of them a bound.

How the error of an integral is read from its vectors is said in `service.numerics.cells`. What is left for E, the sum
of absolute defects (`service.numerics.refinement`), are paths with fewer than three nodes and paths with corners. E
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
"""The largest ratio that counts of the norm of a jump to its sum, which may be zero by chance."""
ROUNDED = 4.0
"""By how much integrals that are sums of gradients are rounded, in units of what float32 resolves of them."""
NOISE = 20.0
"""But by no more than so many times what the vectors say of the error, so by nothing where they say there is none."""
SUM_ROUNDING = 8.0
"""By how much an output is rounded, in units of what float32 resolves of the largest logit: a smaller residual shows no
error."""


def resolution(outputs: Floats) -> float:
    """The part of a difference of two of the `outputs` [n] that may be rounding: that of both, if they are float32.

    A softmax in float32 is rounded by up to 1.2 times the type's resolution.
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

    `contributions` [n, inputs] are gradients times end - start, `weights` [n] their weights in the integral, `slopes`
    [n] the weights over the lengths of the pieces, and `changes` [n] how much the quantity that each is the gradient of
    changes on its piece. `follows` [n] says of which ones the piece comes right behind that of the one before.
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

    The attributions are sums of float32 gradients over pieces. There are four errors, independent of each other:

    - Gradients are rounded relative to their size. All of them are computed with the same rounded weights of the
      network, so their errors do not cancel: the sum is rounded relative to its own size.
    - Kinks are not quite where they are found. The rounding of a neuron's sum is the larger, the larger its inputs are
      compared with how far they move; divided by the neuron's slope along the path it is how far the kink is misplaced.
      Both show in the jump of the contributions at the kink: the rounding goes with the jump's norm, the slope with its
      sum. Between the true place and the one that was found the gradient is wrong by the jump.
    - The slope of a softmax over a piece is rounded as its logits are. These are at most `spread` apart (0 without a
      softmax), and are sums whose terms are the larger, the larger the inputs are compared with how far they move. The
      error is relative to the logits' own change where that is more than one.
    - What the gradients miss of their pieces' changes (`residuals` [pieces]) or of the whole (`missed`), beyond the
      rounding of outputs whose logits are at most `largest`, is no rounding; it may be the error of one input or of
      all.

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
