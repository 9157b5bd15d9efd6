"""Stated errors hold on networks that they were not tuned to: a few of those that `make accuracy` takes."""

from __future__ import annotations

import numpy as np

from service.catalog.outputs.classes import Classes
from tests.accuracy.__main__ import ASKED, lines_of
from tests.accuracy.networks import NETWORKS

QUICK = ["mish_table", "hardswish_table", "leaky_layer_norm_table", "elu_layer_norm_table", "attention_silu"]
(IG,) = [asked for asked in ASKED if asked.name == "integrated_gradients"]


def test_at_least_twenty_networks_are_not_tuned_to() -> None:
    assert sum(not network.is_tuned for network in NETWORKS.values()) >= 20


def test_the_true_error_is_within_the_stated_one() -> None:
    lines = [line for name in QUICK for line in lines_of(NETWORKS[name], IG, 5, (0.05, 0.01), 8)]
    assert {line.space for line in lines} == set(Classes.spaces)
    ratios = np.concatenate([line.ratios for line in lines])
    assert len(ratios) == 100
    assert (ratios <= 1).mean() >= 0.95
    assert all(np.median(line.ratios) >= 0.01 for line in lines), "no network's is overstated out of all proportion"
    assert all(line.converged == len(line.ratios) for line in lines)
