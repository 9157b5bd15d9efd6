"""Adaptive composite quadrature that knows its error.

At each node the model gives its contributions, a vector, and its output. Two things tell how good the integral is:

- How the vectors differ from node to node tells the error of each input on each cell; see `service.numerics.cells`.
  With one node a panel it also tells whether the rule is better with its correction of fourth order; of panels with
  more, see `service.numerics.panels`.
- The integral of the derivative between two nodes is the difference of their outputs, so what interpolation misses
  there, the gap's defect, is known and costs nothing. It shows what happens between nodes and is seen at none of them,
  unless it cancels inside the gap: where it exceeds a few times the error that the vectors show, the rest is added.

Panels are split where the error is. E, the sum of the absolute defects of the rule's own interpolant, is the error for
methods that have no vectors to read it from (`sum_of_defects`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from service.domain import Floats
from service.numerics.cells import FEWEST_NODES, SEEN, Estimate, LocalErrors, Stencils, estimate, stencils
from service.numerics.errors import PATH_SAFETY, resolution
from service.numerics.panels import FEWEST_OF_A_PANEL, PanelErrors, Panels, panel_estimate
from service.numerics.quadrature import gauss_legendre

TWO_DEVIATIONS = 2.0
"""A single input's error is estimated as a root mean square: 95 of 100 are within two of these."""

UNSEEN = 2.0
"""A change that shows in the outputs and in no vector is known by its sum over the inputs, and its L1 norm is larger.
Settled on `hardtanh_table` and `cancer_prelu`, with a kink or two between the last node and the end: the norm was 1.2
to 1.7 times the sum."""

ITS_OWN = 1e-9
"""The share of it by which what a sum misses may itself be rounded, in double precision."""


class Refinement:
    """A composite Gauss-Legendre rule on [0, 1], refined where its defects are.

    With `order` 1 this is the composite midpoint rule: a split panel becomes three, and its node stays the middle of
    the middle one, so that nothing evaluated is lost. Panels of higher order are halved, and their nodes
    give way to those of the halves.
    """

    _safety = PATH_SAFETY

    def __init__(self, start_output: float, end_output: float, order: int, panels: int) -> None:
        self._ends = (start_output, end_output)
        self._rule = gauss_legendre(order)
        edges = np.linspace(0.0, 1.0, panels + 1)
        self._left, self._width = edges[:-1], np.diff(edges)
        # Row p holds the indices, in the order of evaluation, of panel p's nodes.
        self._nodes = np.arange(panels * order).reshape(panels, order)
        self._outputs: Floats = np.empty(0)
        self._derivatives: Floats = np.empty(0)
        self._next = (self._left, self._width, self._nodes)
        self._stencils: Stencils | None = None
        self._estimate: Estimate | None = None
        self._unseen: Floats = np.empty(0)
        self._pending = (self._left[:, None] + self._width[:, None] * self._rule.nodes).ravel()

    @property
    def pending(self) -> Floats:
        """The alphas to be evaluated next."""
        return self._pending

    def learn(self, outputs: Floats, derivatives: Floats) -> None:
        """Takes the outputs and the derivatives along the path at the pending alphas."""
        self._outputs = np.concatenate([self._outputs, outputs])
        self._derivatives = np.concatenate([self._derivatives, derivatives])
        self._left, self._width, self._nodes = self._next
        self._pending = np.empty(0)
        self._stencils = self._estimate = None

    @property
    def count(self) -> int:
        """How many nodes were evaluated."""
        return len(self._outputs)

    def stencils(self) -> Stencils | Panels | None:
        """How the error is to be read from the contributions at the evaluated nodes; None while there are too few."""
        count, order = self._nodes.shape
        if order > 1:
            return Panels(self._nodes, self._width) if order >= FEWEST_OF_A_PANEL else None
        if count < FEWEST_NODES:
            return None
        if self._stencils is None:
            borders = np.append(self._left, 1.0)
            self._stencils = stencils(self._left + self._width / 2, borders, self._nodes[:, 0])
        return self._stencils

    def assess(self, errors: LocalErrors | PanelErrors) -> None:
        """Takes what the contributions say, read by the `stencils`."""
        if isinstance(errors, PanelErrors):
            panels = Panels(self._nodes, self._width)
            residual = abs(self._ends[1] - self._ends[0] - float(self.weights() @ self._derivatives))
            missed = max(residual - self._unresolved[0], 0.0)
            self._estimate = panel_estimate(errors, panels, self._derivatives, missed)
            inner, borders = self._gaps()
            defects = np.append(np.column_stack([borders[:-1], inner]).ravel(), borders[-1])
            seen = np.repeat(errors.high, self._nodes.shape[1])
        else:
            stencil = self.stencils()
            assert isinstance(stencil, Stencils)
            self._estimate = estimate(errors, stencil)
            before, behind = (stencil.halves * self._derivatives[stencil.nodes]).sum(axis=2)
            defects = np.diff(np.concatenate([self._ends[:1], self._outputs[self._nodes[:, 0]], self._ends[1:]]))
            defects[:-1] -= before
            defects[1:] -= behind
            seen = SEEN * errors.cells[0]
        seen = np.pad(seen, 1)
        self._unseen = np.maximum(np.abs(defects) - (seen[:-1] + seen[1:]) - self._unresolved, 0.0)

    def error(self) -> float:
        """The L1 error of the integral over the inputs, with its safety factor, in units of the output."""
        if self._estimate is None:
            return self._safety * self.sum_of_defects()
        seen = self._estimate.safety * float(self._estimate.inputs.sum())
        return max(seen + UNSEEN * float(self._unseen.sum()), self._estimate.spread * self._residual())

    @property
    def is_searching(self) -> bool:
        """Whether most of the error is what shows between nodes and at none of them."""
        return self._estimate is not None and UNSEEN * float(self._unseen.sum()) > self.error() / 2

    def input_errors(self) -> Floats | None:
        """How far the integral of every input, or component of several inputs, may be off: [components].

        None where only the sum of the errors is known. What shows in no vector may be any input's."""
        if self._estimate is None:
            return None
        errors: Floats = np.minimum(TWO_DEVIATIONS * self._estimate.inputs + UNSEEN * self._unseen.sum(), self.error())
        return errors

    def _residual(self) -> float:
        """What the sum misses of the change of the output, beyond the outputs' rounding."""
        start, end = self._ends
        missed = abs(end - start - float(self.weights() @ self._derivatives))
        return max(missed * (1 + ITS_OWN) - float(self._unresolved[0]), 0.0)

    @property
    def _unresolved(self) -> Floats:
        """How much of the change over each gap may be rounding of the outputs; over the first and the last, as over the
        whole path, also that of its ends.

        The ends are the deployed model's, in float32; probabilities at the nodes are of their logits in float64.
        """
        unresolved = np.full(self._nodes.size + 1, resolution(self._outputs))
        unresolved[[0, -1]] = max(unresolved[0], resolution(np.array(self._ends)))
        return unresolved

    def defects(self) -> tuple[Floats, Floats]:
        """The defect of every gap, and for every panel the sum of the absolute defects of the gaps it touches.

        A gap that two panels share counts for both.
        """
        inner, borders = self._gaps()
        of_panel = np.abs(inner).sum(axis=1) + np.abs(borders[:-1]) + np.abs(borders[1:])
        return np.concatenate([inner.ravel(), borders]), of_panel

    def _gaps(self) -> tuple[Floats, Floats]:
        """The defects of the gaps inside the panels, [panels, order - 1], and of those at their borders."""
        order = len(self._rule.nodes)
        predicted = self._width[:, None] * (self._derivatives[self._nodes] @ self._rule.gaps.T)
        start, end = self._ends
        outputs = self._outputs[self._nodes]
        inner = np.diff(outputs, axis=1) - predicted[:, 1:order]
        borders = np.concatenate([[start], outputs[1:, 0], [end]])
        borders[1:-1] -= outputs[:-1, -1]
        borders[0] = outputs[0, 0] - start
        borders[-1] = end - outputs[-1, -1]
        borders[:-1] -= predicted[:, 0]
        borders[1:] -= predicted[:, order]
        if order == 1:
            borders[1:-1] += self._tilts()
        return inner, borders

    def _tilts(self) -> Floats:
        """By how much the defects at the borders change where the derivative is taken as linear between two midpoints,
        and not as constant on each panel.

        Nothing where the panels are of one width. Where they are not, the defect would be of first order without it,
        though the rule's own error is of second, and would rise with every panel that is split beside one that is not.
        """
        derivatives = self._derivatives[self._nodes[:, 0]]
        tilts: Floats = np.diff(self._width) * np.diff(derivatives) / 4
        return tilts

    def split(self, target: float, most: int) -> int:
        """Splits the worst panels, enough to leave at most `target` on the others, with at most `most` new nodes.

        Returns the number of nodes now pending; 0 when `most` allows no split. The rule changes when their values are
        learnt, so that weights and defects always speak of what was evaluated.
        """
        order = len(self._rule.nodes)
        cost = 2 if order == 1 else 2 * order
        of_panel, left_over_if_split = self._of_panels()
        worst_first = np.argsort(-of_panel, kind="stable")
        left_over = left_over_if_split(of_panel[worst_first])
        wanted = int(np.searchsorted(-left_over, -target)) + 1
        chosen = np.sort(worst_first[: min(wanted, most // cost)])
        if not len(chosen):
            return 0
        parts = 3 if order == 1 else 2
        lefts = self._left[chosen, None] + self._width[chosen, None] * np.arange(parts) / parts
        widths = np.repeat(self._width[chosen] / parts, parts)
        evaluated = len(self._outputs)
        if order == 1:
            fresh = evaluated + np.arange(2 * len(chosen)).reshape(-1, 2)
            nodes = np.stack([fresh[:, 0], self._nodes[chosen, 0], fresh[:, 1]], axis=1).reshape(-1, 1)
            self._pending = ((lefts + widths.reshape(-1, 3) / 2)[:, [0, 2]]).ravel()
        else:
            nodes = evaluated + np.arange(cost * len(chosen)).reshape(-1, order)
            self._pending = (lefts.reshape(-1, 1) + widths[:, None] * self._rule.nodes).ravel()
        kept = np.delete(np.arange(len(self._left)), chosen)
        left = np.concatenate([self._left[kept], lefts.ravel()])
        ascending = np.argsort(left)
        self._next = (
            left[ascending],
            np.concatenate([self._width[kept], widths])[ascending],
            np.concatenate([self._nodes[kept], nodes])[ascending],
        )
        return len(self._pending)

    def _of_panels(self) -> tuple[Floats, Callable[[Floats], Floats]]:
        """The error of every panel, and what is left of the whole when the first so many of an order are split:
        errors of vectors add up in squares, defects as they are."""
        if self._estimate is None:
            _, of_panel = self.defects()
            return self._safety * of_panel, lambda errors: errors.sum() - np.cumsum(errors)
        unseen = (self._unseen[:-1] + self._unseen[1:]).reshape(self._nodes.shape).sum(axis=1)
        errors = self._estimate.safety * self._estimate.cells + UNSEEN * unseen
        whole = self.error()

        def left_over(ordered: Floats) -> Floats:
            rest = np.cumsum(ordered[::-1] ** 2)[::-1]
            return whole * np.sqrt(np.append(rest[1:], 0.0) / rest[0]) if rest[0] > 0 else np.zeros_like(ordered)

        return errors, left_over

    def weights(self) -> Floats:
        """The weight of every evaluated node, in the order of evaluation; they sum to one.

        With one node a panel, and where the contributions said so, those of the rule of fourth order.
        """
        weights = np.zeros(len(self._outputs))
        weights[self._nodes] = self._width[:, None] * self._rule.weights
        if self._estimate is not None and self._estimate.is_corrected:
            stencil = self.stencils()
            assert isinstance(stencil, Stencils)
            np.add.at(weights, stencil.nodes, stencil.second)
        return weights

    def sum_of_defects(self) -> float:
        """E, in units of the output."""
        gaps, _ = self.defects()
        return float(np.abs(gaps).sum())


class Stagnation:
    """Tells when more points no longer help: the error stops falling at the precision of the model's own arithmetic."""

    PATIENCE = 4
    SEARCHING = 16
    """Rounds in which a change of the output that no node sees is looked for: 3^-16 is 2e-8, less than float32 tells of
    a place on the path."""
    PROGRESS = 0.9
    REVISED = 2.0
    """An error of more than so many times the best one shows that the best was an underestimate."""

    def __init__(self) -> None:
        self._best = np.inf
        self._rounds = self._searched = 0

    def after(self, error: float, *, is_searching: bool = False) -> bool:
        """Whether too many rounds in a row have left the error between `PROGRESS` and `REVISED` times its best, or too
        many in all were spent on searching."""
        if is_searching:
            self._searched += 1
            return self._searched >= self.SEARCHING
        if error < self.PROGRESS * self._best or error > self.REVISED * self._best:
            self._best, self._rounds = error, 0
        else:
            self._rounds += 1
        return self._rounds >= self.PATIENCE
