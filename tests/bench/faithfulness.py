"""Deletion on `digits`: what the curves of known attributions cost, against Quantus's PixelFlipping on the same
weights.

`python -m tests.bench.faithfulness [--rounds N] [--images N]`; Quantus (GPL, no dependency of this project) must be
installed: `pip install --no-deps quantus opencv-python-headless cachetools`. All of it in this process and on one
thread: ours as a worker computes it, packed by its scheduler, one pixel a step, so that both ask for the same outputs,
which are compared; Quantus with its batch size of 64 and with all images at once, of which the faster counts. In every
round each takes its turn. Counted are seconds of computing (CPU) of the process, so that what else the machine does
matters little.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")  # as workers run

import numpy as np
import torch
from torch import nn

from service.domain import Floats, Plan, Priority
from service.engine.kernels.gradient import GradientKernel
from service.engine.messages import Done
from service.engine.protocol import Evaluation
from service.engine.worker.environment import set_up_torch
from service.engine.worker.evaluation import evaluate
from service.engine.worker.packing import Live
from service.engine.worker.scheduler import Scheduler
from service.faithfulness.subject import Measure
from service.lifecycle.checking.trial import Trial, load_trial
from service.methods.questions import Points
from service.usecases.planning import Parameters, make_plans
from tests.bench.rounds import ROOT

PIXELS = 64
MEASURE = Measure("deletion", "zero", (("steps", PIXELS),))
AIM = 5.0


def ours(trial: Trial, plans: Sequence[Plan], values: Floats) -> Floats:
    """The curves [images, pixels] behind the first point, which Quantus has not."""
    scheduler = Scheduler()
    for task, (plan, known) in enumerate(zip(plans, values, strict=True)):
        steps = evaluate(plan, [MEASURE], tuple(known.tolist()), trial.model)
        scheduler.add(Live(task, steps, trial.model.kernels, "digits", Priority.BULK, None, time.monotonic()))
    curves: dict[int, Any] = {}
    while scheduler:
        scheduler.step()
        for outcome in scheduler.outcomes():
            assert isinstance(outcome, Done)
            assert isinstance(outcome.result, Evaluation)
            curves[outcome.task] = outcome.result.measured[0].curve
    return np.array([curves[task][1:] for task in range(len(plans))])


def theirs(network: nn.Module, images: Floats, targets: Any, values: Floats, batch: int) -> Floats:
    """Quantus's curves [images, pixels]."""
    quantus: Any = import_module("quantus")
    flipping = quantus.PixelFlipping(perturb_baseline="black", normalise=False, disable_warnings=True)
    shape = (-1, 1, 8, 8)
    rows, maps = images.reshape(shape).astype(np.float32), values.reshape(shape)
    return np.array(flipping(network, rows, targets, maps, device="cpu", batch_size=batch))


def main() -> int:
    """Prints both, the ratio, and whether the curves agree. Returns 1 where they do not, or the aim is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.faithfulness")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=128)
    options = parser.parse_args()
    set_up_torch()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of pixels that are black already
    trial = load_trial(ROOT / "models" / "digits" / "1", torch.device("cpu"))
    images = trial.sample(2 * options.images, 0)
    images = images[images.min(axis=1) == 0][: options.images]  # the darkest pixel of which is zero in both
    plans = make_plans(trial.version, [tuple(row.tolist()) for row in images], Parameters(target="predicted"))
    explained = trial.explained_together(plans)
    values = np.array([one.attributions for one in explained]).reshape(len(images), -1)
    targets = np.array([one.target for one in explained])
    kernel = trial.model.kernels[Points][0]
    assert isinstance(kernel, GradientKernel)
    network = nn.Sequential(kernel.network.twin, nn.Softmax(dim=1)).eval()
    ways: dict[str, Callable[[], Floats]] = {
        "ours": partial(ours, trial, plans, values),
        "Quantus, batches of 64": partial(theirs, network, images, targets, values, 64),
        "Quantus, one batch": partial(theirs, network, images, targets, values, len(images)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    apart = 0.0
    for round_ in range(options.rounds + 1):
        curves = {}
        for name, way in ways.items():
            began = time.process_time()
            curves[name] = way()
            if round_:
                seconds[name].append(time.process_time() - began)
        apart = max(apart, *(float(np.abs(curves["ours"] - other).max()) for other in curves.values()))
    for name, found in seconds.items():
        print(f"{name:24} {1e3 * statistics.median(found) / len(images):8.3f} CPU ms an image")
    best = [min(pair) for pair in zip(*(found for name, found in seconds.items() if name != "ours"), strict=True)]
    ratios = [other / own for other, own in zip(best, seconds["ours"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"Quantus against ours: {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}); aim: at least {AIM:g}")
    print(f"largest difference of a point of the curves: {apart:.1e}")
    return 0 if apart < 1e-5 and ratio >= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
