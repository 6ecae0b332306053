"""The timeline: which commits lead to the newest launch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.checkpoint.timeline import Launch, next_launch, next_try, timeline
from tierstore.errors import FormatError, InvalidKeyError, NewerFormatError
from tierstore.keys import Attempt

NONCE = "0123456789abcdef"


def launch(number: int, parent: Attempt | None = None, *, by: int | None = None) -> Launch:
    line = None if parent is None else (by or parent.launch, parent)
    return Launch(number, NONCE, line, 4, 1.5)


def line(*launches: Launch, attempts: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    known = {each.number: each for each in launches}
    found = timeline(known, [Attempt(*each) for each in attempts])
    return [(attempt.step, attempt.launch, attempt.number) for attempt in found]


def test_nothing() -> None:
    assert line(attempts=[]) == []
    assert line(launch(1), attempts=[]) == []


def test_a_rollback_leaves_what_came_after() -> None:
    one, two = launch(1), launch(2, Attempt(50, 1, 1))
    saved = [(step, 1, 1) for step in (50, 100, 150, 200)]
    assert line(one, attempts=saved)[0] == (200, 1, 1)
    assert line(one, two, attempts=saved) == [(50, 1, 1)]
    assert line(one, two, attempts=[*saved, (60, 2, 1)]) == [(60, 2, 1), (50, 1, 1)]


def test_a_zombie_of_an_abandoned_launch_changes_nothing() -> None:
    one, two = launch(1), launch(2, Attempt(50, 1, 1))
    before = line(one, two, attempts=[(50, 1, 1), (60, 2, 1)])
    for zombie in [(50, 1, 2), (55, 1, 1), (60, 1, 1), (10**9, 1, 1)]:
        assert line(one, two, attempts=[(50, 1, 1), (60, 2, 1), zombie]) == before


def test_of_two_tries_the_one_that_was_restored() -> None:
    saved = [(50, 1, 1), (50, 1, 2), (50, 1, 3)]
    assert line(launch(1), launch(2, Attempt(50, 1, 2)), attempts=saved) == [
        (50, 1, 2),
        (50, 1, 1),
    ]


def test_a_launch_that_restored_nothing_begins_a_line_of_its_own() -> None:
    assert line(launch(1), launch(2), attempts=[(50, 1, 1), (10, 2, 1)]) == [(10, 2, 1)]


def test_a_second_restore_of_an_older_step_through_a_launch_between() -> None:
    chain = [launch(1), launch(2, Attempt(50, 1, 1)), launch(3, Attempt(30, 1, 1), by=2)]
    saved = [(20, 1, 1), (30, 1, 1), (50, 1, 1), (40, 2, 1), (60, 2, 1)]
    assert line(*chain, attempts=saved) == [(30, 1, 1), (20, 1, 1)]


def test_a_launch_without_a_record_ends_the_line_with_its_own_commits() -> None:
    saved = [(10, 1, 1), (20, 2, 1), (30, 3, 1)]
    assert line(launch(1), launch(2, Attempt(10, 1, 1)), attempts=saved) == [(30, 3, 1)]
    assert line(launch(3, Attempt(20, 2, 1)), attempts=saved) == [(30, 3, 1), (20, 2, 1)]


def test_a_deleted_parent_attempt_still_says_where_the_line_branched() -> None:
    two = launch(2, Attempt(50, 1, 1))
    assert line(launch(1), two, attempts=[(40, 1, 1), (60, 1, 1)]) == [(40, 1, 1)]


@pytest.mark.parametrize("parent", [1, 2, 0, -1])
def test_a_launch_comes_after_its_parent(parent: int) -> None:
    with pytest.raises(InvalidKeyError):
        Launch(1, NONCE, (parent, Attempt(5, 1, 1)), 1, 0.0)


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[int, Launch], list[Attempt]]:
    """Launches that each restore any attempt, some records and commits lost."""
    launches: dict[int, Launch] = {}
    attempts: list[Attempt] = []
    for number in range(1, draw(st.integers(0, 6)) + 1):
        parent = draw(st.none() | st.sampled_from(attempts)) if attempts else None
        by = draw(st.integers(parent.launch, number - 1)) if parent else None
        launches[number] = launch(number, parent, by=by)
        steps = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), unique=True))
        attempts += [Attempt(step, number, count) for step, count in steps]
    lost = draw(st.sets(st.sampled_from(sorted(launches)))) if launches else set()
    alive = draw(st.permutations(attempts))[: draw(st.integers(0, len(attempts)))]
    return {n: each for n, each in launches.items() if n not in lost}, alive


def on_the_line(attempt: Attempt, launches: dict[int, Launch], newest: int) -> bool:
    """The definition, read literally, for one attempt."""
    limits: list[Attempt] = []
    while newest != attempt.launch:
        here = launches.get(newest)
        if here is None or here.parent is None:
            return False
        newest = here.parent[0]
        limits.append(here.parent[1])
    return all(attempt <= limit for limit in limits)


@given(histories())
def test_against_the_definition(history: tuple[dict[int, Launch], list[Attempt]]) -> None:
    launches, alive = history
    newest = max([*launches, *(attempt.launch for attempt in alive)], default=0)
    found = timeline(launches, alive)
    assert set(found) == {a for a in alive if on_the_line(a, launches, newest)}
    # Newest first: by launch, then as attempts sort; a child comes before its parent.
    assert found == sorted(found, key=lambda a: (a.launch, a), reverse=True)


def test_next_numbers_count_the_dead() -> None:
    seen = [Attempt(5, 3, 1), Attempt(5, 3, 4), Attempt(5, 2, 9), Attempt(6, 3, 7)]
    assert next_launch([], []) == 1
    assert next_launch([1, 2], seen) == 4
    assert next_try(seen, 5, 3) == Attempt(5, 3, 5)
    assert next_try(seen, 7, 3) == Attempt(7, 3, 1)


@pytest.mark.parametrize("parent", [None, (2, Attempt(5, 1, 1))])
def test_records_come_back(parent: Any) -> None:
    record = Launch(3, NONCE, parent, 8, 1700000000.25)
    assert Launch.from_bytes(record.to_bytes()) == record


def test_every_flipped_bit_of_a_record_is_found() -> None:
    data = launch(3, Attempt(5, 1, 1)).to_bytes()
    for at in range((len(data) - 1) * 8):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(FormatError):
            Launch.from_bytes(damaged)


def test_an_empty_or_newer_record() -> None:
    with pytest.raises(FormatError, match="the key"):
        Launch.from_bytes(b"", "the key")
    with pytest.raises(NewerFormatError):
        Launch.from_bytes(b'{"format":7}')
