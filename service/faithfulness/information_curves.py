"""Performance information curves of images: what the model knows of an image, by how much of the image there is to
know.

The image is blurred: a random `revealed` share of its pixels and its four corners are kept, and all others are linear
between them. Then the most relevant pixels are revealed too, and at each of the THRESHOLDS what there is to know is the
compressed size of the image, and what the model makes of it is

    sic     the probability of the explained label (softmax information curve)
    aic     1 where that label is the likeliest, else 0 (accuracy information curve)

Both are scaled to reach from 0 (blurred) to 1 (whole), the second made to rise only; the figure is the area under the
curve. Kapishnikov, Bolukbasi, Viegas and Terry, "XRAI: better attributions through regions", ICCV 2019, section 4.1,
with the thresholds of the authors' code (PAIR's `saliency`). Like there an image says nothing whose label has less than
`least_probability`, or that the blur does not make smaller, and its label less likely.

Images have eight bits a channel here, as files have. A compressed image of a few hundred pixels is mostly the header of
its format: for such `zlib` compresses the bare values.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.catalog.inputs.removal import Mask
from service.domain import Floats, OutputSpace
from service.extras import install
from service.faithfulness.spec import Better, MetricSpec
from service.faithfulness.subject import Measured, Measuring, Subject, no_figure, numbers
from service.methods.questions import Outputs
from service.methods.spec import Choice, Facts, Number

THRESHOLDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.10, 0.13, 0.21, 0.34, 0.5, 0.75)
"""The shares of pixels that are revealed, one after the other."""
POINTS = 1000
"""Of the curve, at equal steps from 0 to 1, 1 left out: the area is that of the curve through these."""
Picture = NDArray[np.uint8]
"""[height, width, channels]."""


def sic(subject: Subject) -> Measuring:
    """See the module's docstring."""
    return (yield from _curve(subject, subject.probability))


def aic(subject: Subject) -> Measuring:
    """See the module's docstring."""

    def is_likeliest(outputs: Outputs) -> Floats:
        found: Floats = (outputs[OutputSpace.PROBABILITY].argmax(axis=1) == subject.problem.target_index) * 1.0
        return found

    return (yield from _curve(subject, is_likeliest))


def _curve(subject: Subject, performance: Callable[[Outputs], Floats]) -> Measuring:
    picture = subject.inputs.picture(subject.row)
    if picture is None or not subject.has_probabilities:
        return no_figure("there are no such curves but of images of one channel or three, and labels")
    attributions = subject.values.reshape(picture.shape[:2])
    kept = _random_mask(attributions.shape, subject.number("revealed"), subject.problem.seed)
    masks = [kept, *(revealed(attributions, share) | kept for share in THRESHOLDS)]
    size = COMPRESSIONS[subject.word("compression")]
    found = []
    for shown in chain((blurred(picture, mask) for mask in masks), [picture]):  # others have their turn after each
        outputs = yield from subject.at(subject.inputs.row_of_picture(shown)[None])
        found.append((size(shown), float(performance(outputs)[0])))
    sizes, performances = np.array(found).T
    if performances[-1] < subject.number("least_probability"):
        return no_figure("the label has less than the least probability")
    if sizes[0] >= sizes[-1] or performances[0] >= performances[-1]:
        return no_figure("the blurred image is no smaller than the whole one, or its label no less likely")
    information, gained = (((v - v[0]) / (v[-1] - v[0])).clip(0, 1) for v in (sizes, performances))
    at, values = interpolated(information[1:-1], np.maximum.accumulate(gained[1:-1]))
    return Measured(float(np.trapezoid(values, at)), numbers(values[:: POINTS // 20]))


def revealed(attributions: Floats, share: float) -> Mask:
    """The pixels whose attributions reach the quantile 1 - share."""
    return attributions >= np.quantile(attributions, 1 - share)


def interpolated(information: Floats, gained: Floats) -> tuple[Floats, Floats]:
    """The curve through (0, 0), the points and (1, 1), at equal steps: where it is and its values, [POINTS + 1].

    Of several points with the same information the last counts, as in PAIR's code.
    """
    known = np.array([*information, 0.0, 1.0]), np.array([*gained, 0.0, 1.0])
    order = np.argsort(known[0], kind="stable")
    at = np.linspace(0, 1, POINTS, endpoint=False)
    values = np.interp(at, known[0][order], known[1][order])
    return np.append(at, 1.0), np.append(values, 1.0)


def blurred(picture: Picture, mask: Mask) -> Picture:
    """The picture of which the pixels of the `mask` [height, width] and the corners are kept, and others linear between
    them."""
    from scipy.interpolate import griddata

    kept = mask.copy()
    kept[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    if kept.all():
        return picture
    known, unknown = np.argwhere(kept), np.argwhere(~kept)
    filled = picture.copy()
    between = griddata(known, picture[kept], unknown, method="linear")  # all lie between the corners
    filled[~kept] = np.rint(between.astype(np.float32))
    return filled


def _random_mask(shape: tuple[int, ...], share: float, seed: int) -> Mask:
    size = shape[0] * shape[1]
    mask = np.zeros(size, dtype=np.bool_)
    mask[np.random.default_rng(seed).choice(size, int(size * share), replace=False)] = True
    return mask.reshape(shape)


def _saved(picture: Picture, form: str, **options: object) -> int:
    file = io.BytesIO()
    Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0]).save(file, form, **options)
    return file.tell()


COMPRESSIONS: Mapping[str, Callable[[Picture], int]] = {
    "webp": lambda picture: _saved(picture, "webp", lossless=True, quality=100),
    "png": lambda picture: _saved(picture, "png", optimize=True),
    "zlib": lambda picture: len(zlib.compress(picture.tobytes(), 9)),
}
"""By name, the size in bytes of a picture."""


def _not_applicable(facts: Facts) -> str | None:
    if not facts.traits.has_space:
        return "information curves are of images; use insertion"
    if find_spec("scipy") is None:
        return f"it needs scipy, of the extra `images`: run {install('images')} in the project's folder"
    return None


def _rows(facts: Facts) -> int:  # noqa: ARG001
    return len(THRESHOLDS) + 2


SIC = MetricSpec(
    name="sic",
    measure=sic,
    better=Better.HIGHER,
    description="the area under the label's probability, by the compressed size of what is revealed of the image",
    citation="Kapishnikov, Bolukbasi, Viegas and Terry, ICCV 2019",
    options=(
        Choice("compression", "webp", tuple(COMPRESSIONS), "how the size of an image is measured"),
        Number("revealed", 0.01, 0.0, 1.0, "the share of pixels that the blurred image keeps, at random"),
        Number("least_probability", 0.8, 0.0, 1.0, "of a label; below it the image says nothing"),
    ),
    rows=_rows,
    not_applicable=_not_applicable,
)
AIC = replace(
    SIC,
    name="aic",
    measure=aic,
    description="the area under whether the label is the likeliest, by the compressed size of what is revealed",
)
