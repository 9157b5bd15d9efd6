"""On a convolutional network with max-pool and a residual sum the exact rule is the reference of what is refined."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from service.catalog.calibrations import Calibration
from service.catalog.outputs.classes import Classes
from service.domain import BaselineChoice, ChunkShapes, Completeness, Floats, OutputSpace, Plan
from service.engine.worker.device import DeviceModel, put_on_device
from service.methods.registry import BY_NAME
from tests.conftest import MODELS

if TYPE_CHECKING:
    from tests.methods.conftest import Run

FOLDER = MODELS / "digits" / "1"


@pytest.fixture(scope="module")
def digits() -> DeviceModel:
    torch.set_num_threads(1)
    return put_on_device(FOLDER, torch.device("cpu"), {}, Calibration(ChunkShapes(64, 512)))


@pytest.fixture(scope="module")
def heldout() -> Floats:
    rows: Floats = load_file(FOLDER / "heldout.safetensors")["rows"].astype(np.float64)
    return rows


def plan(model: DeviceModel, row: Floats, method: str = "integrated_gradients", **fields: object) -> Plan:
    (chosen,) = [one for one in model.manifest.baselines if one.name == "training"]
    baseline = BaselineChoice(chosen.name, chosen.version, "sha256:" + chosen.sha256, chosen.size)
    options = tuple(sorted({**BY_NAME[method].defaults(), **fields.pop("options", {})}.items()))  # type: ignore[dict-item]
    space, tolerance = fields.pop("space", OutputSpace.LOGIT), fields.pop("tolerance", 0.01)
    assert isinstance(space, OutputSpace)
    assert isinstance(tolerance, float)
    return Plan(model.key, method, options, tuple(row), None, space, baseline, tolerance, 20_000, 0, None)


@pytest.mark.parametrize("space", Classes.spaces)
def test_it_is_exact_and_what_is_refined_is_as_near_as_it_says(
    digits: DeviceModel, heldout: Floats, run: Run, space: OutputSpace
) -> None:
    rows = heldout[:4]
    exact = run(digits, [plan(digits, row, space=space, options={"rule": "exact"}) for row in rows])
    for one in exact:
        assert (one.completeness, one.rule) == (Completeness.EXACT, "exact")
        assert one.completeness_error is not None
        assert one.completeness_error < 1e-4
        assert one.evaluations > 300
    for rule in ("midpoint", "gauss_legendre"):
        refined = run(digits, [plan(digits, row, space=space, options={"rule": rule}) for row in rows])
        for one, reference in zip(refined, exact, strict=True):
            assert one.attributions is not None
            assert reference.attributions is not None
            assert one.attribution_error is not None
            difference = np.abs(np.subtract(one.attributions, reference.attributions)).sum()
            assert difference <= one.attribution_error * np.abs(one.attributions).sum()


def test_the_left_part_of_split_ig_ends_where_the_exact_path_says(
    digits: DeviceModel, heldout: Floats, run: Run
) -> None:
    row = heldout[0]
    (whole,) = run(digits, [plan(digits, row, options={"rule": "exact"})])
    (left,) = run(digits, [plan(digits, row, "split_ig", tolerance=0.001, options={"phi": 0.9})])
    assert whole.output is not None
    assert whole.baseline_output is not None
    assert left.attributions is not None
    change = whole.output - whole.baseline_output
    assert sum(left.attributions) == pytest.approx(0.9 * change, rel=0.02)


def test_guided_ig_without_room_to_deviate_is_the_exact_path(digits: DeviceModel, heldout: Floats, run: Run) -> None:
    row = heldout[1]
    (exact,) = run(digits, [plan(digits, row, options={"rule": "exact"})])
    (guided,) = run(digits, [plan(digits, row, "guided_ig", options={"max_distance": 0.0, "steps": 500})])
    assert exact.attributions is not None
    assert guided.attributions is not None
    difference = np.abs(np.subtract(guided.attributions, exact.attributions)).sum()
    assert difference < 0.03 * np.abs(exact.attributions).sum()
