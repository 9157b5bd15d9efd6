"""What stands in the place of components that are removed from an input, by the names that requests have for it.

Metrics of faithfulness take components away and look what the model then says. What it says hangs on what stands there
instead, so that is always named beside a figure. Each kind of input says which of these it has (`Inputs.removals`), the
usual one first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.domain import Floats, Indices
from service.numerics.blur import SIGMA_MAX, BlurPath

Mask = NDArray[np.bool_]
"""Which components are removed: [n, components]."""
MARGINAL_ROWS = 8
"""So many rows of the baseline set stand in, one after the other, for `marginal`; the mean of the outputs counts."""
INPAINTING_PACKAGE = "skimage"
CUT = "cut"
"""The name of tokens that are taken out."""

DESCRIPTIONS: Mapping[str, str] = {
    "mean": "the mean of the explanation's baseline set; of an image, the mean of each channel over the image",
    "zero": "zero",
    "blur": f"the input blurred by a Gaussian, of a deviation of {SIGMA_MAX:g} times its longer side",
    "noise": "numbers drawn evenly from the range of each input, always the same ones",
    "marginal": f"rows of the explanation's baseline set, with the mean of the outputs over {MARGINAL_ROWS} of them",
    "inpainting": "what scikit-image's biharmonic inpainting fills in from the pixels that are left",
    "mask": "the mask token",
    CUT: "nothing: tokens are taken out, and those behind them move up",
}
"""By the names of all replacements, what they are."""


class Removal(Protocol):
    """Removes components from one row."""

    @property
    def copies(self) -> int:
        """How many rows each mask becomes, over whose outputs the mean is taken."""
        ...

    def rows(self, removed: Mask) -> Floats:
        """The row without the removed components: [n * copies, columns], all copies of the first mask first."""
        ...

    def faded(self, kept: Floats) -> Floats | None:
        """The row of which each component is left by a share from 0 to 1, `kept` [n, components]: as `rows`.

        None where there is nothing between a value and what stands in for it, as between two tokens.
        """
        ...


@dataclass(frozen=True, slots=True)
class StandIns:
    """Removes components by putting values of other rows there.

    `row` [columns], `stand_ins` [copies, columns]; `component_of` [columns] says which component a column is of. Values
    of columns that are not `numeric`, such as categories, have nothing between them.
    """

    row: Floats
    stand_ins: Floats
    component_of: Indices
    numeric: bool = True

    @property
    def copies(self) -> int:
        return len(self.stand_ins)

    def rows(self, removed: Mask) -> Floats:
        of_columns = removed[:, None, self.component_of]
        return np.where(of_columns, self.stand_ins, self.row).reshape(-1, len(self.row))

    def faded(self, kept: Floats) -> Floats | None:
        if not self.numeric:
            return None
        of_columns = kept[:, None, self.component_of]
        faded: Floats = of_columns * self.row + (1 - of_columns) * self.stand_ins
        return faded.reshape(-1, len(self.row))


@dataclass(frozen=True, slots=True)
class Inpainting:
    """Removes pixels of an `image` [channels, height, width] by filling them in from those around them.

    Chui and Mhaskar, "MRA contextual-recovery extension of smooth functions on manifolds", 2010, as scikit-image has
    it. An image of which nothing is left becomes the mean of each channel. Values are kept within `low` and `high`.
    """

    image: Floats
    low: float
    high: float

    @property
    def copies(self) -> int:
        return 1

    def rows(self, removed: Mask) -> Floats:
        return np.stack([self._filled(mask).ravel() for mask in removed])

    def _filled(self, mask: Mask) -> Floats:
        from skimage.restoration import inpaint_biharmonic

        if mask.all():
            return np.broadcast_to(self.image.mean(axis=(1, 2), keepdims=True), self.image.shape)
        if not mask.any():
            return self.image
        filled = inpaint_biharmonic(self.image, mask.reshape(self.image.shape[1:]), channel_axis=0)
        within: Floats = np.clip(filled, self.low, self.high)
        return within

    def faded(self, kept: Floats) -> Floats | None:
        return None


@dataclass(frozen=True, slots=True)
class Cut:
    """Removes tokens by taking them out of the `row`; those behind move up, and `padding` follows the last."""

    row: Floats
    padding: float

    @property
    def copies(self) -> int:
        return 1

    def rows(self, removed: Mask) -> Floats:
        rows = np.full((len(removed), len(self.row)), self.padding)
        for into, mask in zip(rows, removed, strict=True):
            left = self.row[~mask]
            into[: len(left)] = left
        return rows

    def faded(self, kept: Floats) -> Floats | None:
        return None


def drawn_from(baselines: Floats, seed: int) -> Floats:
    """Rows of the baseline set, drawn without replacement: [copies, columns]."""
    chosen = np.random.default_rng(seed).permutation(len(baselines))[:MARGINAL_ROWS]
    return baselines[chosen]


def blurred(image: Floats) -> Floats:
    """An image [channels, height, width] blurred over its space, flat, as one row."""
    sigma = SIGMA_MAX * max(image.shape[1:])
    blurs, _ = BlurPath(image, sigma).blurred(np.array([sigma]))
    return blurs


def channel_means(image: Floats) -> Floats:
    """The mean colour of an image [channels, height, width] everywhere, as one row."""
    means: Floats = np.broadcast_to(image.mean(axis=(1, 2), keepdims=True), image.shape).reshape(1, -1)
    return means
