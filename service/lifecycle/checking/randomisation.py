"""The randomisation test: how much of the explanations is left when the network's weights are random.

An explanation that stays as it was says nothing of what the network has learned. See
`service.engine.worker.randomising` for the networks and `service.faithfulness.similarity` for what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from service.domain import Explanation, Floats, Plan
from service.engine.worker.randomising import layers_of, randomised
from service.faithfulness.similarity import similarities
from service.lifecycle.checking.trial import Trial


@dataclass(frozen=True, slots=True)
class Layer:
    """What is left once the weights of a layer are random: by similarity the mean over inputs. `layer` is the last of
    those that are, where they are randomised one after the other."""

    layer: str
    similarities: dict[str, float]


def by_layer(trial: Trial, rows: Floats, method: str, *, cascading: bool, seed: int = 0) -> Iterator[Layer]:
    """Layer by layer from the output: with all layers above it (`cascading`), or each alone (independent)."""
    plans, before = _explained(trial, rows, method)
    layers = layers_of(trial.model)
    for at, layer in enumerate(layers):
        yield Layer(layer, _left(trial, plans, before, layers[: at + 1] if cascading else [layer], seed))


def of_whole_network(trial: Trial, rows: Floats, method: str, seed: int = 0) -> dict[str, float]:
    """What is left once all weights are random."""
    plans, before = _explained(trial, rows, method)
    return _left(trial, plans, before, layers_of(trial.model), seed)


def _explained(trial: Trial, rows: Floats, method: str) -> tuple[list[Plan], list[Explanation]]:
    """Plans that name the target, which a random network would choose otherwise, and their explanations."""
    plans = trial.plans(rows, method)
    explained = trial.explained_together(plans)
    return [replace(plan, target=one.target) for plan, one in zip(plans, explained, strict=True)], explained


def _left(
    trial: Trial, plans: Sequence[Plan], before: Sequence[Explanation], layers: Sequence[str], seed: int
) -> dict[str, float]:
    random = replace(trial, model=randomised(trial.model, layers, seed))
    after = random.explained_together(plans)
    traits = trial.model.traits
    space = (traits.shape[-2], traits.shape[-1]) if traits.has_space else None
    found = [
        similarities(trial.by_feature(one), trial.by_feature(other), space)
        for one, other in zip(before, after, strict=True)
    ]
    return {name: _mean([one[name] for one in found]) for name in found[0]}


def _mean(values: Sequence[float]) -> float:
    """Of those that there are: a random network may have no map at all, which is like no other. NaN of none."""
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan
