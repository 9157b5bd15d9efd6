"""Linear interpolation of maps to another size: bilinear in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.domain import Floats


def resized(values: Floats, size: Sequence[int]) -> Floats:
    """`values` [...space] at another `size` of its space, dimension by dimension.

    A value stands in the middle of its cell, and the cells of both sizes cover the same extent; beyond the outermost
    middles the outermost values are repeated. It is what torch calls align_corners=False, without antialiasing.
    """
    for axis, length in enumerate(size):
        values = _along(values, axis, length)
    return values


def _along(values: Floats, axis: int, length: int) -> Floats:
    cells = values.shape[axis]
    place = np.clip((np.arange(length) + 0.5) * cells / length - 0.5, 0, cells - 1)
    below = place.astype(np.intp)
    above = np.minimum(below + 1, cells - 1)
    share = (place - below).reshape(-1, *[1] * (values.ndim - axis - 1))
    interpolated: Floats = (1 - share) * values.take(below, axis) + share * values.take(above, axis)
    return interpolated
