"""Chunks: the points of many explanations as tensors of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from service.domain import Floats, Indices, Target
from service.engine.kernels.kernel import Segment
from service.engine.kernels.network import Network
from service.engine.kernels.readouts import Linked, linked_of, readout_coefficients
from service.methods.questions import Points, Readout, Rows


class Chunk(NamedTuple):
    """A packed chunk: row r is the point at alphas[r] between starts[line[r]] and ends[group[r]].

    `starts` are [lines, ...input], no more lines than rows. The rows of a group have the same end and readout. `ends`
    are [groups, ...input]; `coefficients` [groups, outputs] are the gradient of the readout with respect to the
    network's numbers, or, where `probability` [groups, 1] says so, with respect to the probabilities computed from
    them. `along` [groups] is 1 for points on lines. It is 0 for explicit rows: each is its own start, with an end of
    ones, so that end - along * start, which multiplies the gradients, is one.
    """

    starts: Tensor
    ends: Tensor
    coefficients: Tensor
    probability: Tensor
    along: Tensor
    line: Tensor
    group: Tensor
    alphas: Tensor


def packed(segments: Sequence[Segment], network: Network, capacity: int) -> tuple[Chunk, Linked]:
    """The chunk, on the host, filled up to its `capacity`, and what its rows read out beyond the link."""
    row_type = network.row_type
    line = np.zeros(capacity, dtype=np.int64)
    group_of_row = np.zeros(capacity, dtype=np.int64)
    alphas = np.zeros(capacity, dtype=row_type)
    starts: list[Floats] = []
    groups: list[_RowGroup] = []
    lines, at = 0, 0
    for segment in segments:
        question, own = segment.question, slice(segment.start, segment.stop)
        rows = slice(at, at + len(segment))
        if isinstance(question, Rows):
            own_starts = question.rows[own]
            line[rows] = np.arange(lines, lines + len(segment))
            targets, number = _targets(question, own)
            group_of_row[rows] = len(groups) + number
            ones = np.ones(question.rows.shape[1])
            groups += [_RowGroup(ones, 0.0, question.readout, target) for target in targets]
        else:
            assert isinstance(question, Points)
            own_starts, line[rows] = _lines(question, own, lines)
            group_of_row[rows] = len(groups)
            alphas[rows] = question.alphas[own]
            groups.append(_RowGroup(question.end, 1.0, question.readout, question.target))
        starts.append(own_starts)
        lines += len(own_starts)
        at = rows.stop
    coefficients, probability = readout_coefficients(groups, network.labels)
    start_rows = np.concatenate(starts, dtype=row_type, casting="same_kind").reshape(-1, *network.shape)
    ends = np.array([group.end for group in groups], dtype=row_type).reshape(-1, *network.shape)
    along = np.array([group.along for group in groups], dtype=row_type)
    fields = (start_rows, ends, coefficients, probability, along, line, group_of_row, alphas)
    return Chunk(*map(torch.from_numpy, fields)), linked_of(groups)


class _RowGroup(NamedTuple):
    """What the rows of a group have in common; see `Chunk`."""

    end: Floats
    along: float
    readout: Readout
    target: Target


def _targets(question: Rows, own: slice) -> tuple[Sequence[Target], Indices | int]:
    """The targets of the question's own rows, each once, and the place of each row's among them."""
    if question.target is not None:
        return [question.target], 0
    targets, number = np.unique(question.targets[own], return_inverse=True)
    return targets.tolist(), number


def _lines(points: Points, own: slice, before: int) -> tuple[Floats, Indices]:
    """Starts of lines, no more than there are points, with all that these points lie on; and each point's line,
    numbered from `before`."""
    own_lines = points.line[own]
    if len(points.starts) <= len(own_lines):
        return points.starts, own_lines + before
    begins = np.ones(len(own_lines), dtype=bool)
    np.not_equal(own_lines[1:], own_lines[:-1], out=begins[1:])
    return points.starts[own_lines[begins]], np.cumsum(begins) + (before - 1)
