"""The workers' environment makes results independent of a row's place in the chunk at every layer width.

Without `MKL_CBWR` they are not: on one thread, of 208 pairs of widths, 38 gave a row other last bits at other places
of a 512-row call (38 inputs and 3 labels, say), in float32, forward or backward.
"""

from __future__ import annotations

import subprocess
import sys

from service.engine.client.worker_processes import worker_environment
from tests.conftest import PATIENCE_SECONDS

PROGRAM = """
import numpy as np, torch
from torch import fx, nn
from service.engine.kernels.gradient import GradientKernel
from service.engine.kernels.network import Network
from service.engine.kernels.kernel import Segment
from service.methods.questions import Points, Readout

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
for inputs in (2, 5, 6, 8, 13, 31, 38, 100):
    for labels in (2, 3, 7, 10, 33, 64):
        network = fx.symbolic_trace(nn.Sequential(nn.Linear(inputs, labels), nn.ReLU(), nn.Linear(labels, 2)))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
                parameter.requires_grad_(False)
        kernel = GradientKernel(Network(network, torch.device("cpu"), (inputs,), 2), 512)
        start, end = torch.randn(2, inputs, generator=generator).double().numpy()
        everywhere = Points(start[None], end, np.zeros(512, dtype=np.intp), np.full(512, 0.3), Readout.PROBABILITY, 1)
        (part,) = kernel.run([Segment(everywhere, 0, 512)])
        (contributions,) = part.pieces
        if not (part.outputs == part.outputs[0]).all() or not (contributions == contributions[0]).all():
            print(inputs, labels)
"""


def test_a_row_has_the_same_bits_at_every_place_and_width() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=worker_environment(0),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert ran.stdout == ""
