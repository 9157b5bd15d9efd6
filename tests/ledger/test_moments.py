"""Days and times as people write them, and as they are shown to them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cli.printing import local_time, table
from service.ledger.moments import read_moment, written_moment, written_period

ZONES = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.dates())
def test_a_day_is_24_hours(day: date) -> None:
    start, end = (read_moment(day.isoformat(), is_end=is_end) for is_end in (False, True))
    assert end - start == 86_400_000_000
    assert written_moment(start) == f"{day.isoformat()}T00:00:00+00:00"


@given(st.datetimes(*map(datetime.fromisoformat, ("0002-01-01", "9998-01-01")), timezones=ZONES))
def test_a_time_with_its_zone_is_that_moment(moment: datetime) -> None:
    for is_end in (False, True):
        assert (
            datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=read_moment(moment.isoformat(), is_end=is_end))
        ) == moment
    assert read_moment(moment.isoformat(" ").lower(), is_end=False) == read_moment(moment.isoformat(), is_end=False)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("30.11.2026", r"'30.11.2026' is not a day or a time; write a day as 2026-11-30.*; did you mean 2026-11-30\?"),
        ("31.11.2026", r"'31.11.2026' is not a day or a time; write a day as 2026-11-30[^?]*$"),
        ("11/30/2026", "is not a day or a time"),
        ("2026-11-31", "is not a day or a time"),
        ("", "is not a day or a time"),
        ("1790000000", "is not a day or a time"),
        ("2026-11-30T12:00:00", "needs a time zone, for instance 2026-11-30T12:00:00Z"),
        ("2026-11-30T12:00:00 01:00", "lost the plus sign.*%2B"),
        ("2026-11-30 12:00:00.5 0100", "lost the plus sign.*%2B"),
    ],
)
def test_what_is_none_gets_a_sentence(given: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_moment(given, is_end=False)


def test_a_command_takes_a_time_without_a_zone() -> None:
    assert read_moment("1970-01-01T00:00:01", is_end=True, zone=UTC) == 1_000_000


def test_a_period_says_its_zone() -> None:
    assert written_moment(10**18) == "9999-12-31T23:59:59.999999+00:00"
    assert written_moment(-(10**18)) == "0001-01-01T00:00:00+00:00"
    assert written_period(None, None) == {}
    assert written_period(0, None) == {"from": "1970-01-01T00:00:00+00:00", "zone": "UTC"}


@pytest.fixture
def india(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "IST-5:30")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_people_see_the_time_on_the_wall(india: None) -> None:
    assert local_time(1_796_047_200_000_000) == "2026-11-30 19:30:00 IST"


def test_a_table_has_headings_and_no_cell_breaks_a_line() -> None:
    shown = table(("name", "count"), [("Ann", "2"), ("line\nbreak\x1b[2J", "10")], "nobody")
    assert shown.splitlines() == [
        "NAME                COUNT",
        "Ann                 2",
        "line\\nbreak\\x1b[2J  10",
    ]
    assert table(("name",), [], "nobody") == "nobody"
