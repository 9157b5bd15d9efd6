"""How much of one explanation's ranking is left near its input, where the prediction is the same."""

from __future__ import annotations

from service.access.quotas import Account, charged
from service.answers.items import StabilityItem
from service.catalog.versions import ModelVersion
from service.domain import Explanation, Plan
from service.engine.protocol import Engine, Evaluation
from service.faithfulness.fragility import BOUND, RADIUS, RANK_STABILITY, TOP_STABILITY
from service.usecases.evaluating import expected_cost

MEASURES = RANK_STABILITY.asked(), TOP_STABILITY.asked()
"""Of one search, whose cost is that of one of them."""
NO_ATTRIBUTIONS = "the explanation has no attributions"


async def stability_of(
    engine: Engine, version: ModelVersion, plan: Plan, explanation: Explanation, account: Account | None
) -> StabilityItem:
    """What `service.faithfulness.fragility` finds, at bulk priority; charged with what it is expected to cost.

    Raises QuotaSpent, and what the engine raises.
    """
    cost = expected_cost(version, plan, MEASURES[:1], is_explained=True)

    async def evaluate() -> Evaluation:
        return await engine.evaluate(version.ref, plan, MEASURES, explanation.attributions, cost)

    if explanation.attributions is None:
        return StabilityItem(radius=RADIUS, bound=BOUND, why=NO_ATTRIBUTIONS)
    evaluation = await charged(account, cost, evaluate, lambda _: cost)
    rank, top = evaluation.measured
    return StabilityItem(rank_correlation=rank.value, top_share=top.value, radius=RADIUS, bound=BOUND, why=rank.reason)
