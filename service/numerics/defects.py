"""What the derivatives at the nodes of a path miss of the output's change between two nodes.

At every node the model gives its output as well as the derivative along the path. Between two nodes the output changes
by the integral of the derivative, so that change, less what the derivatives at the nodes make of it, is an error that
is known. A path on which the output rises and falls again between its nodes changes as little in all as the nodes see;
its defects tell. `service.numerics.refinement` finds them for its own rules; this is for nodes anywhere.
"""

from __future__ import annotations

import numpy as np

from service.domain import Floats, Indices
from service.numerics.errors import SWEEP_SAFETY


def path_defects(
    line: Indices, alphas: Floats, outputs: Floats, derivatives: Floats, starts: Floats, ends: Floats
) -> tuple[Indices, Floats, Floats]:
    """The defects of all gaps between two nodes, or a node and an end: their paths, middles and defects, [gaps] each.

    The nodes at `alphas` [n] of the paths `line` [n] have `outputs` and `derivatives` [n]; at alpha 0 and 1 the outputs
    of the paths are `starts` and `ends` [paths], and each path has a node. Between two nodes the derivative is taken to
    be linear, and so beyond the outermost, but no further than the next node is away.
    """
    order = np.lexsort((alphas, line))
    line, alphas, outputs, derivatives = line[order], alphas[order], outputs[order], derivatives[order]
    paths, counts = np.arange(len(starts)), np.bincount(line, minlength=len(starts))
    last = np.cumsum(counts) - 1
    first = last - counts + 1
    left = np.flatnonzero(line[1:] == line[:-1])
    right = left + 1
    means = (derivatives[left] + derivatives[right]) / 2
    between = outputs[right] - outputs[left] - means * (alphas[right] - alphas[left])

    def beyond(node: Indices, neighbour: Indices, reach: Floats) -> Floats:
        """By how much the output changes on the `reach` [paths] from the outermost `node` to the end."""
        away = np.maximum(np.abs(alphas[node] - alphas[neighbour]), 2 * reach)
        steps = derivatives[node] - derivatives[neighbour]
        bend = np.divide(steps, away, out=np.zeros_like(steps), where=away > 0)
        change: Floats = derivatives[node] * reach + bend * reach**2 / 2
        return change

    before = outputs[first] - starts - beyond(first, np.minimum(first + 1, last), alphas[first])
    behind = ends - outputs[last] - beyond(last, np.maximum(last - 1, first), 1 - alphas[last])
    middles = [(alphas[left] + alphas[right]) / 2, alphas[first] / 2, (1 + alphas[last]) / 2]
    return (
        np.concatenate([line[left], paths, paths]),
        np.concatenate(middles),
        np.concatenate([between, before, behind]),
    )


class HiddenChanges:
    """What the nodes of K paths miss between them of the outputs' changes, however little they miss in all.

    At their ends the paths have the outputs `starts` and `ends` [K]. Where their first nodes are the same for all
    paths, `places` [n] are these; else there are none.
    """

    def __init__(self, starts: Floats, ends: Floats, places: Floats) -> None:
        self._starts, self._ends = starts, ends
        self._places = places
        self._line: Indices = np.empty(0, dtype=np.intp)
        self._nodes: Floats = np.empty((3, 0))

    def learn(self, line: Indices, alphas: Floats, outputs: Floats, derivatives: Floats) -> tuple[Floats, Floats]:
        """Takes the nodes at `alphas` [m] of the paths `line` [m]; gives two estimates of the errors, by path: [K].

        Defects are no errors of a path's sum, which is known, but of the attributions it is shared out to. Those of
        different paths cancel in the mean as random errors do, and are divided by the square root of K. But paths that
        are alike miss the same at the same place: so the other estimate is what they have in common between two of
        `places`. It needs no safety factor, and is divided by SWEEP_SAFETY, which it is multiplied by later.
        """
        self._line = np.concatenate([self._line, line])
        self._nodes = np.concatenate([self._nodes, [alphas, outputs, derivatives]], axis=1)
        paths = len(self._starts)
        alphas, outputs, derivatives = self._nodes
        path, middles, defects = path_defects(self._line, alphas, outputs, derivatives, self._starts, self._ends)
        alone: Floats = np.bincount(path, np.abs(defects), minlength=paths) / np.sqrt(paths)
        if not len(self._places):
            return alone, alone
        place = np.searchsorted(self._places, middles)
        common = np.sign(np.bincount(place, defects))[place] * defects
        return alone, np.maximum(np.bincount(path, common, minlength=paths), 0) / SWEEP_SAFETY
