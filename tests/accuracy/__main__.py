"""Holds stated errors against true ones, network by network: `make accuracy`.

A line of the table is a network (those marked * are the ones that constants of the estimates were settled on), a method
or rule, and an output space, with the figures of all tolerances: in how many answers the true relative L1 error is at
most `attribution_error`, the true error over the stated one, the true one, points, and how many converged. Behind it
is a table of networks, and what breaks which rule. Networks that nothing was settled on come first.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TypeVar

from tests.accuracy.approaches import BY_NAME
from tests.accuracy.measuring import TOLERANCES, measured
from tests.accuracy.networks import INPUTS, NETWORKS
from tests.accuracy.results import Results
from tests.accuracy.sampling import sampled
from tests.accuracy.table import (
    HEAD,
    HEAD_OF_NETWORKS,
    HEAD_OF_SAMPLES,
    rows_of,
    rows_of_networks,
    rows_of_samples,
    summary,
)

SAMPLING = "standard_error"
"""What is measured of samples, beside the approaches."""
T = TypeVar("T")
Found = TypeVar("Found")


def main() -> None:
    """Prints the table as it grows, and what holds of all of it."""
    names, ordered = [*BY_NAME, SAMPLING], sorted(NETWORKS, key=lambda name: NETWORKS[name].is_tuned)
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy", description="Stated errors against true ones.")
    parser.add_argument("--networks", nargs="*", default=ordered, choices=ordered, metavar="NETWORK")
    parser.add_argument("--methods", nargs="*", default=names, choices=names, metavar="METHOD")
    parser.add_argument("--inputs", type=int, default=INPUTS, help=f"of each network, at most {INPUTS}")
    parser.add_argument("--tolerances", type=float, nargs="*", default=TOLERANCES)
    parser.add_argument("--workers", type=int, default=1, help="processes; each takes a network and method at a time")
    parser.add_argument("--truths", type=Path, help="a folder that keeps what is true, for the next run")
    parser.add_argument("--results", type=Path, help="a file that keeps the lines; those in it are not measured again")
    parser.add_argument("--only-kept", action="store_true", help="print what the file of results has, and no more")
    chosen = parser.parse_args()
    measure = partial(measured, inputs=chosen.inputs, tolerances=tuple(chosen.tolerances), truths=chosen.truths)
    jobs = [(network, method) for network in chosen.networks for method in chosen.methods if method != SAMPLING]
    results = Results(chosen.results)
    print(HEAD)
    lines = []
    for job in [job for job in jobs if job in results.known]:
        lines += results.known[job]
        for row in rows_of(results.known[job]):
            print(row)
    left = [] if chosen.only_kept else [job for job in jobs if job not in results.known]
    for job, found in _all(measure, left, chosen.workers):
        results.keep(job, found)
        lines += found
        for row in rows_of(found):
            print(row, flush=True)
    print(f"\n{HEAD_OF_NETWORKS}", *rows_of_networks(lines), sep="\n")
    print(summary(lines))
    if SAMPLING in chosen.methods and not chosen.only_kept:
        print(f"\nWithin 1.96 standard errors of the population's:\n\n{HEAD_OF_SAMPLES}")
        for of_network in _all(partial(sampled, truths=chosen.truths), chosen.networks, chosen.workers):
            print(*rows_of_samples(of_network), sep="\n", flush=True)


def _all(measure: Callable[[T], Found], jobs: Sequence[T], workers: int) -> Iterator[Found]:
    """What is measured, as it comes."""
    if workers == 1:
        yield from map(measure, jobs)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(measure, job) for job in jobs]):
            yield done.result()


if __name__ == "__main__":
    main()
