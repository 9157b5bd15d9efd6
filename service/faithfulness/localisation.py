"""Localisation: does the explanation of an image point at the object? It asks the model nothing.

With `boxes` around the object, each (top, left, bottom, right) in pixels, the last two not included, that came with the
image:

    pointing_game           1 where the pixel of the largest attribution lies in a box, or within `tolerance` pixels of
                            one; else 0
    energy_pointing_game    the share of all positive attributions that lies in a box
    localisation            intersection over union of the best box and the one around the largest connected part of the
                            map over `threshold` times its maximum (pixels that touch at a corner are connected)

Zhang, Bargal, Lin, Brandt, Shen and Sclaroff, "Top-down neural attention by excitation backprop", IJCV 2018, section
4.1 (with a tolerance of 15 pixels on photographs); Wang et al., "Score-CAM", CVPR workshops 2020, section 4.3; Zhou,
Khosla, Lapedriza, Oliva and Torralba, "Learning deep features for discriminative localization", CVPR 2016, section 3.2.

A model may well decide by what is around an object, and an explanation that says so scores badly here: these figures
are of both together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import numpy as np

from service.catalog.inputs.removal import Mask
from service.domain import Floats
from service.extras import install
from service.faithfulness.complexity import unasked
from service.faithfulness.spec import Better, MetricSpec
from service.faithfulness.subject import Measured, Measuring, Subject, no_figure
from service.methods.spec import Facts, Number

Box = tuple[int, ...]
"""Top, left, bottom and right; the last two are behind the box."""
NO_BOX = "no box came with the input"
NOTHING_POSITIVE = "no attribution is positive"


def _of_map(subject: Subject, figure: Callable[[Floats, tuple[Box, ...]], float]) -> Measuring:
    """The figure of the map [height, width] and the boxes."""
    if not subject.boxes:
        return unasked(no_figure(NO_BOX))
    if not (subject.values > 0).any():
        return unasked(no_figure(NOTHING_POSITIVE))
    return unasked(Measured(figure(subject.values.reshape(subject.problem.shape[-2:]), subject.boxes)))


def pointing_game(subject: Subject) -> Measuring:
    """See the module's docstring."""
    tolerance = int(subject.number("tolerance"))

    def hit(values: Floats, boxes: tuple[Box, ...]) -> float:
        row, column = np.unravel_index(values.argmax(), values.shape)
        return float(
            any(
                top - tolerance <= row < bottom + tolerance and left - tolerance <= column < right + tolerance
                for top, left, bottom, right in boxes
            )
        )

    return _of_map(subject, hit)


def energy_pointing_game(subject: Subject) -> Measuring:
    """See the module's docstring."""

    def share(values: Floats, boxes: tuple[Box, ...]) -> float:
        positive = np.maximum(values, 0)
        return float(positive[inside(boxes, values.shape)].sum() / positive.sum())

    return _of_map(subject, share)


def localisation(subject: Subject) -> Measuring:
    """See the module's docstring."""
    threshold = subject.number("threshold")

    def best(values: Floats, boxes: tuple[Box, ...]) -> float:
        found = largest_part(values >= threshold * values.max())
        return max(overlap(found, box) for box in boxes)

    return _of_map(subject, best)


def inside(boxes: tuple[Box, ...], shape: tuple[int, ...]) -> Mask:
    """The pixels that lie in any box."""
    mask = np.zeros(shape, dtype=np.bool_)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


def largest_part(mask: Mask) -> Box:
    """The box around the largest connected part of a mask; of parts of equal size the first, row by row."""
    from scipy.ndimage import find_objects, label

    parts, _ = label(mask, structure=np.ones((3, 3)))
    largest = int(np.bincount(parts.ravel())[1:].argmax())
    rows, columns = find_objects(parts)[largest]
    return rows.start, columns.start, rows.stop, columns.stop


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0, height) * max(0, width)
    areas = sum((bottom - top) * (right - left) for top, left, bottom, right in (one, other))
    return common / (areas - common)


def _needs_image(facts: Facts) -> str | None:
    return None if facts.traits.has_space else "boxes are of images"


def _needs_scipy(facts: Facts) -> str | None:
    if find_spec("scipy") is None:
        return f"it needs scipy, of the extra `images`: run {install('images')} in the project's folder"
    return _needs_image(facts)


POINTING_GAME = MetricSpec(
    name="pointing_game",
    measure=pointing_game,
    better=Better.HIGHER,
    description="the share of images whose pixel of the largest attribution lies in a box around the object",
    citation="Zhang et al., IJCV 2018",
    takes_boxes=True,
    options=(Number("tolerance", 0, 0, 100, "pixels that the pixel may lie beside the box"),),
    not_applicable=_needs_image,
)
ENERGY_POINTING_GAME = replace(
    POINTING_GAME,
    name="energy_pointing_game",
    measure=energy_pointing_game,
    description="the share of the positive attributions that lies in a box around the object",
    citation="Wang et al., CVPR workshops 2020",
    options=(),
)
LOCALISATION = replace(
    POINTING_GAME,
    name="localisation",
    measure=localisation,
    description="intersection over union of a box around the object and the one that the map gives",
    citation="Zhou, Khosla, Lapedriza, Oliva and Torralba, CVPR 2016",
    options=(Number("threshold", 0.2, 0.0, 1.0, "of the map's maximum, over which a pixel is of the object"),),
    not_applicable=_needs_scipy,
)
