"""The stability probe computes again what the reference profile is of, and of the same target."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from service.domain import Explanation, OutputSpace, Plan, Timings
from service.engine.protocol import Engine, Evaluation
from service.faithfulness.subject import Measured
from service.lifecycle.checking.trial import Trial, load_trial
from service.monitoring.health import Health
from service.usecases.planning import Parameters, make_plan
from tests.conftest import MODELS


class Recorder:
    """An engine that answers every plan with the same explanation."""

    def __init__(self, explanation: Explanation) -> None:
        self._explanation = explanation
        self.plans: list[Plan] = []
        self.judged: list[Plan] = []

    async def explain(self, _ref: object, plan: Plan, *_: Any) -> tuple[Explanation, Timings]:
        """Keeps the plan."""
        self.plans.append(plan)
        return self._explanation, Timings(0.0, 0.0)

    async def evaluate(self, _ref: object, plan: Plan, *_: Any) -> Evaluation:
        """Keeps the plan, and finds that little is left of the ranking."""
        self.judged.append(plan)
        return Evaluation((Measured(0.25),))


@pytest.fixture(scope="module")
def trial() -> Trial:
    return load_trial(MODELS / "loan" / "1", torch.device("cpu"))


async def test_only_explanations_of_the_usual_target_are_computed_again(trial: Trial) -> None:
    """What is published is one mean: that of others would move it with what is asked, and not with the baseline."""
    version = trial.version
    usual = version.manifest.outputs.usual_target
    (row,) = (tuple(row.tolist()) for row in trial.sample(0, seed=0))
    plan = make_plan(version, row, Parameters(target=usual))
    explanation = trial.explained(plan)
    engine = Recorder(explanation)
    health = Health(cast(Engine, engine), 1.0)
    other = next(label for label in version.manifest.outputs.names if label != usual)
    plans = [
        make_plan(version, row, Parameters(target={"label": usual, "rather_than": other})),
        replace(plan, output_space=OutputSpace.LOGIT),
        plan,
    ]
    for each in plans:
        health.consider(version, each, explanation, 1)
        while health._probe._task is not None:
            await asyncio.wait({health._probe._task})
            await asyncio.sleep(0)
    await health.close()
    assert [each.target for each in engine.plans] == [explanation.target]
    assert engine.plans[0].baseline.name == "resampled"
    assert health._of(version).drift._stability.count == 1
    assert [each.target for each in engine.judged] == [explanation.target]
    assert engine.judged[0].baseline == plan.baseline
    drift = health._of(version).drift
    for _ in range(29):
        health.observe_near_by(version, 0.75)
    assert drift.near_by == pytest.approx((0.25 + 29 * 0.75) / 30, abs=1e-3)
