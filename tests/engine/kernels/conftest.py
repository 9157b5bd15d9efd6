"""The loan model on one CPU thread, as a worker has it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from service.catalog.calibrations import Calibration
from service.domain import ChunkShapes, Floats
from service.engine.worker.device import DeviceModel, put_on_device
from tests.conftest import MODELS

FOLDER = MODELS / "loan" / "1"


@pytest.fixture(scope="session")
def model() -> DeviceModel:
    """The loan model."""
    torch.set_num_threads(1)
    return put_on_device(FOLDER, torch.device("cpu"), {}, Calibration(ChunkShapes(128, 512)))


@pytest.fixture(scope="session")
def heldout() -> Floats:
    """The 389 rows that were held out of training."""
    rows: Floats = load_file(FOLDER / "heldout.safetensors")["rows"].astype(np.float64)
    return rows
