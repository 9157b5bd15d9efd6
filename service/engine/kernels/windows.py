"""Maxima over windows: where the largest element of one becomes another.

Between two neighbouring rows every element is a linear function, so the maximum of a window is their upper envelope.
It is walked from the element that is largest at the one end to the one that is largest at the other, so that no
breakpoint is found at which elements cross below the maximum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain import Indices
from service.engine.graph.operators import EXTREMA_ALONG, MAX_POOLS, Operator, unpacked

Shape = tuple[int, ...]
Windows = Callable[[Shape, Shape], Indices]
"""From the shapes of a row before and behind the operator, the places [windows, elements] in the flattened row."""


def windows_of(operator: Operator) -> Windows | None:
    """The windows of a max-pool, or of a maximum or minimum along dimensions; None for every other operator."""
    if operator.kind in EXTREMA_ALONG:
        return cache(partial(_along, unpacked(operator.option("dim", 1))))
    if operator.kind not in MAX_POOLS or operator.option("return_indices", 6, False):
        return None
    spatial = int(operator.name.rstrip("_")[-2])
    if operator.kind == "adaptivemaxpool":
        return cache(partial(_pooled, _adaptive_places, spatial, ((),) * spatial))
    kernel = operator.option("kernel_size", 1)
    options = [
        kernel,
        operator.option("stride", 2) or kernel,
        operator.option("padding", 3, 0),
        operator.option("dilation", 4, 1),
    ]
    per_dimension = tuple(zip(*(_repeated(option, spatial) for option in options), strict=True))
    return cache(partial(_pooled, _places, spatial, per_dimension))


def _repeated(option: Any, count: int) -> tuple[int, ...]:
    values = unpacked(option)
    return values * count if len(values) == 1 else values


def _places(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> Indices:
    """The places [outputs, elements] along one dimension; -1 in the padding."""
    places = stride * np.arange(outputs)[:, None] - padding + dilation * np.arange(kernel)
    return np.where((places >= 0) & (places < size), places, -1)


def _adaptive_places(size: int, outputs: int) -> Indices:
    start, end = np.arange(outputs) * size // outputs, -(-np.arange(1, outputs + 1) * size // outputs)
    places = start[:, None] + np.arange((end - start).max())
    return np.where(places < end[:, None], places, -1)


def _pooled(
    places: Callable[..., Indices], spatial: int, options: tuple[Any, ...], before: Shape, behind: Shape
) -> Indices:
    index = np.arange(prod(before[:-spatial]))[:, None]  # the channels
    for size, outputs, of_dimension in zip(before[-spatial:], behind[-spatial:], options, strict=True):
        along = places(size, outputs, *of_dimension)
        joined = index[:, None, :, None] * size + along[None, :, None, :]
        joined[np.broadcast_to((index[:, None, :, None] < 0) | (along[None, :, None, :] < 0), joined.shape)] = -1
        index = joined.reshape(len(index) * outputs, -1)
    first = np.take_along_axis(index, (index >= 0).argmax(axis=1)[:, None], axis=1)
    return np.where(index >= 0, index, first)  # an element twice changes no maximum, padding might


def _along(dimensions: tuple[int, ...], before: Shape, behind: Shape) -> Indices:
    index = np.arange(prod(before)).reshape(before)
    axes = [at % (len(before) + 1) - 1 for at in dimensions]
    return np.moveaxis(index, axes, range(-len(axes), 0)).reshape(prod(behind), -1)


def changes(values: NDArray[np.floating], windows: Indices) -> tuple[Indices, NDArray[np.floating]]:
    """Where the largest element of a window changes: behind row[i], at the share[i] of the way to the next row.

    `values` [rows, elements] are linear between neighbouring rows.
    """
    largest = _largest(values, windows)
    row, window = np.nonzero(largest[:-1] != largest[1:])
    start = values[row[:, None], windows[window]]
    slope = values[row[:, None] + 1, windows[window]] - start
    current = largest[row, window]
    crossings = [(row[:0], start[:0, 0])]
    while len(row):
        at = np.arange(len(row))
        steeper = slope - slope[at, current][:, None]
        behind = start[at, current][:, None] - start
        crossing = np.divide(behind, steeper, out=np.full_like(start, np.inf), where=steeper > 0)
        current = crossing.argmin(axis=1)  # each is steeper than the last, so there are at most as many as elements
        share = crossing[at, current]
        inside = (share > 0) & (share < 1)
        crossings.append((row[inside], share[inside]))
        on = np.flatnonzero(share < 1)
        row, start, slope, current = row[on], start[on], slope[on], current[on]
    return np.concatenate([row for row, _ in crossings]), np.concatenate([share for _, share in crossings])


def _largest(values: NDArray[np.floating], windows: Indices) -> Indices:
    """Which of its elements is a window's largest: [rows, windows]."""
    largest = np.zeros((len(values), len(windows)), dtype=np.intp)
    best = values[:, windows[:, 0]]
    for element in range(1, windows.shape[1]):
        candidate = values[:, windows[:, element]]
        largest[candidate > best] = element
        best = np.maximum(best, candidate)
    return largest
