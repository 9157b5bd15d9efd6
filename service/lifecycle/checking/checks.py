"""The checks that a version passes before it is promoted."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from service.catalog.assessments import Profile
from service.catalog.manifest import read_manifest
from service.catalog.version_files import read_artefact, read_baseline_rows
from service.domain import Completeness, Floats, Indices
from service.errors import AnswerableError, CatalogError
from service.faithfulness.registry import BY_NAME
from service.faithfulness.summary import figure_of
from service.lifecycle.checking.comparison import FEATURES_OF_A_FLIP, METHOD, Comparison, Flip, compare
from service.lifecycle.checking.evaluating import measured_of
from service.lifecycle.checking.figures import importance, random_halves
from service.lifecycle.checking.limits import Limits
from service.lifecycle.checking.randomisation import of_whole_network
from service.lifecycle.checking.trial import Answers, Trial, load_trial
from service.monitoring.review import protected_share
from service.numerics.ranking import rank_correlation
from service.usecases.evaluating import read_measures
from service.wording import number_of

SPLITS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `passed` is None where it does not apply, `limit` None where it has no option."""

    check: str
    passed: bool | None
    detail: str
    figure: float | None = None
    limit: float | None = None
    is_least: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Every finding about a version, and the comparison with an earlier one, where there was one.

    `profile` is the importance of its features, None where nothing could be explained; `notes` are for those who send
    instances.
    """

    version: str
    findings: tuple[Finding, ...]
    against: str | None = None
    comparison: Comparison | None = None
    profile: Profile | None = None
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> list[str]:
        """The checks that failed."""
        return [finding.check for finding in self.findings if finding.passed is False]


def at_least(check: str, figure: float, limit: float, detail: str) -> Finding:
    """Passed if the figure is at least the limit; never for NaN."""
    return Finding(check, figure >= limit, detail, figure, limit, is_least=True)


def at_most(check: str, figure: float, limit: float, detail: str) -> Finding:
    """Passed if the figure does not pass the limit; what is not a number does."""
    return Finding(check, figure <= limit, detail, figure, limit)


def check(
    folder: Path,
    against: Path | None,
    device: torch.device,
    limits: Limits,
    rows: int,
    seed: int,
    trial: Trial | None = None,
) -> Report:
    """Checks the version in `folder`, also against an earlier one. What cannot be loaded or explained has failed.

    `trial` is the version as it was loaded on the device, if it was already.
    """
    name = _name(folder)
    earlier = None if against is None else _name(against)
    findings = [digests(folder)]
    if not findings[0].passed:
        return Report(name, tuple(findings), earlier)
    try:
        trial = trial or load_trial(folder, device)
    except CatalogError as error:
        return Report(name, (*findings, Finding("parity", False, str(error))), earlier)
    findings.append(Finding("parity", True, "twin and artefact agree", trial.model.parity))
    profile, notes = None, trial.manifest.inputs.notes()
    try:
        answers = trial.answers(trial.sample(rows, seed))
        profile = profile_of(trial, answers)
        findings += [converged(answers, limits), flagged(trial, answers, limits), stability(trial, limits, rows, seed)]
        findings += faithful(trial, seed)
    except AnswerableError as error:
        findings.append(Finding("explanations", False, str(error)))
    if against is None:
        return Report(name, tuple(findings), profile=profile, notes=notes)
    try:
        comparison = compare(load_trial(against, device), trial, rows, seed)
    except (AnswerableError, CatalogError) as error:
        return Report(
            name, (*findings, Finding("comparison", False, str(error))), earlier, profile=profile, notes=notes
        )
    return Report(name, (*findings, *compared(comparison, limits)), earlier, comparison, profile, notes)


def _name(folder: Path) -> str:
    return f"{folder.parent.name}@{folder.name}"


def digests(folder: Path) -> Finding:
    """Whether the artefact and the baseline sets are those of the manifest."""
    try:
        manifest, key, _ = read_manifest(folder)
        read_artefact(folder, manifest.artefact)
        for baseline in manifest.baselines:
            read_baseline_rows(folder, manifest, baseline)
    except CatalogError as error:
        return Finding("digest", False, str(error))
    return Finding("digest", True, f"{key.digest[:19]}…, {number_of(len(manifest.baselines), 'baseline set')}")


def profile_of(trial: Trial, answers: Answers) -> Profile | None:
    """The importance of the features with the default method, over the rows for which the model answered numbers."""
    explained = answers.attributions[np.isfinite(answers.attributions).all(axis=1)]
    if not len(explained):
        return None
    defaults, outputs, baseline = trial.manifest.defaults, trial.manifest.outputs, trial.baseline
    values = (float(f"{value:.6g}") for value in importance(explained))
    return Profile(
        defaults.method,
        outputs.default_space.value,
        outputs.usual_target,
        None if baseline is None else "sha256:" + baseline.sha256,
        len(explained),
        dict(zip(trial.features, values, strict=True)),
    )


def converged(answers: Answers, limits: Limits) -> Finding:
    """The share of explanations that are complete to the default tolerance."""
    explanations = answers.explanations
    done = sum(explanation.converged for explanation in explanations)
    if all(explanation.completeness is Completeness.NONE and explanation.converged for explanation in explanations):
        return Finding("completeness", None, "the default method promises no sum")
    largest = max((e.completeness_error for e in explanations if e.completeness_error is not None), default=None)
    error = "" if largest is None else f"; largest error {largest:.1e}"
    detail = f"{done} of {len(explanations)} rows converged{error}"
    return at_least("completeness", done / len(explanations), limits.least_converged, detail)


def flagged(trial: Trial, answers: Answers, limits: Limits) -> Finding:
    """The share of explanations that the manifest's rule on protected features would send to review."""
    limit, inputs = trial.manifest.review.protected_share, trial.manifest.inputs
    if limit is None:
        return Finding("protected share", None, "the manifest has no rule on protected features")
    shares = [protected_share(inputs, explanation.attributions) for explanation in answers.explanations]
    over = sum(share is not None and share > limit for share in shares)
    detail = f"{over} of {len(shares)} rows with over {limit:g} on protected features"
    return at_most("protected share", over / len(shares), limits.most_flagged, detail)


def stability(trial: Trial, limits: Limits, rows: int, seed: int) -> Finding:
    """The rank correlation of the features' mean absolute attributions between random halves of the baseline set.

    It is the stability for a set of half the size; that of the whole set is rather higher.
    """
    baselines = trial.baseline_rows()
    if len(baselines) < 2:
        return Finding("stability", None, "the default baseline is no set that could be halved")
    sample = trial.sample(rows, seed)

    def importance_from(half: Indices) -> Floats:
        mean = trial.mean_instance(baselines[half])
        return importance(trial.answers(sample, METHOD, mean).attributions)

    halves = random_halves(len(baselines), SPLITS, seed)
    correlations = [rank_correlation(importance_from(one), importance_from(other)) for one, other in halves]
    detail = f"rank correlation between halves of the {len(baselines)} baselines, median of {SPLITS} halvings"
    return at_least("stability", float(np.median(correlations)), limits.least_stability, detail)


def faithful(trial: Trial, seed: int) -> Iterator[Finding]:
    """The findings on the default method that the manifest sets limits for."""
    limits, method = trial.manifest.faithfulness, trial.manifest.defaults.method
    sample = trial.sample(limits.rows - 1, seed)
    of = f"{method}, {number_of(len(sample), 'row')}"
    if limits.most_surviving is not None:
        left = of_whole_network(trial, sample, method, seed)["spearman"]
        detail = f"rank correlation of attributions with those of a network of random weights; {of}"
        yield at_most("randomisation", left, limits.most_surviving, detail)
    for check, metric, least, most in (
        ("deletion", "deletion_against_random", limits.least_against_random, None),
        ("sensitivity", "max_sensitivity", None, limits.most_sensitive),
    ):
        if least is None and most is None:
            continue
        (measure,) = read_measures(trial.version, [metric], {})
        figure = figure_of(method, measure, measured_of(trial, trial.plans(sample, method), measure))
        mean = math.nan if figure.mean is None else figure.mean
        replaced = "" if figure.replaced is None else f", replaced by {figure.replaced}"
        detail = f"{BY_NAME[metric].description}{replaced}; {of}"
        yield at_least(check, mean, least, detail) if least is not None else at_most(check, mean, most or 0.0, detail)


def compared(comparison: Comparison, limits: Limits) -> Iterator[Finding]:
    """The findings of a comparison with an earlier version."""
    shared = sum(feature.before is not None and feature.after is not None for feature in comparison.features)
    detail = f"of {shared} features in common, by mean absolute attribution"
    yield at_least("rank correlation", comparison.correlation, limits.least_correlation, detail)
    if not comparison.decides:
        yield Finding("flips", None, "values that no bound is set for decide nothing that could flip")
        return
    detail = f"{len(comparison.flips)} of {comparison.rows} rows are predicted otherwise{_driven_by(comparison.flips)}"
    yield at_most("flips", comparison.flipped, limits.most_flipped, detail)


def _driven_by(flips: Sequence[Flip]) -> str:
    """The features whose attributions changed most over the rows that flipped, as listed in the flips."""
    changed: defaultdict[str, float] = defaultdict(float)
    for flip in flips:
        for name, difference in flip.features.items():
            changed[name] += abs(difference)
    most = sorted(changed, key=lambda name: -changed[name])[:FEATURES_OF_A_FLIP]
    return f"; their attributions changed most by {', '.join(most)}" if most else ""
