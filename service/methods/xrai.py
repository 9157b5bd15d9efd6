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
from functools import partial
from importlib.util import find_spec
from itertools import islice

import numpy as np

from service.domain import Completeness, Floats, Indices, InputKind
from service.methods.entry import Facts, MethodEntry, Number
from service.methods.oracle import (
    Attribution,
    DeadlinePassed,
    Evaluated,
    Method,
    Points,
    Problem,
    Steps,
    evaluated,
    outputs_at,
)
from service.numerics.errors import completeness_error
from service.numerics.refinement import Refinement, Stagnation
from service.numerics.regions import Regions, dilated, ranked_densities, together

SIDE = 224
"""Cells along either side of the grid."""
SCALES = (50, 100, 150, 250, 500, 1200)
"""Felzenszwalb's k, for images with values from -1 to 1: the higher, the larger the segments."""
SMOOTHING = 0.8
"""The deviation of the Gaussian before segmentation, in cells."""
LEAST_SEGMENT = 150
"""The fewest cells of a segment."""
LINES = 2
GAUSS_NODES = 6
MIDPOINT_PANELS = 8


def xrai(problem: Problem) -> Method:
    """One explanation by XRAI; see the module's docstring.

    Segmentation keeps the worker from packing chunks, so it is done scale by scale, one before each question.
    """
    found: list[Regions] = []
    scales = _regions(problem)
    lines, stopped = yield from _integrated(problem, lambda: found.extend(islice(scales, 1)))
    return Attribution(
        values=_map(problem, together([*found, *scales]), problem.per_unit(lines.values())),
        baseline_output=problem.center_output,
        completeness=Completeness.NONE,
        path_error=None,
        evaluations=lines.evaluations,
        rule=lines.rule,
        stopped=stopped,
    )


class _Lines:
    """The lines from black and from white to the input, refined side by side; `outputs` are those of their starts."""

    def __init__(self, problem: Problem, starts: Floats, outputs: Floats) -> None:
        self._problem = problem
        self._starts = starts
        order = 1 if problem.traits.kinks else GAUSS_NODES
        nodes = min(MIDPOINT_PANELS if order == 1 else order, problem.max_evaluations // LINES)
        panels, order = (nodes, 1) if order == 1 else (1, nodes)
        self.rule = "midpoint" if problem.traits.kinks else "gauss_legendre"
        self._lines = [Refinement(float(output), problem.output, order, panels) for output in outputs]
        self._line: Indices = np.empty(0, dtype=np.intp)
        self._known: Evaluated | None = None

    @property
    def evaluations(self) -> int:
        return len(self._line)

    def question(self) -> Points:
        """The points to be evaluated next, line by line."""
        problem, pending = self._problem, [line.pending for line in self._lines]
        line = np.repeat(np.arange(LINES), [len(alphas) for alphas in pending])
        alphas = np.concatenate(pending)
        return Points(self._starts, problem.input, line, alphas, problem.readout, problem.target)

    def learn(self, asked: Points, answer: Evaluated) -> None:
        """Takes the answer to the question."""
        for k, line in enumerate(self._lines):
            line.learn(answer.outputs[asked.line == k], answer.derivatives[asked.line == k])
        self._line = np.concatenate([self._line, asked.line])
        self._known = answer if self._known is None else self._known.joined(answer)

    def error(self) -> float:
        """The mean of the lines' E, in units of the output."""
        return sum(line.sum_of_defects() for line in self._lines) / LINES

    def values(self) -> Floats:
        """The mean of the lines' attributions: [inputs]."""
        assert self._known is not None
        weights = np.empty(len(self._line))
        for k, line in enumerate(self._lines):
            weights[self._line == k] = line.weights() / LINES
        return self._known.weighted_sum(weights)

    def split(self, target: float) -> int:
        """Splits each line to leave a sum of defects of `target` on it; returns the points now pending.

        Every line may take an equal share of what the budget leaves.
        """
        wanting = [line for line in self._lines if line.sum_of_defects() >= target]
        most = (self._problem.max_evaluations - self.evaluations) // max(len(wanting), 1)
        return sum(line.split(target, most) for line in wanting)


def _integrated(problem: Problem, meanwhile: Callable[[], None]) -> Steps[tuple[_Lines, str | None]]:
    """Both integrals, and what stopped them; `meanwhile` is called before each question."""
    starts = np.stack([problem.low, problem.high])
    meanwhile()
    outputs = yield from outputs_at(starts)
    at_starts = outputs[problem.output_space][:, problem.target]
    lines, stagnation = _Lines(problem, starts, at_starts), Stagnation()
    mean_output = float(at_starts.mean())
    while True:
        asked = lines.question()
        meanwhile()
        try:
            lines.learn(asked, (yield from evaluated(asked)))
        except DeadlinePassed:
            if not lines.evaluations:
                raise
            return lines, "deadline"
        target = _target(problem, lines, mean_output)
        if target is None:
            return lines, None
        if stagnation.after(lines.error()):
            return lines, "precision"
        if not lines.split(target):
            return lines, "budget"


def _target(problem: Problem, lines: _Lines, mean_output: float) -> float | None:
    """The sum of defects to aim at next; None when the tolerance holds for both errors, or can never hold."""
    error, values = lines.error(), lines.values()
    if not np.isfinite(error):
        return None
    residual = completeness_error(values, problem.output, mean_output, problem.floor)
    accepted = problem.tolerance * max(float(np.abs(values).sum()), problem.floor)
    if residual <= problem.tolerance and error <= accepted:
        return None
    return min(accepted, error) / 3


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
            labels = felzenszwalb(image, scale=scale, sigma=SMOOTHING, min_size=LEAST_SEGMENT)
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


def _unfit(facts: Facts) -> str | None:
    if facts.traits.kind is not InputKind.IMAGE:
        return "xrai needs an image, whose regions it ranks; use integrated_gradients"
    if find_spec("skimage") is None:
        return (
            "xrai needs the extra `images` (scikit-image), which is not installed here: "
            'pip install "answerable[images]"; or use integrated_gradients'
        )
    return None


XRAI = MethodEntry(
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
    unfit=_unfit,
    description="regions of the image, ranked by their mean integrated gradients; one value a pixel",
    citation="Kapishnikov, Bolukbasi, Viegas and Terry, ICCV 2019",
)
