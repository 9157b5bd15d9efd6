"""Holds stated errors against true ones, network by network: `make accuracy`.

A line of the table is a network (those marked * are the ones that the estimates' factors were chosen on), a method or
rule, and an output space, with the figures of all tolerances: in how many answers the true relative L1 error is at most
`attribution_error`, the true error over the stated one, the true one, points, and how many converged.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from tests.accuracy.approaches import APPROACHES
from tests.accuracy.measuring import TOLERANCES, Job, Line, measured
from tests.accuracy.networks import INPUTS, NETWORKS
from tests.accuracy.results import Results
from tests.accuracy.table import HEAD, rows_of, summary


def main() -> None:
    """Prints the table as it grows, and what holds of all of it."""
    names = [approach.name for approach in APPROACHES]
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy", description="Stated errors against true ones.")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--methods", nargs="*", default=names, choices=names, metavar="METHOD")
    parser.add_argument("--inputs", type=int, default=INPUTS, help=f"of each network, at most {INPUTS}")
    parser.add_argument("--tolerances", type=float, nargs="*", default=TOLERANCES)
    parser.add_argument("--workers", type=int, default=1, help="processes; each takes a network and method at a time")
    parser.add_argument("--truths", type=Path, help="a folder that keeps what is true, for the next run")
    parser.add_argument("--results", type=Path, help="a file that keeps the lines; those in it are not measured again")
    chosen = parser.parse_args()
    measure = partial(measured, inputs=chosen.inputs, tolerances=tuple(chosen.tolerances), truths=chosen.truths)
    jobs = [(network, method) for method in chosen.methods for network in chosen.networks]
    results = Results(chosen.results)
    print(HEAD)
    lines = []
    for job in sorted(set(jobs) & results.known.keys(), key=lambda job: (list(NETWORKS).index(job[0]), job[1])):
        lines += results.known[job]
        print(*rows_of(results.known[job]), sep="\n")
    for job, found in _all(measure, [job for job in jobs if job not in results.known], chosen.workers):
        results.keep(job, found)
        lines += found
        for row in rows_of(found):
            print(row, flush=True)
    print(summary(lines))


def _all(
    measure: partial[tuple[Job, list[Line]]], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, list[Line]]]:
    """What is measured, as it comes."""
    if workers == 1:
        yield from map(measure, jobs)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(measure, job) for job in jobs]):
            yield done.result()


if __name__ == "__main__":
    main()
