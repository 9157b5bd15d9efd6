"""Bodies that JSON allows and nobody can mean: names given twice, numbers that are not finite. Held against Python's
own parser, which tells every pair."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.strict_json import read
from service.errors import InvalidRequest, MalformedBody

TEXT = st.text(st.sampled_from('ab:" \\\t\n{}[],é'), max_size=4)
SPACE = st.sampled_from(["", " ", "\n", "\t", " \r\n "])


class Pairs(list[tuple[str, Any]]):
    """An object as it was spelled."""


@st.composite
def spelled(draw: st.DrawFn, value: Any) -> str:
    """JSON of a value, with white space and escapes anywhere."""

    def space() -> str:
        return draw(SPACE)

    if isinstance(value, Pairs):
        parts = [f"{space()}{draw(name_of(name))}{space()}:{draw(spelled(each))}" for name, each in value]
        return f"{space()}{{{','.join(parts) or space()}}}{space()}"
    if isinstance(value, list):
        return f"{space()}[{','.join(draw(spelled(each)) for each in value) or space()}]{space()}"
    return f"{space()}{json.dumps(value)}{space()}"


@st.composite
def name_of(draw: st.DrawFn, name: str) -> str:
    """A name, with some of its characters escaped that need not be."""
    escaped = [f"\\u{ord(one):04x}" if draw(st.booleans()) else json.dumps(one)[1:-1] for one in name]
    return f'"{"".join(escaped)}"'


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.lists(st.tuples(TEXT, inner), max_size=4).map(Pairs),
    max_leaves=12,
)


def repeats(value: Any, pointer: str = "") -> set[str]:
    """The pointers to names that are there twice, in the values that come last: the oracle."""
    if isinstance(value, Pairs):
        names = [name for name, _ in value]
        place = {name: f"{pointer}/" + name.replace("~", "~0").replace("/", "~1") for name in names}
        found = {place[name] for name in names if names.count(name) > 1}
        return found.union(*(repeats(each, place[name]) for name, each in dict(value).items()))
    if isinstance(value, list):
        return set().union(*(repeats(each, f"{pointer}/{at}") for at, each in enumerate(value)))
    return set()


@given(VALUES.flatmap(lambda value: st.tuples(st.just(value), spelled(value))))
def test_a_name_given_twice_is_found_wherever_it_is_and_nothing_else(case: tuple[Any, str]) -> None:
    value, body = case
    expected = repeats(value)

    if not expected:
        assert read(body.encode()) == orjson.loads(body)
        return
    with pytest.raises(InvalidRequest) as refused:
        read(body.encode())
    assert {fault.pointer for fault in refused.value.faults} == expected
    assert {str(fault.kind) for fault in refused.value.faults} == {"duplicate-name"}


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ('{"a": [1, {"b": NaN}, -Infinity], "c": 1e400}', ["/c", "/a/2", "/a/1/b"]),
        ('{"a/b": {"~": Infinity}}', ["/a~1b/~0"]),
        ("NaN", [""]),
        ("1" + "0" * 400, [""]),
        ("[-" + "9" * 5000 + "]", ["/0"]),
        ('{"a": 1, "a": NaN}', ["/a", "/a"]),
        ("[" + "NaN," * 50 + "1]", [f"/{at}" for at in range(20)]),
        ('{"x": {"a": 1, "a": 2, "b": 0, "b": 0}, "a": "x:y"}', ["/x/a", "/x/b"]),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_where_it_is(body: str, pointers: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(body.encode())

    assert [fault.pointer for fault in refused.value.faults] == pointers


@pytest.mark.parametrize(
    "text",
    [":", '":', ' :) "a": ', "\\", '\\":', "http://x", '"', "Remarque : non", ":" * 100],
    ids=lambda text: text[:9],
)
def test_a_colon_in_a_text_is_no_name(text: str) -> None:
    content = {"instances": [{"text": text}, {"text": [text]}], text: {"subject": text}}

    assert read(json.dumps(content).encode()) == content
    assert read(json.dumps(content, indent=2).encode()) == content


@pytest.mark.parametrize(
    "body", ["[" * 2000 + "]" * 2000, '{"a":' * 990 + "NaN" + "}" * 990, "[" * 1000 + '{"a":1,"a":1}']
)
def test_what_is_nested_too_deep_to_tell_is_malformed(body: str) -> None:
    with pytest.raises(MalformedBody):
        read(body.encode())


def test_a_way_and_a_name_are_cut() -> None:
    deep = '{"%s":' % ("x" * 1000) * 100 + "NaN" + "}" * 100

    with pytest.raises(InvalidRequest) as refused:
        read(deep.encode())

    (fault,) = refused.value.faults
    assert len(fault.pointer) < 1200
    assert len(fault.detail) < 1200
