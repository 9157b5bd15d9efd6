"""The refinement of an integral that is weighted by the slope of the output along the path."""

from __future__ import annotations

import numpy as np

from service.domain import Floats
from service.numerics.refinement import Refinement


class DecisionRefinement(Refinement):
    """Composite midpoints for the integral of s(alpha) c(alpha), s the slope and c contributions that sum to s.

    A gap's defect is multiplied by the steepest slope that is known of it: the derivatives at its ends, or its own
    change over its length, so that no decision hides between two nodes where the output is flat. It counts twice, since
    both factors err. So panels are split where the output changes, and `sum_of_defects` is in units of the output
    squared.
    """

    _safety = 1.0

    def __init__(self, start_output: float, end_output: float, panels: int) -> None:
        super().__init__(start_output, end_output, 1, panels)

    def defects(self) -> tuple[Floats, Floats]:
        gaps, _ = super().defects()
        at = self._nodes[:, 0]
        start, end = self._ends
        lengths = np.diff(np.concatenate([[0.0], self._left + self._width / 2, [1.0]]))
        changes = np.diff(np.concatenate([[start], self._outputs[at], [end]]))
        steepness = np.pad(np.abs(self._derivatives[at]), 1)
        steepest = np.maximum(np.maximum(steepness[:-1], steepness[1:]), np.abs(changes) / lengths)
        weighted = 2 * gaps * steepest
        return weighted, np.abs(weighted[:-1]) + np.abs(weighted[1:])

    def stencils(self) -> None:
        """None: the error of a product with the slope is not that of the contributions."""

    def _tilts(self) -> Floats:
        """None: a slope that is linear between two midpoints makes no defect, and its product with c does."""
        return np.zeros(len(self._width) - 1)

    def slope_weights(self) -> Floats:
        """The weight of every evaluated node's contributions, its slope included, in the order of evaluation."""
        return self.weights() * self._derivatives
