"""Stored paths: what stands behind their steps, and texts that nobody vouches for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.checkpoint.paths import (
    Containers,
    array_mark,
    containers,
    marked,
    parse_path,
    plain_path,
)
from tierstore.errors import FormatError

KEYS = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.dictionaries(st.sampled_from(["$tuple", "tuples", "own", "array"]), inner),
    max_leaves=4,
)
STEPS = st.one_of(
    st.text(max_size=8),
    st.sampled_from([', {"own": 1}]', '", {"tuples": [0]}]', '{"array": "<f8"}']),
    st.builds(lambda n: {"item": n}, st.integers(0, 99)),
    st.builds(lambda key: {"key": key}, KEYS),
)
PATHS = st.lists(STEPS, min_size=1, max_size=5).map(json.dumps)
INSIDE = st.builds(
    Containers,
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.none() | st.integers(0, 9),
)


@given(path=PATHS, inside=INSIDE, array=st.sampled_from(["", "<f8", "<M8[ns]"]))
def test_marks_come_off_as_they_were_put_on(path: str, inside: Containers, array: str) -> None:
    text = inside.mark(path)
    text = marked(text, array) if array else text
    assert plain_path(text) == path
    assert containers(text) == inside
    assert array_mark(text) == (array or None)
    assert parse_path(text) == json.loads(path)


def test_most_paths_have_no_mark() -> None:
    assert Containers().mark('["a"]') == '["a"]'
    assert containers('["a", {"item": 3}]') == Containers()
    assert Containers((0, 2), 1).mark('["a"]') == '["a", {"tuples": [0, 2], "own": 1}]'


@pytest.mark.parametrize(
    "mark",
    [
        *("{}", '{, "own": 1}', '{"own": -1}', '{"own": 01}', '{"own": 1e9}', '{"tuples": []}'),
        *('{"tuples": [1,2]}', '{"own": 1, "tuples": [1]}', f'{{"own": {"9" * 5000}}}'),
    ],
)
def test_what_is_no_mark_is_a_bad_step(mark: str) -> None:
    text = f'["a", {mark}]'
    assert containers(text) == Containers()
    with pytest.raises(FormatError):
        parse_path(text)
