"""Whether the order of the attributions holds: under another sample of the baseline, and near the input.

A small random share of the explanations is computed again at bulk priority, of the target that the first was of. What
counts is the rank correlation of the absolute attributions

- with those from the mean of a bootstrap sample of the baseline set: as many rows, drawn with replacement;
- the lowest with those at inputs near by, where the prediction is the same (`service.faithfulness.fragility`): of a
  short search, since it is the mean over many inputs that is watched.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from service.catalog.manifest import BaselineSet
from service.catalog.version_files import read_baseline_rows
from service.catalog.versions import ModelVersion
from service.domain import BaselineChoice, Explanation, Plan, Priority
from service.engine.protocol import Engine
from service.errors import AnswerableError, CatalogError
from service.faithfulness.fragility import RANK_STABILITY
from service.methods.spec import Facts
from service.numerics.ranking import rank_correlation

Observe = Callable[[ModelVersion, float], None]
LOG = logging.getLogger("answerable.monitoring")
NEAR_BY = RANK_STABILITY.asked(samples=2, steps=3)
METHOD = "integrated_gradients"
"""The method that starts from the set's mean, which can be given as a baseline of its own."""


class StabilityProbe:
    """Probes a random `share` of the explanations, one at a time; those that come meanwhile are left out.

    `sampled` gets the version and the correlation under another sample of the baseline, `near_by` the lowest near the
    input.
    """

    def __init__(self, engine: Engine, share: float, sampled: Observe, near_by: Observe) -> None:
        self._engine = engine
        self._sampled = sampled
        self._near_by = near_by
        self._share = share
        self._draw = random.Random()  # noqa: S311 - which explanations are chosen is no secret
        self._resample = np.random.default_rng()
        self._task: asyncio.Task[None] | None = None

    def consider(self, version: ModelVersion, plan: Plan, explanation: Explanation, expected_points: int) -> None:
        """Probes the explanation, or not, by chance; returns at once."""
        if self._draw.random() >= self._share or self._task is not None or explanation.attributions is None:
            return
        plan = replace(plan, target=explanation.target)
        probing = self._probe(version, plan, explanation.attributions, expected_points)
        self._task = asyncio.get_running_loop().create_task(probing)
        self._task.add_done_callback(self._done)

    async def close(self) -> None:
        """Cancels what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            LOG.error("an explanation could not be computed once more", exc_info=task.exception())

    async def _probe(self, version: ModelVersion, plan: Plan, first: tuple[float, ...], points: int) -> None:
        baseline = _set_of(version, plan)
        try:
            if baseline is not None:
                await self._under_another_sample(version, plan, first, points, baseline)
            await self._at_inputs_near_by(version, plan, first, points)
        except (AnswerableError, CatalogError):
            return  # the service has no time for it now, or stops

    async def _under_another_sample(
        self, version: ModelVersion, plan: Plan, first: tuple[float, ...], points: int, baseline: BaselineSet
    ) -> None:
        rows = await asyncio.to_thread(read_baseline_rows, version.folder, version.manifest, baseline)
        drawn = rows[self._resample.integers(len(rows), size=len(rows))].mean(axis=0, dtype=np.float64)
        other = replace(plan, baseline=BaselineChoice("resampled", "1", "", 1, tuple(drawn.tolist())))
        explanation, _ = await self._engine.explain(version.ref, other, points, Priority.BULK)
        if explanation.attributions is not None:
            correlation = rank_correlation(np.abs(np.array(first)), np.abs(np.array(explanation.attributions)))
            self._sampled(version, correlation)

    async def _at_inputs_near_by(
        self, version: ModelVersion, plan: Plan, first: tuple[float, ...], points: int
    ) -> None:
        assert version.traits is not None, "it has explained something"
        facts = Facts(version.traits, 1, dict(NEAR_BY.options))
        cost = RANK_STABILITY.expected_points(facts, points)
        evaluation = await self._engine.evaluate(version.ref, plan, (NEAR_BY,), first, cost)
        lowest = evaluation.measured[0].value
        if lowest is not None:
            self._near_by(version, lowest)


def _set_of(version: ModelVersion, plan: Plan) -> BaselineSet | None:
    """The baseline set of a plan, if another sample of it can be drawn."""
    inputs = version.manifest.inputs
    if plan.method != METHOD or plan.noise is not None or not inputs.components or not inputs.mean_is_row:
        return None
    sets = (listed for listed in version.manifest.baselines if "sha256:" + listed.sha256 == plan.baseline.digest)
    baseline = next(sets, None)
    return baseline if baseline is not None and baseline.size > 1 else None
