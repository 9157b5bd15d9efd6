"""XRAI: PAIR's own code, the closed form of a linear model, and what the method promises of its cost and its ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from service.catalog.inputs.tabular import TabularInputs
from service.catalog.inputs.tokens import TokenInputs
from service.domain import Completeness, Floats, OptionValue, OutputSpace
from service.methods.problem import Problem
from service.methods.questions import DeadlinePassed, Forwards, Points
from service.methods.spec import Facts
from service.methods.xrai import XRAI, xrai
from tests.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

SIDE = 224
SMALL = (2, 8, 8)
Network = Callable[[Tensor], Tensor]


def drawn(shape: tuple[int, ...], seed: int = 0) -> Floats:
    return np.random.default_rng(seed).uniform(size=shape)


def photograph(name: str) -> Floats:
    """[channels, 224, 224], from 0 to 1."""
    from skimage import data
    from skimage.transform import resize

    image = resize(np.atleast_3d(getattr(data, name)()), (SIDE, SIDE))
    return np.moveaxis(image, -1, 0)


def weights_of(shape: tuple[int, ...]) -> Floats:
    return np.random.default_rng(7).normal(size=shape)


def linear(shape: tuple[int, ...]) -> Network:
    weights = torch.from_numpy(weights_of(shape))

    def network(rows: Tensor) -> Tensor:
        score = (rows * weights).sum(dim=(1, 2, 3))
        return torch.stack([-score, score], dim=1)

    return network


def bent(activation: Callable[[Tensor], Tensor]) -> Network:
    """Two layers over `SMALL`, with twelve hidden units."""
    generator = np.random.default_rng(3)
    first = torch.from_numpy(generator.normal(size=(int(np.prod(SMALL)), 12)) / 2)
    second = torch.from_numpy(generator.normal(size=(12, 2)))

    def network(rows: Tensor) -> Tensor:
        return activation(rows.flatten(1) @ first - 0.5) @ second

    return network


@pytest.fixture
def posed(pose: Pose) -> Callable[..., Problem]:
    """Poses a problem for `xrai` about the logit of label 1; keywords replace fields and options."""

    def make(network: Network, x: Floats, kinks: tuple[str, ...] = (), **changed: object) -> Problem:
        options: dict[str, OptionValue] = dict(XRAI.defaults())
        fields = {name: value for name, value in changed.items() if name not in options}
        options |= {name: value for name, value in changed.items() if name in options}  # type: ignore[misc]
        problem = pose(network, x, np.zeros((1, *x.shape)), OutputSpace.LOGIT, traits={"kinks": kinks})
        return replace(problem, options=options, **fields)  # type: ignore[arg-type]

    return make


Posed = Callable[..., Problem]


def dense_integrals(network: Network, x: Floats) -> Floats:
    """The mean of integrated gradients from black and from white by 5,000 midpoints each, a pixel: [pixels]."""
    total = torch.zeros(x.shape, dtype=torch.float64)
    end = torch.from_numpy(x)
    for start in (torch.zeros_like(end), torch.ones_like(end)):
        alphas = (torch.arange(5_000, dtype=torch.float64) + 0.5) / 5_000
        rows = (start + alphas[:, None, None, None] * (end - start)).requires_grad_()
        (gradients,) = torch.autograd.grad(network(rows)[:, 1].sum(), rows)
        total += (end - start) * gradients.mean(dim=0) / 2
    return total.sum(dim=0).numpy().ravel()


def pair_on_the_grid(x: Floats, attribution: Floats) -> Floats:
    """PAIR's XRAI over its own segments of the image at 224 by 224, seen at the pixels of `x`: [pixels]."""
    from saliency.core.xrai import XRAI as PairXRAI  # noqa: N811
    from saliency.core.xrai import XRAIParameters, _get_segments_felzenszwalb
    from skimage.transform import resize

    image = np.moveaxis(x, 0, -1)
    large = np.stack(
        [resize(channel, (SIDE, SIDE), order=3, mode="edge") for channel in x],
        axis=-1,
    )
    rows, columns = (((np.arange(n) + 0.5) * SIDE / n).astype(int) for n in x.shape[1:])
    segments = [mask[np.ix_(rows, columns)] for mask in _get_segments_felzenszwalb(large, resize_image=False)]
    parameters = XRAIParameters()
    parameters.experimental_params["min_pixel_diff"] = 1
    base = np.broadcast_to(attribution.reshape(*x.shape[1:], 1), image.shape)
    mask: Floats = PairXRAI().GetMask(
        image, None, segments=segments, base_attribution=base, extra_parameters=parameters
    )
    return mask.ravel()


def test_on_a_grey_photograph_and_a_linear_model_it_is_pairs_from_the_pixels_to_the_map(
    posed: Posed, drive: Drive
) -> None:
    from saliency.core.base import INPUT_OUTPUT_GRADIENTS
    from saliency.core.xrai import XRAI as PairXRAI  # noqa: N811

    x = photograph("camera")
    network = linear(x.shape)
    ours = drive(xrai(posed(network, x)), network, shape=x.shape).values

    def gradients(rows: Floats, call_model_args: object = None, expected_keys: object = None) -> dict[str, Floats]:
        return {INPUT_OUTPUT_GRADIENTS: np.broadcast_to(np.moveaxis(weights_of(x.shape), 0, -1), rows.shape)}

    image = np.moveaxis(x, 0, -1)
    theirs = PairXRAI().GetMask(image, gradients, baselines=[np.zeros_like(image), np.ones_like(image)])
    # PAIR keeps its integrals in float32.
    np.testing.assert_allclose(ours, theirs.ravel(), rtol=0, atol=1e-6 * np.abs(weights_of(x.shape)).max())


@pytest.mark.slow
def test_on_a_colour_photograph_its_regions_and_their_order_are_pairs_with_the_same_options(
    posed: Posed, drive: Drive
) -> None:
    from saliency.core.xrai import XRAI as PairXRAI  # noqa: N811
    from saliency.core.xrai import XRAIParameters, _get_segments_felzenszwalb

    x = photograph("astronaut")
    network = linear(x.shape)
    problem = posed(network, x, area_threshold=0.6, min_pixel_diff=120, dilation_radius=3)
    ours = drive(xrai(problem), network, shape=x.shape).values
    # PAIR keeps the largest channel, so each is given the sum over all.
    sums = (weights_of(x.shape) * (x - 0.5)).sum(axis=0)
    image, base = np.moveaxis(x, 0, -1), np.broadcast_to(sums[..., None], (SIDE, SIDE, 3))
    segments = _get_segments_felzenszwalb(image, dilation_rad=3)
    parameters = XRAIParameters(area_threshold=0.6)
    parameters.experimental_params["min_pixel_diff"] = 120
    theirs = PairXRAI().GetMask(image, None, segments=segments, base_attribution=base, extra_parameters=parameters)
    assert len(np.unique(theirs)) > 10
    np.testing.assert_allclose(ours, theirs.ravel(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("activation", "kinks", "rule"), [(torch.tanh, (), "midpoint"), (torch.relu, ("relu",), "midpoint")]
)
def test_on_a_small_image_and_a_bent_model_it_is_pairs_map_of_the_true_integrals(
    posed: Posed, drive: Drive, activation: Callable[[Tensor], Tensor], kinks: tuple[str, ...], rule: str
) -> None:
    x, network = drawn(SMALL), bent(activation)
    problem = posed(network, x, kinks, tolerance=1e-5)
    result = drive(xrai(problem), network, shape=SMALL)
    assert result.stopped is None
    assert result.rule == rule
    truth = pair_on_the_grid(x, dense_integrals(network, x))
    assert len(np.unique(truth)) > 20
    np.testing.assert_allclose(result.values, truth, rtol=0, atol=1e-4 * np.abs(truth).sum())


def test_values_sum_to_the_output_less_the_mean_of_those_of_black_and_white(posed: Posed, drive: Drive) -> None:
    x, network = drawn(SMALL), bent(torch.tanh)
    result = drive(xrai(posed(network, x, area_threshold=0.3, tolerance=1e-6)), network, shape=SMALL)
    ends = torch.stack([torch.zeros(SMALL), torch.ones(SMALL), torch.from_numpy(x)]).double()
    black, white, output = network(ends)[:, 1].tolist()
    assert result.values.sum() == pytest.approx(output - (black + white) / 2, rel=1e-5)
    assert result.values.shape == (64,)
    assert result.completeness is Completeness.NONE
    assert result.path_error is None


def test_a_tighter_tolerance_costs_more_and_leaves_less(posed: Posed, drive: Drive) -> None:
    # In a flat image the map is the mean of all integrals, which no ranking disturbs.
    x, network = np.full(SMALL, 0.3), bent(torch.relu)
    truth = dense_integrals(network, x)
    problems = [posed(network, x, ("relu",), tolerance=tolerance) for tolerance in (0.1, 1e-3, 1e-5)]
    results = [drive(xrai(problem), network, shape=SMALL) for problem in problems]
    costs = [result.evaluations for result in results]
    errors = [abs(result.values[0] - truth.mean()) for result in results]
    assert costs == sorted(set(costs))
    assert errors[2] < errors[0]
    assert errors[2] <= 1e-5 * np.abs(truth).mean()


def test_both_lines_share_every_question_and_a_scale_is_segmented_before_each(
    posed: Posed, monkeypatch: pytest.MonkeyPatch
) -> None:
    import skimage.segmentation

    segmented: list[int] = []
    real = skimage.segmentation.felzenszwalb

    def counted(image: Floats, scale: int, **others: float) -> Floats:
        segmented.append(scale)
        result: Floats = real(image, scale=scale, **others)
        return result

    monkeypatch.setattr(skimage.segmentation, "felzenszwalb", counted)
    method = xrai(posed(bent(torch.relu), drawn(SMALL), ("relu",)))
    ends = next(method)
    assert isinstance(ends, Forwards)
    np.testing.assert_array_equal(ends.rows, [np.zeros(128), np.ones(128)])
    assert segmented == [50]
    points = method.send({OutputSpace.LOGIT: np.array([[0.0, 1.0], [0.0, 2.0]])})
    assert isinstance(points, Points)
    assert np.bincount(points.line).tolist() == [4, 4]
    assert segmented == [50, 100]


@pytest.mark.parametrize("budget", [2, 3, 17])
@pytest.mark.parametrize("kinks", [(), ("relu",)])
def test_a_spent_budget_is_said_and_never_exceeded(
    posed: Posed, drive: Drive, budget: int, kinks: tuple[str, ...]
) -> None:
    x, network = drawn(SMALL), bent(torch.relu)
    problem = posed(network, x, kinks, tolerance=1e-9, max_evaluations=budget)
    result = drive(xrai(problem), network, shape=SMALL)
    assert result.stopped == "budget"
    assert XRAI.least_points(Facts(problem.traits, 1, problem.options)) <= result.evaluations <= budget


def test_after_a_deadline_what_is_known_is_ranked(posed: Posed, drive: Drive) -> None:
    x, network = drawn(SMALL), bent(torch.relu)
    problem = posed(network, x, ("relu",), tolerance=1e-9)
    late = drive(xrai(problem), network, shape=SMALL, answers=2)
    assert late.stopped == "deadline"
    spent = drive(xrai(replace(problem, max_evaluations=8)), network, shape=SMALL)
    np.testing.assert_array_equal(late.values, spent.values)


@pytest.mark.parametrize("answers", [0, 1])
def test_a_deadline_before_the_first_gradient_passes_through(posed: Posed, drive: Drive, answers: int) -> None:
    x, network = drawn(SMALL), bent(torch.relu)
    with pytest.raises(DeadlinePassed):
        drive(xrai(posed(network, x)), network, shape=SMALL, answers=answers)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 5), (4, 3, 5), (1, 30, 250)])
def test_images_of_any_shape_and_number_of_channels_are_ranked(
    posed: Posed, drive: Drive, shape: tuple[int, ...]
) -> None:
    x, network = drawn(shape), linear(shape)
    values = drive(xrai(posed(network, x)), network, shape=shape).values
    pixels = (weights_of(shape) * (x - 0.5)).sum(axis=0).ravel()
    assert values.sum() == pytest.approx(pixels.sum(), abs=1e-9)
    assert values.max() <= pixels.max() + 1e-12
    assert (len(np.unique(values)) > 1) == (pixels.size > 1)


def test_a_flat_image_is_one_region(posed: Posed, drive: Drive) -> None:
    x, network = np.full(SMALL, 0.25), linear(SMALL)
    values = drive(xrai(posed(network, x)), network, shape=SMALL).values
    np.testing.assert_allclose(values, (weights_of(SMALL) * -0.25).sum() / 64, rtol=1e-12)


def test_the_same_problem_gives_the_same_bits(posed: Posed, drive: Drive) -> None:
    x, network = drawn(SMALL), bent(torch.relu)
    first, second = (drive(xrai(posed(network, x, ("relu",))), network, shape=SMALL).values for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_it_refuses_what_is_no_image(posed: Posed) -> None:
    traits = posed(linear(SMALL), drawn(SMALL)).traits
    assert XRAI.not_applicable(Facts(traits, 1, {})) is None
    for axes in (TabularInputs.axes, TokenInputs.axes):
        reason = XRAI.not_applicable(Facts(replace(traits, axes=axes), 1, {}))
        assert reason is not None
        assert reason.startswith("xrai needs an image")


def test_without_scikit_image_it_says_which_extra_is_missing(posed: Posed, monkeypatch: pytest.MonkeyPatch) -> None:
    traits = posed(linear(SMALL), drawn(SMALL)).traits
    monkeypatch.setitem(sys.modules, "skimage", None)
    reason = XRAI.not_applicable(Facts(traits, 1, {}))
    assert reason is not None
    assert reason.startswith("xrai needs the extra `images`")


IN_THE_FRONT = f"""
import sys
from service.catalog.inputs.image import ImageInputs
from service.catalog.traits import Traits
from service.methods.spec import Facts
from service.methods.xrai import XRAI
traits = Traits(ImageInputs.axes, {SMALL}, 2, None, (), True, True, None)
assert XRAI.not_applicable(Facts(traits, 1, XRAI.defaults())) is None
assert not {{"skimage", "scipy"}} & set(sys.modules)
"""


def test_planning_does_not_import_scikit_image() -> None:
    subprocess.run([sys.executable, "-c", IN_THE_FRONT], check=True, timeout=PATIENCE_SECONDS)
