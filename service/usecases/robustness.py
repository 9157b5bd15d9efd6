"""`GET /v1/explanations/{id}/robustness`: a stored explanation computed with other choices, and what of it stays.

The plan on record is computed as it is, and with one choice changed at a time: the baseline (every other set of the
model, and the inputs' own baseline), the seed where something is drawn, the tolerance (ten times as fine, and as
coarse), and the noise. All is computed at bulk priority and recorded nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.access.callers import Caller
from service.access.permissions import Policy
from service.access.quotas import Account, charged, counted
from service.answers.disclosure import shown_values
from service.answers.explanation import gives_reasons
from service.answers.items import DisclosureItem, RecordedNoise
from service.answers.reading import NOT_WHOLE, personal_of, record_of
from service.answers.reasons import principal_reasons
from service.answers.robustness import ChoiceItem, RobustnessReply, Shown, correlation, principal, statements
from service.catalog.versions import Catalog, ModelVersion
from service.domain import Explanation, Noise, NoiseKind, Plan, Priority, further_outputs
from service.engine.protocol import Engine
from service.errors import InvalidRequest, NotFound, ReplayImpossible
from service.ledger.entries import LogChanged, Stored
from service.methods.registry import BY_NAME
from service.methods.spec import Facts
from service.usecases.explaining import all_of, refuse_method
from service.usecases.fragility import stability_of
from service.usecases.planning import NOISE_SAMPLES, NOISE_SCALE, baseline_of, expected_points, least_evaluations
from service.usecases.replaying import missing_parts, plan_of, version_of

MOST_BASELINES = 6
SEEDS = 3
SCALES = 0.05, NOISE_SCALE
"""Of the noise around an explanation without any, as shares of each input's range."""
TIMES = 10.0
"""By how much the tolerance is finer and coarser."""
NOTHING_STATED = "the explanation has no attributions, so there is nothing in it that could hold or not"


@dataclass(frozen=True, slots=True)
class _Choice:
    """One choice changed: the plan with it, and the fields of its item; or what is in its way."""

    told: dict[str, Any]
    plan: Plan | None
    why: str | None = None


class Robustness:
    """Makes sensitivity tables of stored explanations."""

    def __init__(self, engine: Engine, catalog: Catalog) -> None:
        self._engine = engine
        self._catalog = catalog

    async def table(self, stored: Stored, caller: Caller) -> RobustnessReply:
        """Which statements of an explanation hold under every choice, as far as the caller's policy shows values.

        Every choice counts as a request, as if the caller had asked for it. Raises NotFound for an explanation without
        attributions; ReplayImpossible where it is not whole, or its artefact or baseline is no longer here;
        ModelNotReady, PolicyForbids, QuotaSpent, and what the engine raises.
        """
        policy = caller.policy
        try:
            version, plan = self._recorded(stored)
        except (LogChanged, *NOT_WHOLE):
            raise ReplayImpossible("the record of the explanation is not what was written") from None
        refuse_method(policy, plan.method)
        choices = [_checked(version, choice) for choice in _choices(version, plan, stored.tenant)]
        explained = await self._explained(version, choices, caller.account)
        computed = {
            place: _shown(version, choices[place].plan or plan, explanation, policy)
            for place, explanation in explained.items()
            if explanation.attributions is not None
        }
        if 0 not in computed:
            raise NotFound(NOTHING_STATED)
        stability = None
        if not policy.limits_values:
            stability = await stability_of(self._engine, version, plan, explained[0], caller.account)
        items = [
            _item(version, computed[0], choice, computed.get(place), explained.get(place), policy)
            for place, choice in enumerate(choices)
        ]
        return RobustnessReply(
            id=stored.id,
            statements=statements(version.manifest.inputs.component_labels, computed[0], computed),
            choices=tuple(items),
            stability=stability,
            evaluations=sum(one.evaluations for one in explained.values()),
            disclosure=DisclosureItem.of(policy) if policy.limits_values else None,
        )

    async def _explained(
        self, version: ModelVersion, choices: Sequence[_Choice], account: Account | None
    ) -> Mapping[int, Explanation]:
        """The explanations by the place of their choice, of those that have a plan."""
        plans = {place: choice.plan for place, choice in enumerate(choices) if choice.plan is not None}

        async def all_computed() -> list[Explanation]:
            return await all_of([self._computed(version, plan) for plan in plans.values()])

        most = sum(plan.max_evaluations for plan in plans.values())
        with counted(account, len(plans)):
            found = await charged(account, most, all_computed, lambda done: sum(one.evaluations for one in done))
        return dict(zip(plans, found, strict=True))

    def _recorded(self, stored: Stored) -> tuple[ModelVersion, Plan]:
        """The version and the plan on record."""
        record, personal = record_of(stored), personal_of(stored)
        if record.model is None:
            raise LogChanged("the record names no model")
        version = version_of(self._catalog, record.model)
        missing = next(missing_parts(record, version, stored.tenant), None)
        if missing is not None:
            raise ReplayImpossible(f"the {missing.what} of the explanation is not here as it was")
        return version, plan_of(record, personal, version)

    async def _computed(self, version: ModelVersion, plan: Plan) -> Explanation:
        points = expected_points(version, plan)
        explanation, _ = await self._engine.explain(version.ref, plan, points, Priority.BULK)
        return explanation


def _choices(version: ModelVersion, plan: Plan, tenant: str) -> Iterator[_Choice]:
    yield _Choice({"changed": "nothing"}, plan)
    yield from _baselines(version, plan, tenant)
    if BY_NAME[plan.method].uses_seed or plan.noise is not None:
        for seed in range(plan.seed + 1, plan.seed + 1 + SEEDS):
            yield _Choice({"changed": "seed", "seed": seed}, replace(plan, seed=seed))
    for tolerance in (plan.tolerance / TIMES, min(1.0, plan.tolerance * TIMES)):
        if tolerance != plan.tolerance:
            yield _Choice({"changed": "tolerance", "tolerance": tolerance}, replace(plan, tolerance=tolerance))
    for noise in _noises(plan.noise):
        told = None if noise is None else RecordedNoise(kind=noise.kind.value, samples=noise.samples, scale=noise.scale)
        yield _Choice({"changed": "noise", "noise": told}, replace(plan, noise=noise))


def _baselines(version: ModelVersion, plan: Plan, tenant: str) -> Iterator[_Choice]:
    """The last version of every other set, and the inputs' own baseline."""
    inputs = version.manifest.inputs
    sets = [*version.manifest.baselines, *(kept.listed for kept in version.fitting_sets(tenant))]
    latest = {listed.name: f"{listed.name}@{listed.version}" for listed in sets}
    names = [*latest.values(), *([] if inputs.own_baseline is None else [inputs.own_baseline])]
    changed = 0
    for name in names:
        told = {"changed": "baseline", "baseline": name}
        try:
            baseline = baseline_of(version, name, plan.input, tenant)
        except InvalidRequest as error:
            yield _Choice(told, None, str(error))
            continue
        if baseline.digest != plan.baseline.digest and changed < MOST_BASELINES:
            changed += 1
            yield _Choice(told, replace(plan, baseline=baseline))


def _noises(noise: Noise | None) -> Sequence[Noise | None]:
    """Others than this; a variance over copies stays one, for without noise there is none."""
    if noise is None:
        return [Noise(NoiseKind.SMOOTHGRAD, NOISE_SAMPLES, scale) for scale in SCALES]
    others = [replace(noise, scale=scale) for scale in (noise.scale / 2, min(1.0, noise.scale * 2))]
    without = [None] if noise.kind is NoiseKind.SMOOTHGRAD else []
    return [*without, *(other for other in others if other != noise)]


def _checked(version: ModelVersion, choice: _Choice) -> _Choice:
    """The choice; without its plan where the method cannot be computed with it."""
    plan = choice.plan
    if plan is None:
        return choice
    assert version.traits is not None
    method, facts = BY_NAME[plan.method], Facts(version.traits, plan.baseline.size, dict(plan.options))
    copies = 1 if plan.noise is None else plan.noise.samples
    least = least_evaluations(method, facts, plan.noise, 1 + len(further_outputs(plan.target)))
    why = method.not_applicable(facts)
    if why is None and copies > method.most_copies:
        why = f"{method.name} takes at most {method.most_copies} noisy copies"
    if why is None and least > plan.max_evaluations:
        why = f"it needs {least} evaluations at least, and max_evaluations is {plan.max_evaluations}"
    return choice if why is None else replace(choice, plan=None, why=why)


def _shown(version: ModelVersion, plan: Plan, explanation: Explanation, policy: Policy) -> Shown:
    assert explanation.attributions is not None
    reasons = principal_reasons(version.manifest, explanation) if gives_reasons(plan, explanation) else None
    return Shown(
        shown_values(explanation.attributions, policy), explanation.attribution_errors, (reasons or ())[: policy.top]
    )


def _item(
    version: ModelVersion,
    recorded: Shown,
    choice: _Choice,
    shown: Shown | None,
    explanation: Explanation | None,
    policy: Policy,
) -> ChoiceItem:
    if shown is None or explanation is None:
        return ChoiceItem(**choice.told, why=choice.why or "the model answered no finite number")
    names = version.manifest.inputs.component_labels
    return ChoiceItem(
        **choice.told,
        converged=explanation.converged,
        attributions={names[place]: shown.value(place) for place in principal(recorded) if place in shown.values},
        rank_correlation=None if policy.top is not None else correlation(recorded, shown),
    )
