"""The text format, held against what prometheus-client writes of the same events, and against its parser."""

from __future__ import annotations

from typing import Any

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from service.monitoring.instruments import Registry

BOUNDS = (1e-6, 0.001, 0.5, 1, 60)
values = st.floats(min_value=0, max_value=1e9) | st.sampled_from(BOUNDS)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
events = st.lists(st.tuples(st.sampled_from(["counter", "gauge", "histogram"]), texts, texts, values), max_size=30)


def read(exposed: str) -> dict[str, tuple[str, str, dict[tuple[str, frozenset[tuple[str, str]]], float]]]:
    """By family: its kind, its help and its samples."""
    return {
        family.name: (
            family.type,
            family.documentation,
            {(sample.name, frozenset(sample.labels.items())): sample.value for sample in family.samples},
        )
        for family in text_string_to_metric_families(exposed)
    }


@given(events)
def test_the_same_events_give_what_prometheus_client_gives(events: list[tuple[str, str, str, float]]) -> None:
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    registry, oracle = Registry("answerable"), prometheus_client.CollectorRegistry()
    names = ["one", "other"]
    ours: dict[str, Any] = {
        "counter": registry.counter("events", "Events.", names),
        "gauge": registry.gauge("level", "The level.", names),
        "histogram": registry.histogram("size_bytes", "Sizes.", BOUNDS, names),
    }
    theirs: dict[str, Any] = {
        "counter": prometheus_client.Counter("answerable_events", "Events.", names, registry=oracle),
        "gauge": prometheus_client.Gauge("answerable_level", "The level.", names, registry=oracle),
        "histogram": prometheus_client.Histogram(
            "answerable_size_bytes", "Sizes.", names, buckets=BOUNDS, registry=oracle
        ),
    }
    for kind, one, other, value in events:
        for instruments in (ours, theirs):
            child = instruments[kind].labels(one, other)
            if kind == "counter":
                child.inc(value)
            elif kind == "gauge":
                child.set(value)
            else:
                child.observe(value)

    exposed = registry.render().decode()

    assert read(exposed) == read(prometheus_client.generate_latest(oracle).decode())


def test_a_metric_without_labels_is_there_from_the_start() -> None:
    registry = Registry("answerable")
    registry.gauge("level", "The level.").labels().set(3)
    registry.histogram("size_bytes", "Sizes.", (1,)).labels()

    assert registry.render().decode() == (
        "# HELP answerable_level The level.\n"
        "# TYPE answerable_level gauge\n"
        "answerable_level 3.0\n"
        "# HELP answerable_size_bytes Sizes.\n"
        "# TYPE answerable_size_bytes histogram\n"
        'answerable_size_bytes_bucket{le="1.0"} 0\n'
        'answerable_size_bytes_bucket{le="+Inf"} 0\n'
        "answerable_size_bytes_count 0\n"
        "answerable_size_bytes_sum 0.0\n"
    )


def test_what_was_cleared_is_gone() -> None:
    registry = Registry("answerable")
    gauge = registry.gauge("level", "The level.", ["device"])
    gauge.labels("0").set(1)
    gauge.labels("1").set(1)
    gauge.clear()
    gauge.labels("1").set(2)

    assert b'device="0"' not in registry.render()
    assert b'answerable_level{device="1"} 2.0' in registry.render()


def test_labels_are_all_given_or_none() -> None:
    with pytest.raises(ValueError, match="zip"):
        Registry("answerable").counter("events", "Events.", ["one", "other"]).labels("alone")
