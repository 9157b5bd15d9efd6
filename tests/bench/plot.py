"""The growth plot: small multiples, one for each table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tests.bench.growth import Measured

OURS, OTHER, BARE = "#1f4e9c", "#d9822b", "#888888"


def draw(found: Mapping[str, Sequence[Measured]], picture: Path) -> None:
    """Writes the plot of the growth tables."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(2, 4, figsize=(17, 8), layout="constrained")
    (rate, latency, points, workers), (features, width, baselines, cost) = axes
    _connections_rate(rate, found)
    _connections_latency(latency, found)
    _points(points, found["connections EG"], "EG over connections: points a second", "connections")
    _workers(workers, found)
    _points(features, found["features EG"], "EG over features: points a second", "features")
    _points(width, found["width EG"], "EG over model size: points a second", "hidden width (two layers)")
    _points(baselines, found["baselines EG"], "EG over baselines: points a second", "baselines")
    _baselines_latency(cost, found["baselines EG"])
    for one in axes.flat:
        if one.get_yscale() == "log":
            one.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        one.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.10g}"))
        one.yaxis.set_minor_locator(ticker.NullLocator())
        one.grid(visible=True, which="major", alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    figure.suptitle("How cost grows (medians over the rounds; 32 connections where none are named)")
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def _sizes(axis: Axes, rows: Sequence[Measured], label: str) -> list[int]:
    """A logarithmic axis with a tick at each size."""
    sizes = [row.size for row in rows]
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel(label)
    return sizes


def _connections_rate(axis: Axes, found: Mapping[str, Sequence[Measured]]) -> None:
    rows = found["connections IG"]
    axis.plot(_sizes(axis, rows, "connections"), [row.run.rate for row in rows], "o-", color=OURS)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("explanations a second")
    axis.set_title("Exact IG over connections: answers a second")


def _connections_latency(axis: Axes, found: Mapping[str, Sequence[Measured]]) -> None:
    rows = found["connections IG"]
    sizes = _sizes(axis, rows, "connections")
    axis.plot(sizes, [row.run.p50 for row in rows], "o-", color=OURS, label="median")
    axis.plot(sizes, [row.run.p99 for row in rows], "s-", color=OTHER, label="99th percentile")
    one = rows[0].run.p50
    axis.plot(sizes, [one * size / sizes[0] for size in sizes], "--", color=BARE, label="in step with the work")
    axis.set_yscale("log")
    axis.set_ylabel("latency in ms")
    axis.set_title("Exact IG over connections: latency")
    axis.legend(frameon=False)


def _points(axis: Axes, rows: Sequence[Measured], title: str, label: str) -> None:
    sizes = _sizes(axis, rows, label)
    axis.plot(sizes, [row.run.points for row in rows], "o-", color=OURS, label="service")
    axis.plot(sizes, [row.ceiling for row in rows], "--", color=BARE, label="bare loop")
    axis.set_yscale("log")
    axis.set_ylabel("gradient points a second")
    axis.set_title(title)
    axis.legend(frameon=False)


def _workers(axis: Axes, found: Mapping[str, Sequence[Measured]]) -> None:
    for offset, (method, colour) in enumerate((("IG", OURS), ("EG", OTHER))):
        rows = found[f"workers {method}"]
        heights = [row.run.rate / rows[0].run.rate for row in rows]
        axis.bar([row.size + 0.3 * (offset - 0.5) for row in rows], heights, 0.28, color=colour, label=method)
    axis.set_xticks([row.size for row in found["workers IG"]])
    axis.set_xlabel("worker processes")
    axis.set_ylabel("answers a second, one worker = 1")
    axis.set_title("Workers: answers a second")
    axis.legend(frameon=False)


def _baselines_latency(axis: Axes, rows: Sequence[Measured]) -> None:
    sizes = _sizes(axis, rows, "baselines")
    axis.plot(sizes, [row.run.p50 for row in rows], "o-", color=OURS, label="median")
    axis.plot(sizes, [row.run.p99 for row in rows], "s-", color=OTHER, label="99th percentile")
    steps = [rows[0].run.p50 * row.work / rows[0].work for row in rows]
    axis.plot(sizes, steps, "--", color=BARE, label="in step with the work")
    axis.set_yscale("log")
    axis.set_ylabel("latency in ms")
    axis.set_title("EG over baselines: latency")
    axis.legend(frameon=False)
