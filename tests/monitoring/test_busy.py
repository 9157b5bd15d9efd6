"""The share of time that the devices are busy, which several Prometheus read, each at its own pace."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from service.engine.protocol import ChunkReport
from service.monitoring.metrics import Metrics


@dataclass(slots=True)
class Clock:
    """Time as the test has it, in seconds."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def chunk(seconds: float) -> ChunkReport:
    return ChunkReport("loan@1", "gradient", 1, 2, 1, seconds)


def test_two_scrapers_at_different_rates_see_what_one_would_that_comes_once() -> None:
    clock = Clock()
    often, never = Metrics(clock), Metrics(clock)
    for second in range(200):
        clock.now += 1
        for metrics in (often, never):
            metrics.observe_chunk(chunk(0.25 + second / 1000))
        for pace in (1, 15):
            if second % pace == 0:
                assert often.render(2) == often.render(2)

    assert often.render(2) == never.render(2)


def test_it_is_the_share_of_the_last_minute() -> None:
    clock = Clock()
    metrics = Metrics(clock)

    def share(workers: int = 1) -> float:
        metrics.render(workers)
        return metrics.busy.value

    assert share() == 0
    clock.now += 10
    metrics.observe_chunk(chunk(5))
    assert share() == 0.5
    assert share(2) == 0.25
    for _ in itertools.repeat(None, 59):
        clock.now += 1
        metrics.observe_chunk(chunk(0.1))
    assert share() == pytest.approx((5 + 5.9) / 60)
    clock.now += 1
    assert share() == pytest.approx(5.9 / 60)
    metrics.observe_chunk(chunk(100))
    assert share() == 1
    clock.now += 60
    assert share() == 0
