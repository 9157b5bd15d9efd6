"""Two states of one explanation: bits decide whether they are equal, values alone whether they are near."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from service.answers import comparison
from service.answers.comparison import COMPARED, Computed
from service.answers.reading import read
from service.answers.record import RecordItem

TOLERANCE = 0.1
IMAGE = {"shape": [28, 28], "values": [0.25] * 784}
TOKENS = [{"token": 101, "attribution": 0.5}, {"token": 7592, "attribution": -0.25}, {"token": 102, "attribution": 0.0}]
PREDICTION = {"label": "7", "index": 7, "outputs": [0.25, 0.75], "output_space": "probability"}
SAMPLES = {"kind": "smoothgrad", "samples": 50, "scale": 0.15, "output": 0.5}
GROUP = {"features": [3, 4], "dividend": 0.5, "value": 0.75}


RECORD = {
    "id": "1",
    "method": "integrated_gradients",
    "cohort": {},
    "created": 0,
    "tenant": "bank",
    "key_id": "key",
    "retention": "standard",
    "ledger": {"sequence": 1, "leaf": "", "tombstone": None},
}


def compared(recorded: Mapping[str, Any], now: Mapping[str, Any], tolerance: float) -> Any:
    """Two records that hold these fields, compared."""
    one, other = (computed(read(RecordItem, RECORD | dict(fields))) for fields in (recorded, now))
    return comparison.compared(one, other, tolerance)


def computed(record: RecordItem) -> Computed:
    return Computed(record, record.prediction, record.rule)


def with_values(change: Callable[[float], float]) -> Mapping[str, Any]:
    """Every field that has values, each of which is changed."""
    return {
        "output": change(0.5),
        "attributions": {"shape": IMAGE["shape"], "values": [change(0.25)] * 784},
        "standard_error": [{"token": one["token"], "attribution": change(one["attribution"])} for one in TOKENS],
        "interactions": [[change(0.5), change(-0.5)], [change(0.25), change(0.25)]],
        "groups": [{"features": [3, 4], "dividend": change(0.5), "value": change(0.75)}],
        "noise": {**SAMPLES, "output": change(0.5)},
        "prediction": {**PREDICTION, "outputs": [change(0.25), change(0.75)]},
    }


def test_values_are_near_within_the_tolerance_field_by_field() -> None:
    same = with_values(lambda value: value)
    assert compared(same, same, TOLERANCE) == ("equal", 0.0, ())
    near, far = (with_values(lambda value, by=by: value * by) for by in (1.09, 1.12))  # type: ignore[misc]

    numbers, largest, fields = compared(near, same, TOLERANCE)
    assert (numbers, set(fields)) == ("within_tolerance", set(same))
    assert largest == pytest.approx(0.09 * 0.75)
    for name in same:
        assert compared({**same, name: near[name]}, same, TOLERANCE)[0::2] == ("within_tolerance", (name,))
        assert compared({**same, name: far[name]}, same, TOLERANCE)[0::2] == ("differ", (name,))


@pytest.mark.parametrize(
    ("name", "recorded", "now"),
    [
        ("attributions", {**IMAGE, "values": [-0.25] * 784}, IMAGE),
        ("attributions", {**IMAGE, "shape": [27, 29]}, IMAGE),
        ("attributions", {**IMAGE, "values": [0.25] * 783}, IMAGE),
        ("attributions", {**IMAGE, "values": ["0.25"] * 784}, IMAGE),
        ("attributions", [{**one, "attribution": -one["attribution"]} for one in TOKENS], TOKENS),
        ("attributions", [{**TOKENS[0], "token": 100}, *TOKENS[1:]], TOKENS),
        ("attributions", [{**TOKENS[0], "start": 3}, *TOKENS[1:]], [{**TOKENS[0], "start": 4}, *TOKENS[1:]]),
        ("attributions", {**IMAGE, "channels": [[[-0.5] * 28] * 28]}, {**IMAGE, "channels": [[[0.5] * 28] * 28]}),
        ("attributions", {**IMAGE, "channels": [[[0.5] * 28] * 28]}, IMAGE),
        ("attributions", {"a": 1.0, "b": 0.0}, {"a": 1.0, "c": 0.0}),
        ("attributions", {"shape": 1.0, "values": -1.0}, {"shape": 1.0, "values": 1.0}),  # features, so named
        ("attributions", None, TOKENS),
        ("interactions", [[1.0, 2.0, 3.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]]),
        ("groups", [{**GROUP, "features": [3, 5]}], [GROUP]),
        ("groups", [{**GROUP, "dividend": -0.5}], [GROUP]),
        ("noise", {**SAMPLES, "output": 2.5}, SAMPLES),
        ("noise", {**SAMPLES, "output": None}, SAMPLES),
        ("noise", {**SAMPLES, "samples": 49}, SAMPLES),
        ("prediction", {**PREDICTION, "index": 8}, {**PREDICTION, "index": 9}),
        ("prediction", {**PREDICTION, "outputs": [0.75, 0.25]}, PREDICTION),
        ("completeness", "exact", "none"),
    ],
)
def test_all_else_must_be_equal(name: str, recorded: Any, now: Any) -> None:
    assert compared({name: recorded}, {name: now}, TOLERANCE)[0::2] == ("differ", (name,))


@pytest.mark.parametrize(("recorded", "now"), [(-0.0, 0.0), (1, 1.0)])
def test_equal_numbers_of_other_bits_are_not_equal(recorded: float, now: float) -> None:
    assert compared({"output": recorded}, {"output": now}, TOLERANCE) == ("within_tolerance", 0.0, ("output",))
    one, other = ({"attributions": {"age": value, "income": 2.5}} for value in (recorded, now))
    assert compared(one, other, TOLERANCE) == ("within_tolerance", 0.0, ("attributions",))


def test_what_it_cost_and_how_far_it_is_off_do_not_count() -> None:
    body: dict[str, Any] = {"output": 0.5, "evaluations": 64, "completeness_error": 0.001, "converged": True}
    other = {**body, "evaluations": 128, "completeness_error": 0.5, "converged": False}
    assert compared(body, other, TOLERANCE)[:2] == ("within_tolerance", 0.0)


def test_what_is_compared_is_there_to_be_compared() -> None:
    record = read(RecordItem, RECORD)
    for name in COMPARED:
        assert computed(record).field(name) is None
