"""XRAI: the regions of an image, ranked by the density of their integrated gradients.

The image is cut into segments at several scales (Felzenszwalb and Huttenlocher, "Efficient graph-based image
segmentation", IJCV 2004), and every segment is dilated a little, so that it takes in its edges: regions, which overlap.
With A_i the attribution of pixel i and M the pixels covered so far, the next region is the s with the highest density

    (sum over i in s without M of A_i) / (number of pixels in s without M),

which becomes the value of those pixels, and M takes in s. A is the mean of Integrated Gradients from a black and a
white baseline, the two ends of the inputs' range, summed over the channels. Kapishnikov, Bolukbasi, Viegas and Terry,
"XRAI: better attributions through regions", ICCV 2019, algorithm 1.

Both integrals are refined until the error of their mean holds the tolerance; the two lines share every question. The
values are in units of the output a pixel. They sum to what A sums to, which is no statement about one baseline, so
no completeness is promised; nor does the tolerance bound how far a ranking moves that hangs on the last digits of A.
Where segments end is up to the image and not to the model. In a flat image, where many neighbours differ by exactly as
much, it is up to the order in which scikit-image's sort leaves equals.

Scales and lengths are those of the authors' code (PAIR's `saliency`), which are meant for images of 224 by 224.
Therefore segments are found and dilated on a grid of that size, to which the image is brought, and each pixel belongs
to the cell in its middle. On an image of that size the regions are the same as PAIR's. Elsewhere PAIR dilates by pixels
of the image itself, so that in one of 8 by 8 every region would be nearly all of it; and it surrounds an image that it
resizes with grey. Of the channels PAIR takes the largest and not the sum.

Segmentation and ranking run in the worker, where nothing else goes on meanwhile. On one core a photograph of 224 by 224
with 360 regions takes 0.24 s: 0.19 s for segments at six scales, 0.03 s for the ranking (PAIR: 0.9 s). Other sizes take
as long, since all is done on the grid; to bring 1,024 by 1,024 in three channels to it is 0.12 s more. All but the
segments took 0.05 s, and 0.34 s for 2,166 square regions of 12 by 12 dilated by 10, more than can be found. One scale
is done before each question, so others wait for 0.04 s at a time and a deadline finds most of it done; at the end come
the scales that are left. The first explanation of a worker also imports scikit-image, which takes 0.3 s.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import islice

import numpy as np

from service.domain import Completeness, Floats, Indices
from service.extras import install
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import Steps, outputs_at
from service.methods.shared.refined_lines import RefinedLines
from service.methods.shared.refining import FIRST_PANELS, next_aim, refine
from service.methods.spec import Facts, MethodSpec, Number
from service.numerics.regions import Regions, dilated, ranked_densities, together

SIDE = 224
"""Cells along either side of the grid."""
SCALES = (50, 100, 150, 250, 500, 1200)
"""Felzenszwalb's k, for images with values from -1 to 1: the higher, the larger the segments."""
SMOOTHING = 0.8
"""The deviation of the Gaussian before segmentation, in cells."""
MIN_SEGMENT_PIXELS = 150
"""The fewest cells of a segment."""
LINES = 2


def xrai(problem: Problem) -> Method:
    """One explanation by XRAI; see the module's docstring.

    Segmentation keeps the worker from packing chunks, so it is done scale by scale, one before each question.
    """
    ready: list[Regions] = []
    scales = _regions(problem)
    integrated = yield from _integrated(problem, lambda: ready.extend(islice(scales, 1)))
    regions = together([*ready, *scales])
    return replace(integrated, values=_map(problem, regions, problem.per_component(integrated.values)))


def _integrated(problem: Problem, meanwhile: Callable[[], None]) -> Steps[Attribution]:
    """The mean of both integrals, [inputs]; `meanwhile` is called before each question."""
    starts = np.stack([problem.low, problem.high])
    meanwhile()
    answer = yield from outputs_at(starts)
    outputs = problem.read(answer)
    panels = min(FIRST_PANELS, problem.max_evaluations // LINES)
    lines = RefinedLines(problem, starts, outputs, 1, panels)

    def learn() -> Steps[None]:
        meanwhile()
        yield from lines.learn()

    def aim() -> float | None:
        return next_aim(problem, lines.error() / LINES, lines.values / LINES, float(outputs.mean()))

    stopped = yield from refine(learn, lines.error, aim, lines.split, lambda: lines.is_searching)
    return Attribution(
        values=lines.values / LINES,
        baseline_output=problem.center_output,
        completeness=Completeness.NONE,
        path_error=None,
        evaluations=lines.evaluations,
        rule="midpoint",
        stopped=stopped,
    )


def _regions(problem: Problem) -> Iterator[Regions]:
    """The regions on the grid, scale by scale."""
    from skimage.segmentation import felzenszwalb
    from skimage.transform import resize

    image = problem.input.reshape(problem.shape)
    image = 2 * (image - image.min()) / (np.ptp(image) or 1.0) - 1
    if image.shape[1:] != (SIDE, SIDE):
        # Channel by channel: of all at once it would make splines across the channels too, at nine times the cost.
        resized = partial(resize, output_shape=(SIDE, SIDE), order=3, mode="edge", anti_aliasing=True)
        image = np.stack([resized(channel) for channel in image])
    image = np.moveaxis(image, 0, -1)
    for scale in SCALES:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got image with third dimension of", RuntimeWarning)
            labels = felzenszwalb(image, scale=scale, sigma=SMOOTHING, min_size=MIN_SEGMENT_PIXELS)
        yield dilated(labels, int(problem.number("dilation_radius")))


def _map(problem: Problem, regions: Regions, attribution: Floats) -> Floats:
    """The map [pixels] from the `attribution` [pixels]."""
    cell, cells = _cell_of_pixel(problem.shape[1], problem.shape[2]), SIDE * SIDE
    pixels = np.bincount(cell, minlength=cells).astype(np.float64)
    sums = np.bincount(cell, weights=attribution, minlength=cells).astype(np.float64)
    least = problem.number("min_pixel_diff") * len(attribution) / cells
    densities = ranked_densities(regions, pixels, sums, least, problem.number("area_threshold"))
    return densities[cell]


def _cell_of_pixel(height: int, width: int) -> Indices:
    """The grid's cell in the middle of each pixel: [pixels]."""
    row, column = ((2 * np.arange(length) + 1) * SIDE // (2 * length) for length in (height, width))
    return (row[:, None] * SIDE + column).ravel()


def _not_applicable(facts: Facts) -> str | None:
    if not facts.traits.has_space:
        return "xrai needs an image, whose regions it ranks; use integrated_gradients"
    if find_spec("skimage") is None:
        return (
            "xrai needs the extra `images` (scikit-image), which is not installed here: run "
            f"{install('images')} in the project's folder; or use integrated_gradients"
        )
    return None


XRAI = MethodSpec(
    name="xrai",
    attribute=xrai,
    completeness=(Completeness.NONE,),
    least_points=lambda _facts: LINES,
    usual_points=lambda _facts: LINES * 64,
    most_copies=8,
    cost="what the tolerance takes on two lines, from 12 or 16",
    options=(
        Number(
            "area_threshold", 1.0, 0.0, 1.0, "the share of the image to be ranked; what is left has one value, its mean"
        ),
        Number(
            "min_pixel_diff", 50, 1, 5000, "the fewest pixels a region must add, counted as if there were 224 by 224"
        ),
        Number("dilation_radius", 5, 0, 10, "how far segments reach over their edges, in pixels of 224 by 224"),
    ),
    not_applicable=_not_applicable,
    description="regions of the image, ranked by their mean integrated gradients; one value a pixel",
    citation="Kapishnikov, Bolukbasi, Viegas and Terry, ICCV 2019",
)
