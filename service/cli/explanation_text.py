"""Explanations as people read them in a terminal: prediction, reasons, attributions as bars, errors, and the record."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping

from service.cli.printing import bar, local_time, one_line, shortened
from service.client import Explanation, Reason, Record, Segment, Verification

MAX_SHOWN = 8
NAME = 60
"""Columns of a name, fewer where the terminal has not so many."""
BESIDE_NAME = 36
"""Columns of the figure and the bar beside a name."""
MIN_NAME = 20

Titles = Mapping[str, str]
"""What features are called for people, by their names; one that is not there is called by its name."""


def explanation_lines(explanation: Explanation, titles: Titles) -> Iterator[str]:
    """What was predicted, why, and how exact that is."""
    yield f"  {'Prediction':<15}{_prediction(explanation)}"
    yield f"  {'Compared with':<15}{_baseline(explanation)}"
    yield f"  {'Method':<15}{explanation.method}"
    if explanation.reasons:
        yield from ("", f"  {'Principal reasons':<{_name_width()}}share of the difference")
        yield from (_reason(reason, explanation.change) for reason in explanation.reasons)
    if explanation.attributions is not None:
        yield from ("", "  Largest attributions, either way")
        yield from _attributions(explanation, titles)
    if explanation.segments:
        yield from ("", f"  {'Segments':<{_name_width()}}sum         share of all, either way")
        yield from map(_segment, explanation.segments)
    yield ""
    yield from _errors(explanation)
    if explanation.flags:
        yield f"  {'Flags':<21}{', '.join(explanation.flags)}"
    yield f"  {'On record as':<21}{explanation.id}"


def record_lines(record: Record) -> Iterator[str]:
    """When it was recorded, of whom, and where in the log."""
    yield f"  {'Recorded':<21}{local_time(record.created)}, row {record.ledger.sequence} of the log"
    about = {
        "Subject": record.subject,
        "Decision": record.decision_id,
        "Cohort": ", ".join(f"{name} {value}" for name, value in record.cohort.items()) or None,
    }
    yield from (f"  {name:<21}{one_line(value)}" for name, value in about.items() if value is not None)


def proof_lines(verification: Verification) -> Iterator[str]:
    """Whether the record is as it was written."""
    yield from (f"  FAULT  {one_line(fault)}" for fault in verification.faults)
    signed = f"held against the log of {verification.size} rows, signed {local_time(verification.signed)}"
    verdict = "VALID: as it was recorded" if verification.valid else "NOT VALID"
    yield f"  {'Proof':<21}{verdict}; {signed}"


def summary(explanation: Explanation, titles: Titles, count: int = 3) -> str:
    """The largest attributions in one cell of a table."""
    if explanation.attributions is None:
        return "not shown"
    ranked = explanation.attributions.ranked()[:count]
    return ", ".join(f"{shortened(titles.get(name, name), 24).rstrip()} {value:+.3g}" for name, value in ranked)


def explained(explanation: Explanation) -> str:
    """The explained output, as far as it is shown."""
    return "not shown" if explanation.output is None else f"{explanation.output:.4g}"


def _prediction(explanation: Explanation) -> str:
    said = "not shown" if explanation.prediction is None else one_line(explanation.prediction.text)
    if explanation.target is None or explanation.output is None:
        return said
    return f"{said}, {one_line(explanation.target.output(explanation.output_space))} {explanation.output:.3f}"


def _baseline(explanation: Explanation) -> str:
    baseline = explanation.baseline
    if baseline is None:
        return "not shown"
    of = (
        f"the mean of {baseline.size} rows of {baseline.name}" if baseline.size > 1 else f"the baseline {baseline.name}"
    )
    return of if explanation.baseline_output is None else f"{of}, {explanation.baseline_output:.3f}"


def _reason(reason: Reason, change: float | None) -> str:
    text = f"{reason.code or '':<5}{one_line(reason.text)}"
    if not change:
        return f"  {shortened(text, _name_width())}{reason.contribution:+.3f}"
    share = reason.contribution / abs(change)
    return f"  {shortened(text, _name_width())}{bar(share)} {share:.0%}"


def _segment(segment: Segment) -> str:
    share = "none" if segment.share is None else f"{bar(segment.share)} {segment.share:.0%}"
    return f"  {shortened(one_line(segment.name), _name_width())}{segment.sum:+.3g}".ljust(_name_width() + 14) + share


def _attributions(explanation: Explanation, titles: Titles) -> Iterator[str]:
    assert explanation.attributions is not None
    ranked = explanation.attributions.ranked()
    largest = abs(ranked[0][1]) if ranked else 0.0
    for name, value in ranked[:MAX_SHOWN]:
        shown = shortened(one_line(titles.get(name, name)), _name_width())
        yield f"  {shown}{value:+.3g}".ljust(_name_width() + 12) + (bar(abs(value) / largest) if largest else "")
    rest = ranked[MAX_SHOWN:]
    if rest:
        yield f"  {shortened(f'{len(rest)} others, in sum', _name_width())}{sum(value for _, value in rest):+.3g}"


def _errors(explanation: Explanation) -> Iterator[str]:
    if explanation.completeness_error is not None:
        yield f"  {'Completeness error':<21}{explanation.completeness_error:.1e} ({explanation.completeness})"
    if explanation.attribution_error is not None:
        yield f"  {'Attribution error':<21}{explanation.attribution_error:.1e}, estimated"
    if explanation.converged is not None:
        why = f" ({explanation.reason})" if explanation.reason else ""
        yield f"  {'Converged':<21}{'yes' if explanation.converged else 'no'}{why}"
    if explanation.evaluations is not None:
        took = "" if explanation.timings_ms is None else f", {explanation.timings_ms.compute:.1f} ms"
        yield f"  {'Points spent':<21}{explanation.evaluations} gradients{took}"


def _name_width() -> int:
    return min(max(shutil.get_terminal_size((120, 24)).columns - BESIDE_NAME, MIN_NAME), NAME)
