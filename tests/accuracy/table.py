"""The lines of a run as a table in markdown, and what holds of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import numpy as np

from tests.accuracy.approaches import APPROACHES
from tests.accuracy.measuring import Line
from tests.accuracy.networks import NETWORKS
from tests.accuracy.sampling import Sampled

HEAD = (
    "| network | method, rule | space | tolerance | covered | true over stated: median (95th) | true, median | points "
    "| converged |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
HEAD_OF_NETWORKS = (
    "| network | all | integrated_gradients | expected_gradients | blur_ig | guided_ig | integrated_hessians |\n"
    "|---|---|---|---|---|---|---|"
)
METHODS = ("integrated_gradients", "expected_gradients", "blur_ig", "guided_ig", "integrated_hessians")
SEVERAL = {rule.name for approach in APPROACHES if len(approach.rules) > 1 for rule in approach.rules}
OF_ALL, OF_EACH = 0.95, 0.90
MOST_OVERSTATED = 10.0


def rows_of(lines: Sequence[Line]) -> list[str]:
    """A row of the table for each network, rule and space, with the figures of all tolerances."""
    return [_row(list(own)) for _, own in groupby(lines, key=lambda line: (line.network, line.rule, line.space))]


def _row(lines: Sequence[Line]) -> str:
    def each(cell: Callable[[Line], str]) -> str:
        cells = [cell(line) for line in lines]
        return cells[0] if len(set(cells)) == 1 else ", ".join(cells)

    first, inputs = lines[0], len(lines[0].figures)
    cells = (
        shown(first.network),
        first.rule,
        first.space,
        ", ".join(f"{line.tolerance:g}" for line in lines),
        f"{each(lambda line: str(line.covered))} of {inputs}",
        each(lambda line: "{:.2g} ({:.2g})".format(*np.percentile(line.ratios, [50, 95]))),
        each(lambda line: f"{np.median(line.of('true')):.0e}"),
        each(lambda line: f"{line.of('points').mean():.0f}"),
        each(lambda line: f"{line.of('converged').sum():.0f}"),
    )
    return f"| {' | '.join(cells)} |"


def shown(network: str) -> str:
    """Its name, marked where the estimates were tuned on it."""
    return network + ("*" if NETWORKS[network].is_tuned else "")


def rows_of_networks(lines: Sequence[Line]) -> list[str]:
    """A row for each network, those not tuned on first: how much of its answers is covered, in all and by method, and
    in brackets the median of the true error over the stated one."""
    return [
        f"| {shown(name)} | {_share(own):.1%} | {' | '.join(_of_method(own, method) for method in METHODS)} |"
        for name, own in sorted(_grouped(lines, lambda line: line.network), key=lambda found: _place(found[0]))
    ]


def _place(network: str) -> tuple[bool, int]:
    return NETWORKS[network].is_tuned, list(NETWORKS).index(network)


def _of_method(lines: Sequence[Line], method: str) -> str:
    own = [line for line in lines if _method(line) == method]
    return f"{_share(own):.1%} ({_median(own):.2g})" if own else ""


def _method(line: Line) -> str:
    """Rules are named by their method and what they are of it."""
    return line.rule.split(",")[0]


def _rule(line: Line) -> str:
    """Of a method that has several rules, or steps, its name and the rule's; else nothing."""
    if line.rule not in SEVERAL:
        return ""
    return f"{line.rule}, auto" if line.rule == _method(line) else line.rule


def summary(lines: Sequence[Line]) -> str:
    """What is covered in all, of tuned networks and others, of each rule; and what breaks which rule, by name."""
    parts = ["", "Covered:", ""]
    for which, is_tuned in (("networks not seen before", False), ("networks tuned on (*)", True)):
        parts.append(_counted(which, [line for line in lines if NETWORKS[line.network].is_tuned is is_tuned]))
    parts.append(_counted("all", lines))
    parts += [_counted(rule, own) for rule, own in _grouped(lines, lambda line: line.rule)]
    converged = [figures.true <= line.tolerance for line in lines for figures in line.figures if figures.converged]
    parts += ["", f"Within the tolerance, where `converged` says so: {sum(converged)} of {len(converged)}."]
    networks = _grouped(lines, lambda line: line.network)
    below = [f"{shown(name)} ({_share(own):.1%})" for name, own in networks if _share(own) < OF_EACH]
    misses = [
        *_named("fewer than 90 of 100 of a network covered", below),
        *_broken(lines, _method, "fewer than 90 of 100 of a network covered", lambda own: _share(own) < OF_EACH),
        *_broken(lines, _method, "stated more than 10 times too large, in the median", _is_overstated),
        *_broken(lines, _method, "stated too small, in the median", lambda own: _median(own) > 1),
        *_broken(lines, _rule, "fewer than 90 of 100 of a network covered", lambda own: _share(own) < OF_EACH),
        *_broken(lines, _rule, "stated more than 10 times too large, in the median", _is_overstated),
        *_named("fewer than 90 of 100 of a line covered", _lines_below(lines)),
        *_named("the truth is not known closely enough", _unsure(lines)),
    ]
    return "\n".join([*parts, "", "Breaking a rule:", "", *(misses or ["- nothing"])])


def _is_overstated(lines: Sequence[Line]) -> bool:
    return _median(lines) * MOST_OVERSTATED < 1


def _grouped(lines: Iterable[Line], key: Callable[[Line], str]) -> list[tuple[str, list[Line]]]:
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(key(line), []).append(line)
    return list(found.items())


def _share(lines: Sequence[Line]) -> float:
    return sum(line.covered for line in lines) / max(sum(len(line.figures) for line in lines), 1)


def _median(lines: Sequence[Line]) -> float:
    return float(np.median(np.concatenate([line.ratios for line in lines])))


def _counted(which: str, lines: Sequence[Line]) -> str:
    covered, whole = sum(line.covered for line in lines), sum(len(line.figures) for line in lines)
    below = "" if not whole or covered / whole >= OF_ALL else ": below 95%"
    return f"- {which}: {covered} of {whole} ({covered / max(whole, 1):.1%}){below}"


def _named(what: str, names: Sequence[str]) -> list[str]:
    return [f"- {what}: {', '.join(names)}"] if names else []


def _broken(
    lines: Sequence[Line], key: Callable[[Line], str], what: str, breaks: Callable[[list[Line]], bool]
) -> list[str]:
    """Of each method, or each of the rules of one that has several, the networks of which all answers together break
    what is asked of them."""
    found = []
    for rule, own in _grouped([line for line in lines if key(line)], key):
        of_networks = [(name, each) for name, each in _grouped(own, lambda line: line.network) if breaks(each)]
        found += _named(
            f"{what}, {rule}",
            [f"{shown(name)} ({_share(each):.0%}, {_median(each):.2g})" for name, each in of_networks],
        )
    return found


def _lines_below(lines: Sequence[Line]) -> list[str]:
    below = [line for line in lines if line.covered < OF_EACH * len(line.figures)]
    return [
        f"{_name(own)} ({'/'.join(str(line.covered) for line in own)} of {len(own[0].figures)})"
        for _, own in _grouped(below, _place_of_line)
    ]


def _unsure(lines: Sequence[Line]) -> list[str]:
    unsure = [line for line in lines if not line.of("sure").all()]
    return [
        f"{_name(own)} ({'/'.join(str(sum(not each.sure for each in line.figures)) for line in own)})"
        for _, own in _grouped(unsure, _place_of_line)
    ]


def _place_of_line(line: Line) -> str:
    return f"{shown(line.network)} {line.rule} {line.space}"


def _name(lines: Sequence[Line]) -> str:
    """Of lines that differ in the tolerance alone."""
    return f"{_place_of_line(lines[0])} {'/'.join(f'{line.tolerance:g}' for line in lines)}"


HEAD_OF_SAMPLES = "| network | rows in a set | probability | logit |\n|---|---|---|---|"


def rows_of_samples(found: Sequence[Sampled]) -> list[str]:
    """A row for each size of the sets: how much of what a network's sets tell is within 1.96 standard errors."""
    return [
        f"| {shown(own[0].network)} | {size} | {' | '.join(f'{one.covered / one.whole:.1%}' for one in own)} |"
        for size in sorted({one.size for one in found})
        for own in [[one for one in found if one.size == size]]
    ]
