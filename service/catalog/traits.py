"""What methods need to know of a model: what its inputs are, and what its network is made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod

from service.numerics.links import SOFTMAX, Link


class Axis(StrEnum):
    """What an axis of a model's inputs, as methods see them, runs over.

    A feature has a unit of its own, such as euros or years. Channels and dimensions of an embedding are the parts of
    what gets one attribution, a pixel or a token.
    """

    FEATURE = "feature"
    TIME = "time"
    CHANNEL = "channel"
    HEIGHT = "height"
    WIDTH = "width"
    POSITION = "position"
    EMBEDDING = "embedding"


PARTS = frozenset({Axis.CHANNEL, Axis.EMBEDDING})
"""The axes along which attributions are summed."""


LIMITS = frozenset({"maximum", "minimum", "clamp", "clampmin", "clampmax", "clip", "hardtanh"})
"""Operators that limit their input to a range, by `kind_of`."""


def kind_of(operator: str) -> str:
    """An operator's name independent of spelling: `max_pool2d` and `MaxPool2d` are both `maxpool2d`."""
    return operator.replace("_", "").lower()


@dataclass(frozen=True)
class Traits:
    """The properties of a model that decide which methods apply to it, and at what cost; read from its graph.

    `shape` is that of one input as methods see it, with a size for each of the `axes`: (features,), (channels, height,
    width) or (positions, dimensions).
    `obstacle` says why the exact rule does not apply, None where it does. `kinks` names the operators at which the
    gradient is discontinuous. `biases_obstacle` says why the terms of the biases do not add up to the output, None
    where they do. `labels` is how many outputs the network has, and `link` the link function to probabilities. With
    `has_one_logit` the network answers the second label's logit alone, and the first one's is its negative.
    With `has_double_rows` rows are float64 unless the network itself converts them.
    `columns` has for each input of a table the index of its component, a category say, whose attributions are summed;
    it is empty where every input is a component of its own.
    """

    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    labels: int
    obstacle: str | None
    kinks: tuple[str, ...]
    has_relu: bool
    has_convolution: bool
    biases_obstacle: str | None
    columns: tuple[int, ...] = ()
    has_one_logit: bool = False
    has_double_rows: bool = False
    link: Link = SOFTMAX

    @property
    def is_pair(self) -> bool:
        """Whether there are two labels, one of which is as likely as the other is not: all depends on one margin."""
        return self.labels == 2 and self.link.is_shared

    @property
    def components(self) -> int:
        """How many components there are, each with one attribution: features, positions or pixels."""
        if self.columns:
            return max(self.columns) + 1
        return prod(size for axis, size in zip(self.axes, self.shape, strict=True) if axis not in PARTS)

    @property
    def summed_axes(self) -> tuple[int, ...]:
        """The axes that attributions are summed over, as negative indices."""
        return tuple(at - len(self.axes) for at, axis in enumerate(self.axes) if axis in PARTS)

    @property
    def has_features(self) -> bool:
        """Whether inputs are features, each with a name and a unit of its own."""
        return Axis.FEATURE in self.axes

    @property
    def has_channels(self) -> bool:
        """Whether inputs are channels of pixels."""
        return Axis.CHANNEL in self.axes

    @property
    def has_space(self) -> bool:
        """Whether inputs lie in a plane, so that they can be blurred, or form regions."""
        return Axis.HEIGHT in self.axes and Axis.WIDTH in self.axes

    @property
    def has_embeddings(self) -> bool:
        """Whether inputs are dimensions of tokens' embeddings."""
        return Axis.EMBEDDING in self.axes

    @property
    def bends(self) -> tuple[str, ...]:
        """The kinks without those of operators in `LIMITS`, which few paths cross, and those once or twice."""
        return tuple(name for name in self.kinks if kind_of(name) not in LIMITS)

    @property
    def is_piecewise_linear(self) -> bool:
        """Whether the exact rule applies."""
        return self.obstacle is None
