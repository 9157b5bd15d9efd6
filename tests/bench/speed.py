"""The speed figures: Integrated Gradients, its refinement, the cache, saturation, and the ledger's price."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.accuracy import fewest_steps
from tests.bench.ceiling import ceilings
from tests.bench.models import make
from tests.bench.report import Figure, Section, loads_table, of, ratio, raw_runs
from tests.bench.rounds import LOAN, Load, Pace, Run, measure, median, rounds
from tests.bench.servers import example, peer, post, service, torchserve, torchserve_obstacle

TARGET = {"target": "denied"}
GAUSS = {**TARGET, "tolerance": 0.01, "options": {"rule": "gauss_legendre"}}
WHOLE_BUDGET = {**TARGET, "method": "expected_gradients", "tolerance": 1e-6, "max_evaluations": 4096}
"""Expected Gradients with a tolerance that it cannot meet: each answer costs its whole budget."""


def integrated_gradients(pace: Pace) -> Section:
    """Exact Integrated Gradients against A, B and C."""
    steps = fewest_steps(LOAN).steps
    with ExitStack() as stack:
        ours = stack.enter_context(service()).explain()
        a = stack.enter_context(peer("captum", str(LOAN), "50")).base + "/explain"
        a_one_thread = stack.enter_context(peer("captum", str(LOAN), "50", "1")).base + "/explain"
        b = stack.enter_context(peer("captum", str(LOAN), str(steps))).base + "/explain"
        b_300 = stack.enter_context(peer("captum", str(LOAN), "300")).base + "/explain"
        names = {"B": f"B: Captum, {steps} steps, 32"}
        loads = {
            "ours, 32": Load(ours, 32, TARGET),
            "A: Captum, 50 steps, 32": Load(a, 32),
            names["B"]: Load(b, 32),
            "ours, 1": Load(ours, 1, TARGET),
            "A: Captum, 50 steps, 1": Load(a, 1),
            "Captum, 300 steps, 32": Load(b_300, 32),
            "A with one torch thread, 32": Load(a_one_thread, 32),
            "A with one torch thread, 1": Load(a_one_thread, 1),
        }
        obstacle = torchserve_obstacle()
        if obstacle is None:
            try:
                c = stack.enter_context(torchserve(LOAN)).base + "/explanations/loan"
                loads["C: TorchServe, 50 steps, 32"] = Load(c, 32)
            except RuntimeError as error:
                obstacle = " ".join(str(error).split())[-200:]
        runs = rounds({name: partial(measure, load, pace.seconds) for name, load in loads.items()}, pace.rounds)

    rate, a_runs = of(runs["ours, 32"], "rate"), runs["A: Captum, 50 steps, 32"]
    figures = [
        ratio("exact IG, 32 connections, explanations/s against A", rate, of(a_runs, "rate"), at_least=10),
        ratio(f"the same against B ({steps} steps)", rate, of(runs[names["B"]], "rate"), at_least=20),
    ]
    if obstacle is None:
        theirs = of(runs["C: TorchServe, 50 steps, 32"], "rate")
        figures.append(ratio("the same against C (TorchServe)", rate, theirs, at_least=100))
    else:
        figures.append(Figure("the same against C (TorchServe)", None, at_least=100, not_run=obstacle))
    alone, a_alone = of(runs["ours, 1"], "p50"), of(runs["A: Captum, 50 steps, 1"], "p50")
    one_thread, at_300 = (of(runs[name], "rate") for name in ("A with one torch thread, 32", "Captum, 300 steps, 32"))
    figures += [
        ratio("the same against Captum at 300 steps", rate, at_300),
        ratio("the same against A with one torch thread", rate, one_thread),
        ratio("its p99 against A's p50", of(runs["ours, 32"], "p99"), of(a_runs, "p50"), at_most=1),
        ratio("one connection: p50 against A's p50", alone, a_alone, at_most=0.5),
    ]
    table = loads_table("Integrated Gradients on the loan model, exact rule; the number is that of connections:", runs)
    return Section(figures, [table], {"steps": steps, "runs": raw_runs(runs)})


def refinement(pace: Pace) -> Section:
    """Integrated Gradients by refinement on the GELU twin against A and B."""
    steps = fewest_steps(LOAN).steps
    with ExitStack() as stack:
        models = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-gelu-")))
        make("gelu", models)
        folder = models / "loan" / "1"
        tuned = fewest_steps(folder).steps
        ours = stack.enter_context(service(models)).explain()
        url = {
            n: stack.enter_context(peer("captum", str(folder), str(n))).base + "/explain" for n in (50, steps, tuned)
        }
        b, b_tuned = f"B: Captum, {steps} steps", f"Captum, {tuned} steps, tuned to this network"
        loads = {
            "ours, gauss_legendre to 0.01": Load(ours, 32, GAUSS, folder),
            "A: Captum, 50 steps": Load(url[50], 32, folder=folder),
            b: Load(url[steps], 32, folder=folder),
            b_tuned: Load(url[tuned], 32, folder=folder),
            "ours, auto to 0.01": Load(ours, 32, TARGET, folder),
        }
        runs = rounds({name: partial(measure, load, pace.seconds) for name, load in loads.items()}, pace.rounds)
    rate = of(runs["ours, gauss_legendre to 0.01"], "rate")
    figures = [
        ratio(
            "refinement to 0.01 on the GELU twin, 32 connections, explanations/s against A",
            rate,
            of(runs["A: Captum, 50 steps"], "rate"),
            at_least=10,
        ),
        ratio(f"the same against B ({steps} steps)", rate, of(runs[b], "rate"), at_least=20),
        ratio(f"the same against B tuned to the GELU twin ({tuned} steps)", rate, of(runs[b_tuned], "rate")),
    ]
    table = loads_table("Integrated Gradients on the GELU twin, 32 connections:", runs)
    return Section(figures, [table], {"steps": steps, "tuned": tuned, "runs": raw_runs(runs)})


def cache(pace: Pace) -> Section:
    """Results already in the cache against FastAPI that computes nothing."""
    with ExitStack() as stack:
        ours = stack.enter_context(service()).explain()
        reply = post(ours, {"instances": [example(LOAN)], "parameters": TARGET})
        file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-floor-")), "reply.json")
        file.write_text(json.dumps(reply))
        floor = stack.enter_context(peer("floor", str(file))).base + "/explain"
        bare = stack.enter_context(peer("bare_floor")).base + "/explain"
        known: dict[str, Any] = {"distinct": 256, "first": 1}
        measure(Load(ours, 8, TARGET, **known), 2.0)
        loads = {
            "ours, in the cache": Load(ours, 32, TARGET, **known),
            "floor: FastAPI, same schema, same reply": Load(floor, 32, TARGET, **known),
            "bare floor: FastAPI, request.json(), small reply": Load(bare, 32, TARGET, **known),
        }
        runs = rounds({name: partial(measure, load, pace.seconds) for name, load in loads.items()}, pace.rounds)
    runs = {name: [replace(run, points=0.0) for run in each] for name, each in runs.items()}  # none was computed
    cached, validated, parsed = runs.values()
    if min(of(cached, "cached")) < 1:
        raise RuntimeError("not every answer came from the cache")
    figures = [
        ratio(
            "a result in the cache, 32 connections, answers/s against the floor",
            of(cached, "rate"),
            of(validated, "rate"),
            at_least=0.5,
        ),
        ratio("the same against the bare floor", of(cached, "rate"), of(parsed, "rate")),
    ]
    return Section(figures, [loads_table("Results in the cache, 32 connections:", runs)], {"runs": raw_runs(runs)})


def saturation(pace: Pace) -> Section:
    """Gradient points a second under Expected Gradients against the bare loop."""
    (one,), (two,) = (ceilings([LOAN], pace.seconds, threads) for threads in (1, 2))
    usual = {**TARGET, "method": "expected_gradients"}
    with service() as server:
        contenders: dict[str, Callable[[], Run]] = {
            "ours, 32, whole budget of 4,096 points": partial(
                measure, Load(server.explain(), 32, WHOLE_BUDGET), pace.seconds
            ),
            f"ceiling: bare loop, {one.chunk} rows": partial(one.again, pace.seconds, 1),
            "ours, 32, tolerance 0.01": partial(measure, Load(server.explain(), 32, usual), pace.seconds),
            f"bare loop on 2 threads, {two.chunk} rows": partial(two.again, pace.seconds, 2),
        }
        runs = rounds(contenders, pace.rounds)
    ours, bare, by_tolerance, bare_double = (of(each, "points") for each in runs.values())
    figures = [
        ratio("saturated by EG: gradient points/s against the ceiling", ours, bare, at_least=0.7),
        ratio("the same at tolerance 0.01", by_tolerance, bare),
        ratio("the same, whole budget, against the bare loop on 2 threads", ours, bare_double),
    ]
    return Section(
        figures, [loads_table("Expected Gradients, 128 baselines, 32 connections:", runs)], {"runs": raw_runs(runs)}
    )


def ledger(pace: Pace) -> Section:
    """The price of the durable ledger: in throughput, the most that is reached at any number of connections, and at
    each number. Few connections leave the cores idle for a part of the time, and compare latencies."""
    modes, sizes = ("ledger required", "ledger off"), (1, 8, 32, 128, 256)
    with service() as required, service(ledger="off") as off:
        loads = {
            f"{name}, {connections}": Load(server.explain(), connections, TARGET)
            for connections in sizes
            for name, server in zip(modes, (required, off), strict=True)
        }
        runs = rounds({name: partial(measure, load, pace.seconds) for name, load in loads.items()}, pace.rounds)
    rates = [[of(runs[f"{mode}, {size}"], "rate") for size in sizes] for mode in modes]
    most, most_off = (max(each, key=statistics.median) for each in rates)
    figures = [ratio("throughput: most explanations/s, ledger required against off", most, most_off, at_least=0.85)]
    figures += [
        ratio(f"explanations/s with the ledger required against off, connections: {size}", on, off, at_least=0.85)
        for size, on, off in zip(sizes, *rates, strict=True)
    ]
    table = loads_table(
        "Exact Integrated Gradients with and without the ledger; the number is that of connections:", runs
    )
    p90 = {name: median(each, "p90") for name, each in runs.items()}
    return Section(figures, [table], {"runs": raw_runs(runs), "p90_ms": p90})
