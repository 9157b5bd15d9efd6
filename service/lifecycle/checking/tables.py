"""Reports and comparisons as they are printed and exported."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import orjson

from service.lifecycle.checking.checks import Finding, Report
from service.lifecycle.checking.comparison import Comparison

MAX_LINES = 5
RESULTS = {True: "passed", False: "FAILED", None: "not applicable"}
COLUMNS = ("feature", "before", "after", "difference", "rank_before", "rank_after")


def report_text(report: Report) -> str:
    """The table of a check, then what changed, then the verdict."""
    cells = [(f.check, _figure(f.figure), _limit(f), RESULTS[f.passed], f.detail) for f in report.findings]
    lines = _table([("check", "figure", "limit", "result", ""), *cells])
    if report.comparison is not None:
        lines += ["", *_changed(report.comparison)]
    lines += ["", *report.notes] if report.notes else []
    name = report.version if report.against is None else f"{report.version} against {report.against}"
    verdict = f"FAILED: {', '.join(report.failed)}" if report.failed else "passed"
    return "\n".join([*lines, "", f"{name}: {verdict}"])


def report_json(report: Report) -> str:
    """A check as one object; `comparison` is null where there was none."""
    body = {
        "version": report.version,
        "against": report.against,
        "passed": not report.failed,
        "failed": report.failed,
        "checks": findings_body(report),
        "notes": report.notes,
        "comparison": None if report.comparison is None else _body(report.comparison),
    }
    return _dumped(body)


def findings_body(report: Report) -> list[dict[str, Any]]:
    """The checks as objects; `limit_is` says on which side of the limit a figure passes."""
    return [
        {
            "check": f.check,
            "passed": f.passed,
            "figure": f.figure,
            "limit": f.limit,
            "limit_is": None if f.limit is None else "least" if f.is_least else "most",
            "detail": f.detail,
        }
        for f in report.findings
    ]


def comparison_text(comparison: Comparison) -> str:
    """The table by feature, then the figures of the whole."""
    form = _form(comparison)
    head = ("feature", comparison.before, "rank", comparison.after, "rank", "difference")
    cells = [
        (
            f.feature,
            _number(f.before, form),
            _rank(f.rank_before),
            _number(f.after, form),
            _rank(f.rank_after),
            _change(f.difference, form),
        )
        for f in comparison.features
    ]
    summary = [
        _models(comparison),
        f"mean absolute attribution over {comparison.rows} rows",
        f"rank correlation {comparison.correlation:.3f}, over the features in common",
        *_agreement(comparison),
        f"{len(comparison.flips)} rows ({comparison.flipped:.1%}) are predicted otherwise"
        if comparison.decides
        else "values that no bound is set for decide nothing that could flip",
    ]
    return "\n".join([*_table([head, *cells]), "", *summary, *_changed(comparison)])


def _agreement(comparison: Comparison) -> list[str]:
    """In words, row by row."""
    of = comparison.agreement
    return [
        f"row by row: rank correlation {of.correlation:.3f} in the median; of the {of.top} largest attributions "
        f"{of.overlap:.0%} are the same features;",
        f"{of.sign_flips:.1%} of the attributions that count have another sign; they are {of.apart:.1%} apart",
    ]


def _models(comparison: Comparison) -> str:
    before, after = (digest[:19] + "…" for digest in comparison.digests)
    if comparison.is_one_model:
        return f"one model: both are the artefact {before}"
    return f"two different models, {before} and {after}: what differs here is theirs, and no change of a person's"


def comparison_json(comparison: Comparison) -> str:
    """A comparison as one object."""
    return _dumped(_body(comparison))


def comparison_csv(comparison: Comparison) -> str:
    """The table by feature; cells of features that a version lacks are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(comparison))
    return out.getvalue()


def _changed(comparison: Comparison) -> list[str]:
    """The features that changed most, and the flips."""
    form = _form(comparison)
    changes = [f"{f.feature} {_change(f.difference, form)}" for f in comparison.most_changed[:MAX_LINES]]
    lines = [f"changed most: {', '.join(changes)}"]
    for flip in comparison.flips[:MAX_LINES]:
        features = ", ".join(f"{name} {_change(change, form)}" for name, change in flip.features.items())
        lines.append(f"row {flip.row}: {flip.before} -> {flip.after}; {features}")
    if len(comparison.flips) > MAX_LINES:
        lines.append(f"and {len(comparison.flips) - MAX_LINES} more rows")
    if comparison.filled:
        lines.append(f"not in the rows, so at the baselines' median: {', '.join(comparison.filled)}")
    return lines


def _body(comparison: Comparison) -> dict[str, Any]:
    return {
        "before": comparison.before,
        "after": comparison.after,
        "digests": comparison.digests,
        "one_model": comparison.is_one_model,
        "rows": comparison.rows,
        "rank_correlation": comparison.correlation,
        "agreement": comparison.agreement,
        "flipped": comparison.flipped if comparison.decides else None,
        "flips": comparison.flips,
        "filled": comparison.filled,
        "features": _rows(comparison),
    }


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [{name: getattr(feature, name) for name in COLUMNS} for feature in comparison.features]


def _dumped(body: dict[str, Any]) -> str:
    """JSON in which NaN becomes null."""
    return orjson.dumps(body, option=orjson.OPT_INDENT_2).decode()


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" if 0 < abs(value) < 0.001 else "no number" if math.isnan(value) else f"{value:.3f}"


def _limit(finding: Finding) -> str:
    if finding.limit is None:
        return "-"
    return f"{'at least' if finding.is_least else 'at most'} {finding.limit:g}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _change(value: float, form: str) -> str:
    return format(value, "+" + form)


def _form(comparison: Comparison) -> str:
    """Four places are right for probabilities and logits; of values in large or small units four digits say as much."""
    figures = (figure for one in comparison.features for figure in (one.before, one.after))
    largest = max((abs(figure) for figure in figures if figure is not None), default=0.0)
    return ".4f" if largest == 0 or 0.01 <= largest < 1e4 else ".4g"


def _rank(value: int | None) -> str:
    return "-" if value is None else str(value)
