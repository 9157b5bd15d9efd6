"""The path of Gaussian blurs from a blurred image to the image itself, and how fast the image changes along it.

The kernel is the sampled Gaussian exp(-m^2 / (2 sigma^2)), normalised to one, along both dimensions of space; sigma is
its standard deviation in pixels. It reaches so far that cutting it off there changes nothing in float64, since a
kernel cut off at 4 sigma, as is usual, jumps whenever its reach grows by a pixel, and a path that jumps has no
derivative to integrate. The derivative by sigma is exact: the weight times (m^2 - the mean of m^2) / sigma^3.

Most of a blur happens at small sigma, so sigma falls as most (1 - alpha)^2: half of the path is below most / 4.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from service.domain import Floats, Indices

Padding = Literal["reflect", "zeros"]
SIGMA_MAX = 0.2
"""The deviation of the largest blur, as a share of the image's longer side, where none is asked for."""
REACH = 8.0
"""In standard deviations; exp(-32) of the middle is left there."""


class BlurPath:
    """From `image` [channels, height, width] blurred by a Gaussian of the deviation `most`, at alpha 0, to itself at 1.

    Beyond its border the image is mirrored, the outermost pixels repeated (`reflect`), or zero.
    """

    def __init__(self, image: Floats, most: float, padding: Padding = "reflect", reach: float = REACH) -> None:
        self._image = image
        self._most = most
        self._padding: Padding = padding
        self._reach = reach

    def at(self, alphas: Floats) -> tuple[Floats, Floats]:
        """The images at `alphas` [n], and their derivatives by alpha, both flat: [n, inputs]."""
        sigmas = self._most * (1 - alphas) ** 2
        images, changes = self.blurred(sigmas)
        return images, changes * (-2 * self._most * (1 - alphas))[:, None]

    def blurred(self, sigmas: Floats) -> tuple[Floats, Floats]:
        """The images blurred by `sigmas` [n], and their derivatives by sigma, both flat: [n, inputs]."""
        images, changes = np.empty((2, len(sigmas), self._image.size))
        _, height, width = self._image.shape
        for k, sigma in enumerate(sigmas.tolist()):
            down, down_change = self._kernel(height, sigma)
            across, across_change = self._kernel(width, sigma)
            half = self._image @ across.T
            images[k] = (down @ half).ravel()
            changes[k] = (down_change @ half + down @ (self._image @ across_change.T)).ravel()
        return images, changes

    def _kernel(self, length: int, sigma: float) -> tuple[Floats, Floats]:
        """The matrix that blurs a line of `length` pixels, and its derivative by sigma: [length, length] each."""
        reach = int(self._reach * sigma + 0.5)
        if reach == 0:
            return np.eye(length), np.zeros((length, length))
        offsets = np.arange(-reach, reach + 1)
        weights = np.exp(-0.5 * (offsets / sigma) ** 2)
        weights /= weights.sum()
        changes = weights * (offsets**2 - float(weights @ offsets**2)) / sigma**3
        return self._matrix(length, offsets, weights), self._matrix(length, offsets, changes)

    def _matrix(self, length: int, offsets: Indices, weights: Floats) -> Floats:
        """What a line of `length` pixels is multiplied with to weigh, at each, its neighbours at `offsets`."""
        here = np.arange(length)
        to, of = here[:, None], here
        mirrored = self._padding == "reflect"
        # A line followed by its mirror image, over and over, is what mirroring at both ends makes of it.
        period = 2 * length if mirrored else 2 * (length + len(offsets))
        folded = np.zeros(period)
        np.add.at(folded, offsets % period, weights)
        matrix: Floats = folded[(of - to) % period]
        return matrix + folded[(of + to + 1) % period] if mirrored else matrix
