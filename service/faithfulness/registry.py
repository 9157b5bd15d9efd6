"""The metrics this service knows: a plain tuple, one entry a metric."""

from __future__ import annotations

from service.faithfulness.complexity import ENTROPY, GINI
from service.faithfulness.curves import ABPC, AOPC_LERF, AOPC_MORF, DELETION, DELETION_AGAINST_RANDOM, INSERTION
from service.faithfulness.drops import AVERAGE_DROP, AVERAGE_DROP_IN_DELETION, INCREASE_IN_CONFIDENCE
from service.faithfulness.fragility import RANK_STABILITY, TOP_STABILITY
from service.faithfulness.infidelity_and_sensitivity import INFIDELITY, MAX_SENSITIVITY
from service.faithfulness.information_curves import AIC, SIC
from service.faithfulness.localisation import ENERGY_POINTING_GAME, LOCALISATION, POINTING_GAME
from service.faithfulness.monotonicity import MONOTONICITY
from service.faithfulness.spec import MetricSpec

METRICS: tuple[MetricSpec, ...] = (
    DELETION,
    INSERTION,
    AOPC_MORF,
    AOPC_LERF,
    ABPC,
    DELETION_AGAINST_RANDOM,
    AVERAGE_DROP,
    AVERAGE_DROP_IN_DELETION,
    INCREASE_IN_CONFIDENCE,
    AIC,
    SIC,
    INFIDELITY,
    MAX_SENSITIVITY,
    RANK_STABILITY,
    TOP_STABILITY,
    MONOTONICITY,
    POINTING_GAME,
    ENERGY_POINTING_GAME,
    LOCALISATION,
    ENTROPY,
    GINI,
)

BY_NAME = {entry.name: entry for entry in METRICS}
