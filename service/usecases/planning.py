"""A request and a manifest become plans: frozen, complete, hashable. Impossible requests are refused here."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from reprlib import repr as abridged

from service.catalog.inputs.instances import read_instance
from service.catalog.inputs.kind import Detail, Over, Units
from service.catalog.manifest import PREDICTED, BaselineSet, Manifest
from service.catalog.nearest import did_you_mean, known
from service.catalog.review_rules import LABEL, OF_OUTPUTS, Rule, named_by, parse, parts_of
from service.catalog.traits import Axis, Traits
from service.catalog.versions import ModelVersion
from service.domain import (
    BaselineChoice,
    Noise,
    NoiseKind,
    OptionValue,
    Plan,
    Target,
    ToleranceOf,
    further_outputs,
)
from service.errors import InvalidRequest, Kind, ModelNotReady, invalid, pointer_to
from service.methods.registry import BY_NAME
from service.methods.spec import Components, Facts, MethodSpec

MAX_EVALUATIONS = 65_536
USUAL_BUDGET = 4096
MAX_CONTRIBUTIONS = 2**28
"""Numbers that one explanation may keep, one for each point and input: 1 GiB, and twice that while they are summed."""
MAX_TARGETS = 20
NOISE_SAMPLES = 25
NOISE_SCALE = 0.15
INLINE = "inline"
TOLERANCES = frozenset(ToleranceOf)
BEST = "best"
NO_BEST = (
    "there is no best method: metrics of faithfulness disagree, and each hangs on what stands in the place of removed "
    "components. `answerable models evaluate`, or a job of the kind `evaluate`, measures methods on this model; its "
    "description shows beside each method what was measured"
)


RequestedTarget = object
"""As a request has it: a label or a value, by its name or index; what is predicted; or an object, of two labels, of a
similarity or of a continuation. `service.usecases.references` puts what it has read of one in its place."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The `parameters` of a request; None stands for the manifest's default.

    `channels` asks for an image's attributions by channel too, `over` for sums of a series', `units` for those of a
    text's words or sentences in the place of its tokens', `stability` for how much of the ranking is left near the
    input. `targets` are several to explain of each instance, in the place of the one `target`; `places` are where each
    stands among the parameters, of which one may have become two. `when` says in the language of review rules which
    instances are explained; the others are predicted only.
    """

    method: str | None = None
    target: RequestedTarget | None = None
    targets: Sequence[RequestedTarget] | None = None
    places: Sequence[Sequence[str | int]] | None = None
    output_space: str | None = None
    baseline: object = None
    tolerance: float | None = None
    tolerance_of: str = ToleranceOf.ATTRIBUTION
    errors: bool = False
    stability: bool = False
    max_evaluations: int | None = None
    seed: int = 0
    deadline_ms: int | None = None
    strict: bool = False
    channels: bool = False
    over: str | None = None
    units: str | None = None
    when: str | None = None
    noise: Mapping[str, object] | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def detail(self) -> Detail:
        """What is asked for beside one attribution for each component."""
        over, units = self.over, self.units
        return Detail(self.channels, None if over is None else Over(over), None if units is None else Units(units))

    @property
    def requested(self) -> Sequence[RequestedTarget]:
        """The targets, each of which is an explanation of an instance."""
        return [self.target] if self.targets is None else self.targets

    def place_of(self, number: int) -> Sequence[str | int]:
        """Where the target of that number stands."""
        if self.targets is None:
            return ("target",)
        return ("targets", number) if self.places is None else self.places[number]

    @property
    def explanations(self) -> int:
        """How many explanations an instance has."""
        return len(self.requested)

    def of(self, number: int) -> Parameters:
        """Those of one explanation, by its number among those of all instances: with one target."""
        if self.targets is None:
            return self
        return replace(self, target=self.targets[number % len(self.targets)], targets=None, places=None)


@dataclass(frozen=True, slots=True)
class InlineBaseline:
    """The row of a baseline that came with the request."""

    row: tuple[float, ...]


def with_baseline_read(version: ModelVersion, parameters: Parameters) -> Parameters:
    """The parameters; a baseline that is an instance is read into its row, which takes time for texts and images.

    Raises InvalidRequest.
    """
    baseline = parameters.baseline
    if baseline is None or isinstance(baseline, str | InlineBaseline):
        return parameters
    try:
        row = read_instance(version.manifest, baseline, version.folder)
    except InvalidRequest as error:
        raise error.under(_place("baseline"), "baseline") from error
    return replace(parameters, baseline=InlineBaseline(row))


def make_plans(
    version: ModelVersion, rows: Sequence[tuple[float, ...]], parameters: Parameters, tenant: str | None = None
) -> list[Plan]:
    """The plans for each input row, one for each target; what the rows have in common is read once.

    Those of the first row come first, in the order of the targets. Raises what `make_plan` raises.
    """
    first = make_plan(version, rows[0], parameters, tenant)
    if version.manifest.inputs.depends_on_row(first.baseline.name):
        of_rows = [first, *(make_plan(version, row, parameters, tenant) for row in rows[1:])]
    else:
        of_rows = [first, *(_checked(version, replace(first, input=row)) for row in rows[1:])]
    if parameters.targets is None:
        return of_rows
    targets = _targets(version, parameters)
    return [_checked(version, replace(plan, target=target)) for plan in of_rows for target in targets]


def make_plan(version: ModelVersion, row: tuple[float, ...], parameters: Parameters, tenant: str | None = None) -> Plan:
    """The plan for one input row, and for the first of several targets.

    Baseline sets are those of the tenant and those shared by all; for None the latter. Raises InvalidRequest;
    ModelNotReady if the model was never loaded.
    """
    manifest = version.manifest
    method = _method(parameters.method or manifest.defaults.method)
    space = manifest.outputs.read_space(parameters.output_space)
    baseline = baseline_of(version, with_baseline_read(version, parameters).baseline, row, tenant)
    options = _options(version, method, parameters.options)
    facts = Facts(_traits(version), baseline.size, options)
    not_applicable = method.not_applicable(facts)
    if not_applicable is not None:
        raise invalid(Kind.UNFIT_METHOD, _place("method"), not_applicable)
    noise = _noise(parameters.noise, method)
    tolerance = manifest.defaults.tolerance if parameters.tolerance is None else parameters.tolerance
    if not 0 < tolerance <= 1:
        raise _wrong("tolerance", f"tolerance is {tolerance:g}; it must be over 0 and at most 1")
    tolerance_of = parameters.tolerance_of
    if tolerance_of not in TOLERANCES:
        detail = f"tolerance_of {abridged(tolerance_of)} is not known; {known('kinds', ToleranceOf)}"
        raise _wrong("tolerance_of", detail + did_you_mean(tolerance_of, ToleranceOf))
    if parameters.over is not None and Axis.TIME not in manifest.inputs.axes:
        raise _wrong("over", "over sums attributions of a series; this model takes none")
    if parameters.units is not None and Axis.POSITION not in manifest.inputs.axes:
        raise _wrong("units", "units sum attributions of a text; this model takes none")
    if parameters.stability and parameters.deadline_ms is not None:
        raise _wrong("stability", "stability is computed behind all other work, and can have no deadline")
    if parameters.seed < 0:
        raise _wrong("seed", "seed must not be negative")
    target = _target(version, parameters)
    plan = Plan(
        model=version.key,
        method=method.name,
        options=tuple(sorted(options.items())),
        input=row,
        target=target,
        output_space=space,
        baseline=baseline,
        tolerance=tolerance,
        max_evaluations=_budget(manifest, parameters, method, facts, noise, 1 + len(further_outputs(target))),
        seed=parameters.seed if method.uses_seed or noise is not None else 0,
        floor=manifest.floor.get(space),
        noise=noise,
        tolerance_of=ToleranceOf(parameters.tolerance_of),
        errors=parameters.errors,
    )
    return _checked(version, plan)


def _checked(version: ModelVersion, plan: Plan) -> Plan:
    """The plan. Raises InvalidRequest where its target is none for its row."""
    version.manifest.inputs.with_target(plan.input, plan.target)
    return plan


def expected_points(version: ModelVersion, plan: Plan) -> int:
    """The gradient points that work is admitted by: the usual cost, or all of a budget that is larger than usual."""
    if plan.max_evaluations > USUAL_BUDGET:
        return plan.max_evaluations
    usual = BY_NAME[plan.method].usual_points(Facts(_traits(version), plan.baseline.size, dict(plan.options)))
    copies = 1 if plan.noise is None else plan.noise.samples
    return min(plan.max_evaluations, usual * copies * (1 + len(further_outputs(plan.target))))


def least_evaluations(method: MethodSpec, facts: Facts, noise: Noise | None, explanations: int) -> int:
    """The smallest budget that gives any answer where so many `explanations` share it."""
    return method.least_points(facts) * (1 if noise is None else noise.samples) * explanations


def _budget(
    manifest: Manifest,
    parameters: Parameters,
    method: MethodSpec,
    facts: Facts,
    noise: Noise | None,
    explanations: int,
) -> int:
    """The budget in gradient points, which so many `explanations` share. Raises InvalidRequest where the method cannot
    answer within it."""
    budget = manifest.defaults.max_evaluations if parameters.max_evaluations is None else parameters.max_evaluations
    max_budget = min(MAX_EVALUATIONS, MAX_CONTRIBUTIONS // prod(facts.traits.shape))
    if not 1 <= budget <= max_budget:
        if parameters.max_evaluations is not None:
            of_size = "" if max_budget == MAX_EVALUATIONS else f" for inputs of {prod(facts.traits.shape)} numbers"
            detail = f"max_evaluations is {budget}; it must lie between 1 and {max_budget}{of_size}"
            raise _wrong("max_evaluations", detail)
        budget = max_budget
    least = least_evaluations(method, facts, noise, explanations)
    if least > budget:
        by_set = method.least_points(facts) != method.least_points(replace(facts, baseline_size=1))
        with_set = f" with a baseline set of {facts.baseline_size} rows" if by_set else ""
        with_noise = "" if noise is None else f" for {noise.samples} noisy copies"
        with_tokens = "" if explanations == 1 else f" for a continuation and its {explanations - 1} tokens"
        raise _wrong(
            "max_evaluations",
            f"{method.name}{with_set} needs at least {least} evaluations{with_noise}{with_tokens}, "
            f"max_evaluations is {budget}",
        )
    return budget


def _target(version: ModelVersion, parameters: Parameters) -> Target | None:
    if parameters.targets is None:
        return version.outputs.read_target(PREDICTED if parameters.target is None else parameters.target)
    if parameters.target is not None:
        raise _wrong("targets", "send either `target` or `targets`")
    return _targets(version, parameters)[0]


def _targets(version: ModelVersion, parameters: Parameters) -> list[Target | None]:
    """Raises InvalidRequest, with the place of the first that is wrong."""
    read: list[Target | None] = []
    outputs = version.outputs
    for number, target in enumerate(parameters.requested):
        try:
            read.append(outputs.read_target(target))
        except InvalidRequest as error:
            raise of_target(error, parameters.place_of(number)) from None
    return read


def of_target(error: InvalidRequest, place: Sequence[str | int]) -> InvalidRequest:
    """The same error where the target stands at another place among the parameters."""
    usual, own = _place("target"), _place(*place)
    faults = (
        replace(fault, pointer=own + fault.pointer.removeprefix(usual)) if fault.pointer.startswith(usual) else fault
        for fault in error.faults
    )
    return InvalidRequest(str(error), *faults)


def read_when(manifest: Manifest, text: str) -> Rule:
    """The rule that says which instances are explained: of what a prediction has. Raises InvalidRequest."""
    try:
        rule = parse(text)
        unknown = [name for name in rule.quantities if parts_of(name)[0] not in {*OF_OUTPUTS, LABEL}]
        if unknown:
            raise ValueError(f"{unknown[0]} is known of explanations only, and `when` is asked before there is one")
        for name, of in named_by(rule):
            manifest.outputs.check_quantity(name, of)
    except ValueError as error:
        raise _wrong("when", f"when: {error}") from None
    return rule


def _method(name: str) -> MethodSpec:
    if name == BEST:
        raise invalid(Kind.UNKNOWN_METHOD, _place("method"), NO_BEST)
    if name not in BY_NAME:
        detail = f"method {abridged(name)} is not known; {known('methods', BY_NAME)}{did_you_mean(name, BY_NAME)}"
        raise invalid(Kind.UNKNOWN_METHOD, _place("method"), detail)
    return BY_NAME[name]


def baseline_of(version: ModelVersion, requested: object, row: tuple[float, ...], tenant: str | None) -> BaselineChoice:
    """The baseline that is requested for a row: a set by its name, the inputs' own, or one that has been read.

    Raises InvalidRequest.
    """
    inputs = version.manifest.inputs
    if requested is None:
        requested = version.manifest.defaults.baseline
    if isinstance(requested, str) and requested == inputs.own_baseline:
        return _inline(requested, inputs.own_baseline_for(row))
    if isinstance(requested, str):
        chosen = _baseline_set(version, requested, tenant)
        return BaselineChoice(chosen.name, chosen.version, "sha256:" + chosen.sha256, chosen.size)
    assert isinstance(requested, InlineBaseline)
    obstacle = inputs.baseline_obstacle(requested.row, row)
    if obstacle is not None:
        raise _wrong("baseline", f"baseline: {obstacle}")
    return _inline(INLINE, requested.row)


def _inline(name: str, row: tuple[float, ...]) -> BaselineChoice:
    digest = hashlib.sha256(struct.pack(f"<{len(row)}d", *row)).hexdigest()
    return BaselineChoice(name, "1", f"sha256:{digest}", 1, row)


def _baseline_set(version: ModelVersion, requested: str, tenant: str | None) -> BaselineSet:
    """The set `name@version`; for a mere `name` its last version in the manifest, or else the last one kept since.

    Another tenant's set counts as one that does not exist. Raises InvalidRequest.
    """
    manifest = version.manifest
    name, at, number = requested.partition("@")
    listed = [s for s in manifest.baselines if s.name == name and (not at or s.version == number)]
    if listed:
        return listed[-1]
    usable = version.fitting_sets(tenant)
    kept = [s for s in version.sets_of(tenant) if s.name == name and (not at or s.version == number)]
    fitting = [s.listed for s in usable if s in kept]
    if fitting:
        return fitting[-1]
    if kept and not kept[-1].size:
        raise _wrong("baseline", f"baseline {name}@{kept[-1].version} was erased; use another")
    if kept:
        reason = kept[-1].stale_for(version.key, manifest)
        raise _wrong("baseline", f"baseline {name}@{kept[-1].version} is not for {version.key}: {reason}")
    names = [f"{s.name}@{s.version}" for s in [*manifest.baselines, *(s.listed for s in usable)]]
    names += [] if manifest.inputs.own_baseline is None else [manifest.inputs.own_baseline]
    near = did_you_mean(requested, [*names, *dict.fromkeys(name.partition("@")[0] for name in names)])
    detail = f"baseline {abridged(requested)} is not known; {known('baselines', names)}{near}"
    raise invalid(Kind.UNKNOWN_BASELINE, _place("baseline"), detail)


def _options(version: ModelVersion, method: MethodSpec, requested: Mapping[str, object]) -> dict[str, OptionValue]:
    if not requested:
        return method.defaults()
    by_name = {option.name: option for option in method.options}
    for name in requested:
        if name not in by_name:
            detail = f"{method.name} has no option {abridged(name)}; {known('options', by_name)}"
            raise invalid(Kind.UNKNOWN_OPTION, _place("options", name), detail + did_you_mean(name, by_name))
    inputs = version.manifest.inputs
    components = Components(inputs.component_names, inputs.component_count)
    read = method.defaults()
    for name, value in requested.items():
        try:
            read[name] = by_name[name].read(value, components)
        except ValueError as error:
            raise _wrong("options", str(error), name) from None
    return read


def _traits(version: ModelVersion) -> Traits:
    if version.traits is None:
        raise ModelNotReady("the model is not ready yet")
    return version.traits


def _noise(requested: Mapping[str, object] | None, method: MethodSpec) -> Noise | None:
    if requested is None:
        return None
    kind = requested.get("kind")
    samples, scale = requested.get("samples", NOISE_SAMPLES), requested.get("scale", NOISE_SCALE)
    if kind not in set(NoiseKind):
        detail = f"noise.kind is {abridged(kind)}; {known('kinds', NoiseKind)}{did_you_mean(kind, NoiseKind)}"
        raise _wrong("noise", detail, "kind")
    if type(samples) is not int or not 2 <= samples <= method.most_copies:
        detail = f"noise.samples must be a whole number from 2 to {method.most_copies} for {method.name}"
        raise _wrong("noise", detail, "samples")
    if type(scale) not in (int, float) or not 0 < scale <= 1:  # type: ignore[operator]
        raise _wrong("noise", "noise.scale must be over 0 and at most 1", "scale")
    return Noise(NoiseKind(kind), samples, float(scale))  # type: ignore[arg-type]


def deadline_of(parameters: Parameters, now: float) -> float | None:
    """The moment, on the clock of `now` in seconds, by which an answer is due. Raises InvalidRequest."""
    if parameters.deadline_ms is None:
        return None
    if parameters.deadline_ms < 1 or not math.isfinite(parameters.deadline_ms):
        raise _wrong("deadline_ms", "deadline_ms must be at least 1")
    return now + parameters.deadline_ms / 1000


def _place(*names: str | int) -> str:
    """Where a parameter stands in a request."""
    return pointer_to("parameters", *names)


def _wrong(parameter: str, detail: str, *within: str) -> InvalidRequest:
    """The error of a parameter whose value is impossible."""
    return invalid(Kind.WRONG_VALUE, _place(parameter, *within), detail)
