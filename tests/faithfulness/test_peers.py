"""Against the packages that the field uses: PAIR's `saliency`, and Quantus where it is installed.

Quantus (0.6) is under the GPL, and no dependency of this project. Where it was installed beside it (`pip install
--no-deps quantus opencv-python-headless cachetools`) these tests run. What differs from it, and why:

- The mean of an image, as a replacement, is taken of what is left of the image after each step there, of the whole
  image here; the darkest value is the same in both as long as a black pixel is left.
- Its Monotonicity fills the image with the baseline and then puts the baseline in again, so that all steps are equal
  and the answer is always yes; here components are put back.
- Its curves begin after the first step, and areas are in steps; here they begin at the whole image, over shares.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from saliency.metrics import pic
from torch import nn

from service.domain import Floats, OutputSpace
from service.engine.kernels.gradient import GradientKernel
from service.faithfulness.information_curves import THRESHOLDS, blurred, interpolated
from service.methods.questions import Points
from tests.faithfulness.conftest import Judge, measure


@pytest.fixture
def quantus() -> Any:
    return pytest.importorskip("quantus", reason="quantus is installed by whoever wants these; see above")


@pytest.fixture(scope="module")
def network(digits: Judge) -> nn.Module:
    """The digits network, to probabilities."""
    kernel = digits.trial.model.kernels[Points][0]
    assert isinstance(kernel, GradientKernel)
    return nn.Sequential(kernel.network.twin, nn.Softmax(dim=1)).eval()


@pytest.fixture(scope="module")
def explained(digits: Judge, images: Floats) -> tuple[Floats, list[int]]:
    """Attributions of the images, [12, 64], and the labels they are of."""
    found = [digits.trial.explained(digits.plan(row)) for row in images]
    return np.array([one.attributions for one in found]).reshape(12, 64), [int(str(one.target)) for one in found]


@pytest.mark.filterwarnings("ignore:The settings for perturbing input:UserWarning")  # of pixels that are black already
def test_deletion_is_pixel_flipping(
    quantus: Any, digits: Judge, network: nn.Module, images: Floats, explained: tuple[Floats, list[int]]
) -> None:
    values, targets = explained
    shown = [at for at, row in enumerate(images) if row.min() == 0]
    flipping = quantus.PixelFlipping(
        perturb_baseline="black", normalise=False, disable_warnings=True, return_auc_per_sample=False
    )
    curves = flipping(
        network,
        images[shown].reshape(-1, 1, 8, 8).astype(np.float32),
        np.array(targets)[shown],
        values[shown].reshape(-1, 1, 8, 8),
        device="cpu",
    )
    for at, curve in zip(shown, curves, strict=True):
        (found,) = digits.figures(images[at], values[at], measure("deletion", "zero", steps=64), target=targets[at])
        assert found.curve is not None
        assert np.abs(np.array(found.curve[1:]) - curve).max() < 1e-5


def test_complexity_and_sparseness(
    quantus: Any, digits: Judge, network: nn.Module, images: Floats, explained: tuple[Floats, list[int]]
) -> None:
    values, targets = explained
    asked = {"entropy": quantus.Complexity, "gini": quantus.Sparseness}
    for name, metric in asked.items():
        theirs = metric(normalise=False, disable_warnings=True)(
            network,
            images.reshape(-1, 1, 8, 8).astype(np.float32),
            np.array(targets),
            values.reshape(-1, 1, 8, 8),
            device="cpu",
        )
        ours = [digits.figures(row, own, measure(name))[0].value for row, own in zip(images, values, strict=True)]
        assert ours == pytest.approx(theirs, abs=1e-4 if name == "gini" else 1e-5)  # 1e-7 is added to each there


@pytest.mark.parametrize("name", ["sic", pytest.param("aic", marks=pytest.mark.slow)])
def test_information_curves_are_pairs(
    digits: Judge, images: Floats, explained: tuple[Floats, list[int]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PAIR's code calls `np.trapz`, which numpy has renamed."""
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    values, targets = explained
    compared = 0
    for row, own, target in zip(images[:3], values[:3], targets[:3], strict=True):
        picture = digits.trial.manifest.inputs.picture(row)
        assert picture is not None
        mask = np.zeros(64, dtype=np.bool_)
        mask[np.random.default_rng(0).choice(64, 3, replace=False)] = True

        def performance(pictures: Any, target: int = target) -> list[float]:
            rows = np.stack([one.ravel() / 255 * 16 for one in pictures])
            outputs = digits.trial.deployed(rows)[OutputSpace.PROBABILITY]
            return list(outputs[:, target] if name == "sic" else 1.0 * (outputs.argmax(axis=1) == target))

        (found,) = digits.figures(row, own, measure(name, revealed=0.05), target=target)
        try:
            expected = pic.compute_pic_metric(
                picture[:, :, 0], own.reshape(8, 8), mask.reshape(8, 8), performance, THRESHOLDS
            )
        except pic.ComputePicMetricError:
            assert found.value is None
            continue
        compared += 1
        assert found.value == pytest.approx(expected.auc, abs=1e-5)
    assert compared >= 2


def test_blurring_is_pairs() -> None:
    """Colours too, and nearly nothing known."""
    draws = np.random.default_rng(3)
    picture = draws.integers(0, 256, (12, 9, 3)).astype(np.uint8)
    for share in (0.0, 0.1, 0.6, 1.0):
        mask = draws.random((12, 9)) < share
        assert (blurred(picture, mask) == pic.create_blurred_image(picture, mask)).all()


def test_of_points_with_equal_information_the_last_counts() -> None:
    at, values = interpolated(np.array([0.0, 0.5, 0.5, 0.5]), np.array([0.25, 0.5, 0.75, 0.9]))
    assert values[0] == 0.0
    assert values[500] == 0.9
    assert (at[0], at[-1], values[-1]) == (0.0, 1.0, 1.0)
    assert torch.is_tensor(torch.from_numpy(values))
