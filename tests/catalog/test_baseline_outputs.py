"""Outputs over baseline sets come back bit for bit, and only for what they were computed with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from service.catalog.baseline_outputs import KeptOutputs
from service.domain import ModelKey, OutputSpace

KEY = ModelKey("loan", "1", "sha256:abc")
HERE = {"device": "cpu"}


def test_they_come_back_bit_for_bit(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    outputs = {
        OutputSpace.LOGIT: random.standard_normal((129, 2)) * 10.0 ** random.integers(-300, 300, (129, 2)),
        OutputSpace.PROBABILITY: random.random((129, 2)).astype(np.float32).astype(np.float64),
    }
    outputs[OutputSpace.LOGIT][0] = -0.0, 5e-324
    KeptOutputs(tmp_path).keep(KEY, "set", HERE, outputs)
    again = KeptOutputs(tmp_path)
    found = again.find(KEY, "set", HERE)

    assert found is not None
    assert found.keys() == outputs.keys()
    for space, values in outputs.items():
        assert found[space].tobytes() == values.tobytes()
    assert again.find(replace(KEY, digest="sha256:other"), "set", HERE) is None
    assert again.find(KEY, "other", HERE) is None
    assert again.find(KEY, "set", {"device": "cuda"}) is None
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"spoilt")
    assert again.find(KEY, "set", HERE) is None
