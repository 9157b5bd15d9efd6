"""Ten targets of an instance in one request, against ten requests: what the whole service computes for them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml
from safetensors.numpy import load_file

from tests.bench.report import Figure, Section, Table, ratio
from tests.bench.rounds import KEY, LOAN, Pace
from tests.bench.servers import cpu_seconds_of, service

TARGETS = 10
DIGITS = LOAN.parents[1] / "digits" / "1"
HEADERS = {"Authorization": f"Bearer {KEY}", "Cache-Control": "no-cache"}
CASES: dict[str, tuple[Path, dict[str, Any]]] = {
    "loan, exact": (LOAN, {}),
    "loan, Expected Gradients": (LOAN, {"method": "expected_gradients"}),
    "digits, Integrated Gradients": (DIGITS, {}),
}


@dataclass(frozen=True, slots=True)
class _Turn:
    """CPU seconds of the whole service, and wall seconds, for `TARGETS` explanations of one instance."""

    cpu: float
    wall: float


def together(pace: Pace) -> Section:
    """One request with ten targets against ten requests, one after another on one connection, in turns."""
    figures: list[Figure] = []
    rows: list[list[str]] = []
    raw: dict[str, Any] = {}
    with service() as server, httpx.Client(headers=HEADERS, timeout=60) as client:
        for name, (folder, parameters) in CASES.items():
            url, instances = server.explain(folder.parent.name), _instances(folder)
            labels = yaml.safe_load((folder / "manifest.yaml").read_text())["outputs"]["labels"]
            targets = [labels[number % len(labels)] for number in range(TARGETS)]
            ways = {
                "one": [{**parameters, "targets": targets}],
                "ten": [{**parameters, "target": target} for target in targets],
            }
            found: dict[str, list[_Turn]] = {way: [] for way in ways}
            for number in range(pace.rounds + 1):
                for way, requests in ways.items():
                    ask = partial(_ask, client, url, requests)
                    turn = _turn(ask, instances, server.pid, pace.seconds)
                    if number:
                        found[way].append(turn)
            one, ten = found["one"], found["ten"]
            title = f"{name}: CPU seconds of ten requests against one with ten targets"
            figures.append(ratio(title, [turn.cpu for turn in ten], [turn.cpu for turn in one], at_least=3))
            rows += [
                [name, label, _middle([turn.cpu for turn in turns]), _middle([turn.wall for turn in turns])]
                for label, turns in (("one request", one), ("ten requests", ten))
            ]
            raw[name] = {way: [(turn.cpu, turn.wall) for turn in turns] for way, turns in found.items()}
    head = ["", "as", "CPU ms of the service", "wall ms"]
    return Section(figures, [Table("Ten explanations of one instance:", head, rows)], raw)


def _turn(ask: Callable[[Any], None], instances: Sequence[Any], pid: int, seconds: float) -> _Turn:
    """As many instances as there is time for."""
    before, started = cpu_seconds_of(pid), time.monotonic()
    for asked in count(1):
        ask(instances[asked % len(instances)])
        wall = time.monotonic() - started
        if wall > seconds:
            break
    return _Turn((cpu_seconds_of(pid) - before) / asked, wall / asked)


def _ask(client: httpx.Client, url: str, requests: Sequence[dict[str, Any]], instance: Any) -> None:
    for parameters in requests:
        client.post(url, json={"instances": [instance], "parameters": parameters}).raise_for_status()


def _instances(folder: Path) -> list[Any]:
    """Held-out instances, as the model takes lists."""
    shape = yaml.safe_load((folder / "manifest.yaml").read_text())["inputs"].get("shape", [-1])
    rows = load_file(folder / "heldout.safetensors")["rows"]
    instances: list[Any] = [np.reshape(row, shape).tolist() for row in rows[:64].astype(float)]
    return instances


def _middle(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.1f}"
