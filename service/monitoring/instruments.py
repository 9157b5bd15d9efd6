"""Counters, gauges and histograms in the Prometheus text format, for one thread.

Written here because `prometheus-client` takes 76 ms for a scrape of 4,600 series on the event loop, where these take
2.3 (medians of 40 in turns), and 3.2 microseconds for an observation, where these take 0.8: it holds locks that nothing
needs when only the event loop counts. The tests compare the text of these with its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counter:
    """A number that only grows, from zero."""

    kind = "counter"
    __slots__ = ("_line", "value")

    def __init__(self, name: str, labels: str) -> None:
        self._line = f"{name}_total{_braced(labels)} "
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Adds an amount, which is never negative."""
        self.value += amount

    def lines(self) -> Iterator[str]:
        yield f"{self._line}{self.value!r}\n"


class Gauge:
    """A number that goes up and down."""

    kind = "gauge"
    __slots__ = ("_line", "value")

    def __init__(self, name: str, labels: str) -> None:
        self._line = f"{name}{_braced(labels)} "
        self.value = 0.0

    def set(self, value: float) -> None:
        self.value = float(value)

    def lines(self) -> Iterator[str]:
        yield f"{self._line}{self.value!r}\n"


class Histogram:
    """How values spread over buckets; a value counts in the first bucket whose bound it does not exceed."""

    kind = "histogram"
    __slots__ = ("_bounds", "_counts", "_lines", "_sum")

    def __init__(self, name: str, labels: str, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        comma = "," if labels else ""
        ends = [*(repr(float(bound)) for bound in self._bounds), "+Inf"]
        self._lines = [f'{name}_bucket{{{labels}{comma}le="{end}"}} ' for end in ends]
        self._lines += [f"{name}_count{_braced(labels)} ", f"{name}_sum{_braced(labels)} "]

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self) -> Iterator[str]:
        totals = list(accumulate(self._counts))
        for line, value in zip(self._lines, [*totals, totals[-1], self._sum], strict=True):
            yield f"{line}{value!r}\n"


Child = TypeVar("Child", Counter, Gauge, Histogram)


class Family(Generic[Child]):
    """A metric with its children, one for each combination of the labels' values."""

    def __init__(self, kind: str, name: str, about: str, names: Sequence[str], make: Callable[[str], Child]) -> None:
        full_name = f"{name}_total" if kind == Counter.kind else name
        self._head = f"# HELP {full_name} {about}\n# TYPE {full_name} {kind}\n"
        self._names = tuple(names)
        self._make: Callable[[str], Child] = make
        self._children: dict[tuple[str, ...], Child] = {}

    def labels(self, *values: str) -> Child:
        """The child with these values, one for each label in their order; made when it is first asked for."""
        child = self._children.get(values)
        if child is None:
            pairs = zip(self._names, values, strict=True)
            child = self._children[values] = self._make(",".join(f'{name}="{_escaped(v)}"' for name, v in pairs))
        return child

    def clear(self) -> None:
        """Forgets all children: for gauges of what comes and goes."""
        self._children.clear()

    def lines(self) -> Iterator[str]:
        yield self._head
        for child in self._children.values():
            yield from child.lines()


class Registry:
    """The metrics of a process, in the order in which they were made. Names begin with `prefix`_."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._families: list[Family[Counter] | Family[Gauge] | Family[Histogram]] = []

    def counter(self, name: str, about: str, labels: Sequence[str] = ()) -> Family[Counter]:
        """A counter; `_total` is added to its name."""
        full = f"{self._prefix}_{name}"
        counters = Family(Counter.kind, full, about, labels, lambda values: Counter(full, values))
        self._families.append(counters)
        return counters

    def gauge(self, name: str, about: str, labels: Sequence[str] = ()) -> Family[Gauge]:
        full = f"{self._prefix}_{name}"
        gauges = Family(Gauge.kind, full, about, labels, lambda values: Gauge(full, values))
        self._families.append(gauges)
        return gauges

    def histogram(
        self, name: str, about: str, bounds: Sequence[float], labels: Sequence[str] = ()
    ) -> Family[Histogram]:
        """A histogram with buckets up to and including each of `bounds`, in growing order, and one for the rest."""
        full = f"{self._prefix}_{name}"
        histograms = Family(Histogram.kind, full, about, labels, lambda values: Histogram(full, values, bounds))
        self._families.append(histograms)
        return histograms

    def render(self) -> bytes:
        """The text exposition format, version 0.0.4."""
        return "".join(line for family in self._families for line in family.lines()).encode()


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
