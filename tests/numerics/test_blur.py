"""The path of blurs against scipy's Gaussian filter, its derivative against differences, and what blurring keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from service.domain import Floats
from service.numerics.blur import REACH, BlurPath, Padding

MODES: dict[Padding, str] = {"reflect": "reflect", "zeros": "constant"}
IMAGE = np.random.default_rng(0).uniform(size=(3, 9, 7))
SIGMAS = [0.02, 0.3, 1.0, 2.7, 9.0, 40.0]


def filtered(sigma: float, mode: str) -> Floats:
    blurred: Floats = ndimage.gaussian_filter(IMAGE, [0, sigma, sigma], mode=mode, truncate=REACH)
    return blurred.ravel()


@pytest.mark.parametrize("padding", MODES)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_blur_is_that_of_scipy(padding: Padding, sigma: float) -> None:
    images, _ = BlurPath(IMAGE, 1.0, padding).blurred(np.array([sigma]))
    np.testing.assert_allclose(images[0], filtered(sigma, MODES[padding]), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("padding", MODES)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_change_with_sigma_is_the_limit_of_differences(padding: Padding, sigma: float) -> None:
    step = 1e-5
    beside = [filtered(sigma + side * step, MODES[padding]) for side in (-1, 1)]
    _, changes = BlurPath(IMAGE, 1.0, padding).blurred(np.array([sigma]))
    np.testing.assert_allclose(changes[0], (beside[1] - beside[0]) / (2 * step), atol=1e-8)


def test_the_path_leads_from_the_largest_blur_to_the_image() -> None:
    images, velocities = BlurPath(IMAGE, 3.0).at(np.array([0.0, 1.0]))
    np.testing.assert_allclose(images[0], filtered(3.0, "reflect"), rtol=1e-13)
    np.testing.assert_array_equal(images[1], IMAGE.ravel())
    np.testing.assert_array_equal(velocities[1], 0)


@pytest.mark.parametrize("reach", [REACH, 4.0])
def test_the_velocities_add_up_to_the_way_unless_the_kernel_is_cut_off_early(reach: float) -> None:
    panels, order = 64, 8
    nodes, weights = np.polynomial.legendre.leggauss(order)
    alphas = (np.arange(panels)[:, None] + (nodes + 1) / 2).ravel() / panels
    path = BlurPath(IMAGE, 3.0, reach=reach)
    _, velocities = path.at(alphas)
    start, _ = path.at(np.zeros(1))
    missed = np.abs(np.tile(weights / 2, panels) @ velocities / panels - (IMAGE.ravel() - start[0])).max()
    assert (missed < 1e-11) == (reach == REACH)
    assert missed < 1e-3


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 20), st.integers(1, 6), st.integers(1, 6))
def test_a_mirrored_blur_keeps_the_brightness_of_each_channel(sigma: float, height: int, width: int) -> None:
    image = np.random.default_rng(height * 7 + width).normal(size=(2, height, width))
    images, changes = BlurPath(image, 1.0).blurred(np.array([sigma]))
    np.testing.assert_allclose(images.reshape(2, -1).sum(axis=1), image.sum(axis=(1, 2)), atol=1e-12)
    np.testing.assert_allclose(changes.reshape(2, -1).sum(axis=1), 0, atol=1e-12)
