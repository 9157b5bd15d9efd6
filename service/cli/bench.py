"""`answerable bench`: how many explanations a running service answers, how soon, and how exact they are.

0: measured; 1: the service refuses or does not answer; 2: what was asked cannot be done.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Annotated, Any

import numpy as np
import typer

from service.cli.connecting import Access, AsJson, ModelName, Server, access_to, connected, described, telling_refusals
from service.cli.explain import Drop, ReadAs
from service.cli.instances import Columns, read_file
from service.client import (
    AsyncClient,
    AsyncModel,
    Context,
    Explanation,
    ModelDescription,
    Parameters,
    TryLater,
    Unreachable,
)
from service.errors import SetupError, UsageError

commands = typer.Typer()

DECISION = "answerable-bench"
"""The decision that the records of a measurement belong to, by which they are found."""
PERCENTS = (50, 90, 99, 100)


@dataclass(slots=True)
class Measured:
    """What came of the requests of one measurement."""

    explanations: list[Explanation] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    refused: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Of what was measured."""

    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of a measurement: `refused` were answered 429 or 503, `lost` not at all; `latency_ms` is as the client waited,
    `compute_ms` as the service tells it. None where there is nothing to measure, or the key is not shown it."""

    model: str
    connections: int
    seconds: float
    answered: int
    refused: int
    lost: int
    not_converged: int
    per_second: float
    latency_ms: Percentiles | None
    compute_ms: Percentiles | None
    evaluations: Percentiles | None
    completeness_error: Percentiles | None
    attribution_error: Percentiles | None


@commands.command()
def bench(
    model: ModelName,
    instances: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Instances to take turns with.", show_default="the model's example"),
    ] = None,
    read_as: ReadAs = None,
    drop: Drop = None,
    connections: Annotated[int, typer.Option(min=1, max=1000, help="Requests under way at once.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long.")] = 10.0,
    cached: Annotated[bool, typer.Option("--cached", help="Take answers from the cache, where it has them.")] = False,
    target: Annotated[
        str | None, typer.Option(help="A label or a value to explain.", show_default="what is predicted")
    ] = None,
    method: Annotated[str | None, typer.Option(help="The method.", show_default="the model's")] = None,
    server: Server = None,
    as_json: AsJson = None,
) -> int:
    """Measure a running service: explanations a second, how long they take, and their errors.

    Each connection asks for one explanation after the other. They are computed, quotas are charged and records are
    written as for any other request; the records have the decision `answerable-bench`. What this command itself takes
    of the machine's processors counts, where the service runs on the same machine.
    The exit code is 0 once measured, 1 if the service refuses or does not answer, 2 for wrong usage.

    \b
    answerable bench loan --connections 16 --seconds 30
    answerable bench digits@1 --method expected_gradients --json
    """
    access = access_to(server)
    with connected(access.url) as client:
        description = described(client, model)
        if instances is not None:
            chosen = read_file(instances, read_as, description, Columns(dropped=drop or ())).instances
        elif description.example is not None:
            chosen = [description.example]
        else:
            raise UsageError(f"{model} has no example; name a file of --instances")
    asked = {"target": target, "method": method}
    parameters: Parameters = {name: value for name, value in asked.items() if value is not None}  # type: ignore[assignment]
    with telling_refusals():
        measured, took = asyncio.run(
            measure(access, description, chosen, parameters, connections, seconds, fresh=not cached)
        )
    figures = figures_of(measured, f"{description.name}@{description.version}", connections, took)
    if not figures.answered:
        raise SetupError(f"nothing was answered: {figures.refused} refused, {figures.lost} lost")
    if not sys.stdout.isatty() if as_json is None else as_json:
        print(json.dumps(asdict(figures)))
    else:
        print(to_text(figures))
    return 0


async def measure(
    access: Access,
    model: ModelDescription,
    instances: Sequence[Any],
    parameters: Parameters,
    connections: int,
    seconds: float,
    *,
    fresh: bool,
) -> tuple[Measured, float]:
    """Asks for so many seconds, and tells how many it were until the last answer.

    Raises ClientError for what is refused for good.
    """
    measured = Measured()
    async with AsyncClient(access.url, access.key, retries=None, connections=connections) as client:
        asked = client.model(model.name, model.version)
        context = Context(decision_id=DECISION)
        await asked.explain(instances[0], context=context, fresh=fresh, **parameters)  # not measured
        began = time.perf_counter()
        turns = count()

        async def go_on() -> None:
            while time.perf_counter() < began + seconds:
                instance = instances[next(turns) % len(instances)]
                pause = await _ask(asked, instance, parameters, measured, fresh=fresh)
                await asyncio.sleep(min(pause, max(began + seconds - time.perf_counter(), 0)))

        await asyncio.gather(*(go_on() for _ in range(connections)))
        return measured, time.perf_counter() - began


async def _ask(model: AsyncModel, instance: Any, parameters: Parameters, measured: Measured, *, fresh: bool) -> float:
    """Returns how many seconds the service asks to wait, which is a day where a quota is spent."""
    began = time.perf_counter()
    try:
        explanation = await model.explain(instance, context=Context(decision_id=DECISION), fresh=fresh, **parameters)
    except TryLater as error:
        measured.refused += 1
        return error.retry_after or 0.0
    except Unreachable:
        measured.lost += 1
    else:
        measured.milliseconds.append((time.perf_counter() - began) * 1000)
        measured.explanations.append(explanation)
    return 0.0


def figures_of(measured: Measured, model: str, connections: int, seconds: float) -> Figures:
    """The figures of what was measured."""
    answers = measured.explanations
    return Figures(
        model=model,
        connections=connections,
        seconds=seconds,
        answered=len(answers),
        refused=measured.refused,
        lost=measured.lost,
        not_converged=sum(answer.converged is False for answer in answers),
        per_second=len(answers) / seconds,
        latency_ms=_percentiles(measured.milliseconds),
        compute_ms=_percentiles([answer.timings_ms.compute for answer in answers if answer.timings_ms is not None]),
        evaluations=_percentiles([answer.evaluations for answer in answers]),
        completeness_error=_percentiles([answer.completeness_error for answer in answers]),
        attribution_error=_percentiles([answer.attribution_error for answer in answers]),
    )


def _percentiles(values: Sequence[float | None]) -> Percentiles | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    p50, p90, p99, largest = map(float, np.percentile(known, PERCENTS))
    return Percentiles(p50=p50, p90=p90, p99=p99, max=largest)


def to_text(figures: Figures) -> str:
    """For a terminal."""
    rows = {
        "Latency, ms": (figures.latency_ms, ".1f"),
        "Computing, ms": (figures.compute_ms, ".1f"),
        "Points spent": (figures.evaluations, ".0f"),
        "Completeness error": (figures.completeness_error, ".1e"),
        "Attribution error": (figures.attribution_error, ".1e"),
    }
    lines = [
        f"{figures.model}: {figures.per_second:.1f} explanations a second, over {figures.connections} connections",
        "",
        f"  answered {figures.answered} in {figures.seconds:.1f} s, refused {figures.refused}, lost {figures.lost}, "
        f"not within the tolerance {figures.not_converged}",
        "",
        "  " + " " * 20 + "".join(f"{heading:>10}" for heading in ("median", "90%", "99%", "largest")),
    ]
    for name, (of, form) in rows.items():
        if of is not None:
            cells = "".join(f"{value:>10{form}}" for value in (of.p50, of.p90, of.p99, of.max))
            lines.append(f"  {name:<20}{cells}")
    return "\n".join(lines)
