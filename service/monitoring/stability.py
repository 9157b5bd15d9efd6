"""Whether the order of the features holds under another sample of the baseline.

A small random share of the explanations is computed once more at bulk priority, from the mean of a bootstrap sample of
the baseline set: as many rows, drawn with replacement. What counts is the rank correlation of the absolute
attributions, both of the target that the first was of.
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
from service.domain import BaselineChoice, Explanation, Plan, PlanTarget, Priority
from service.engine.protocol import Engine
from service.errors import AnswerableError, CatalogError
from service.numerics.ranking import rank_correlation

LOG = logging.getLogger("answerable.monitoring")
METHOD = "integrated_gradients"
"""The method that starts from the set's mean, which can be given as a baseline of its own."""


class StabilityProbe:
    """Computes a random `share` of the explanations once more, one at a time; those that come meanwhile are left out.

    `observe` gets the version and the correlation.
    """

    def __init__(self, engine: Engine, share: float, observe: Callable[[ModelVersion, float], None]) -> None:
        self._engine = engine
        self._observe = observe
        self._share = share
        self._draw = random.Random()  # noqa: S311 - which explanations are chosen is no secret
        self._resample = np.random.default_rng()
        self._task: asyncio.Task[None] | None = None

    def consider(self, version: ModelVersion, plan: Plan, explanation: Explanation, expected_points: int) -> None:
        """Computes the explanation once more, or not, by chance; returns at once."""
        if self._draw.random() >= self._share or self._task is not None or explanation.attributions is None:
            return
        baseline = _set_of(version, plan)
        if baseline is None:
            return
        computation = self._compute_again(
            version, plan, explanation.target, explanation.attributions, expected_points, baseline
        )
        self._task = asyncio.get_running_loop().create_task(computation)
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

    async def _compute_again(
        self,
        version: ModelVersion,
        plan: Plan,
        target: PlanTarget,
        first: tuple[float, ...],
        points: int,
        baseline: BaselineSet,
    ) -> None:
        try:
            rows = await asyncio.to_thread(read_baseline_rows, version.folder, version.manifest, baseline)
            drawn = rows[self._resample.integers(len(rows), size=len(rows))].mean(axis=0, dtype=np.float64)
            resampled = BaselineChoice("resampled", "1", "", 1, tuple(drawn.tolist()))
            other = replace(plan, target=target, baseline=resampled)
            explanation, _ = await self._engine.explain(version.ref, other, points, Priority.BULK)
        except (AnswerableError, CatalogError):
            return  # the service has no time for it now, or stops
        if explanation.attributions is not None:
            correlation = rank_correlation(np.abs(np.array(first)), np.abs(np.array(explanation.attributions)))
            self._observe(version, correlation)


def _set_of(version: ModelVersion, plan: Plan) -> BaselineSet | None:
    """The baseline set of a plan, if another sample of it can be drawn."""
    inputs = version.manifest.inputs
    if plan.method != METHOD or plan.noise is not None or not inputs.components or not inputs.mean_is_row:
        return None
    sets = (listed for listed in version.manifest.baselines if "sha256:" + listed.sha256 == plan.baseline.digest)
    baseline = next(sets, None)
    return baseline if baseline is not None and baseline.size > 1 else None
