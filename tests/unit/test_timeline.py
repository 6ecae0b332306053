"""The timeline: which commits lead to the newest launch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attempts import launch_of, nonce_of
from tierstore.checkpoint.commit import seal
from tierstore.checkpoint.timeline import (
    Launch,
    next_launch,
    next_try,
    started_after,
    timeline,
)
from tierstore.errors import FormatError, InvalidKeyError, NewerFormatError
from tierstore.keys import Attempt, AttemptId, LaunchId

NONCE = "0123456789abcdef"


def line(*launches: Launch, saved: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The timeline where every number has one launch."""
    known = {each.id: each for each in launches}
    ids = [AttemptId(Attempt(*each), nonce_of(each[1])) for each in saved]
    found = timeline(known, ids)
    return [(one.step, one.attempt.launch, one.attempt.number) for one in found]


def test_nothing() -> None:
    assert line(saved=[]) == []
    assert line(launch_of(1), saved=[]) == []


def test_a_rollback_leaves_what_came_after() -> None:
    one, two = launch_of(1), launch_of(2, Attempt(50, 1, 1))
    saved = [(step, 1, 1) for step in (50, 100, 150, 200)]
    assert line(one, saved=saved)[0] == (200, 1, 1)
    assert line(one, two, saved=[*saved, (60, 2, 1)]) == [(60, 2, 1), (50, 1, 1)]


def test_a_launch_that_saved_nothing_hides_nothing() -> None:
    saved = [(step, 1, 1) for step in (10, 20, 30)]
    expected = [(30, 1, 1), (20, 1, 1), (10, 1, 1)]
    assert line(launch_of(1), launch_of(2), saved=saved) == expected
    assert line(launch_of(1), launch_of(2, Attempt(10, 1, 1)), saved=saved) == expected


def test_a_zombie_of_an_abandoned_launch_changes_nothing() -> None:
    one, two = launch_of(1), launch_of(2, Attempt(50, 1, 1))
    before = line(one, two, saved=[(50, 1, 1), (60, 2, 1)])
    for zombie in [(50, 1, 2), (55, 1, 1), (60, 1, 1), (10**9, 1, 1)]:
        assert line(one, two, saved=[(50, 1, 1), (60, 2, 1), zombie]) == before


def test_of_two_tries_the_one_that_was_restored() -> None:
    saved = [(50, 1, 1), (50, 1, 2), (50, 1, 3), (60, 2, 1)]
    found = line(launch_of(1), launch_of(2, Attempt(50, 1, 2)), saved=saved)
    assert found == [(60, 2, 1), (50, 1, 2), (50, 1, 1)]


def test_no_more_of_a_line_than_every_launch_on_it_kept() -> None:
    """One that went on from step 30 with step 20, and was gone on from there."""
    one, two = launch_of(1), launch_of(2, Attempt(30, 1, 1))
    three = launch_of(3, Attempt(20, 2, 1))
    saved = [(10, 1, 1), (30, 1, 1), (20, 2, 1), (25, 3, 1)]
    assert line(one, two, three, saved=saved) == [(25, 3, 1), (20, 2, 1), (10, 1, 1)]


def test_a_launch_that_restored_nothing_begins_a_line_of_its_own() -> None:
    assert line(launch_of(1), launch_of(2), saved=[(50, 1, 1), (10, 2, 1)]) == [(10, 2, 1)]


def test_an_unknown_launch_is_as_new_as_its_number_and_ends_the_line() -> None:
    saved = [(10, 1, 1), (20, 2, 1), (30, 3, 1)]
    assert line(launch_of(1), launch_of(2, Attempt(10, 1, 1)), saved=saved) == [(30, 3, 1)]
    assert line(launch_of(3, Attempt(20, 2, 1)), saved=saved) == [(30, 3, 1), (20, 2, 1)]


def test_a_launch_whose_commits_are_deleted_still_says_where_it_branched() -> None:
    three = launch_of(3, Attempt(60, 2, 1))
    saved = [(40, 1, 1), (50, 1, 1), (55, 1, 1), (70, 3, 1)]
    found = line(launch_of(1), launch_of(2, Attempt(50, 1, 1)), three, saved=saved)
    assert found == [(70, 3, 1), (50, 1, 1), (40, 1, 1)]


def test_format_1_is_in_the_order_of_numbers_whatever_the_clocks_said() -> None:
    one = replace(launch_of(1), started=900.0, format=1)
    unnamed = AttemptId(Attempt(50, 1, 1), "")  # it did not say whose attempt it restored
    two = replace(launch_of(2), started=100.0, format=1, parent=unnamed)
    saved = [(50, 1, 1), (99, 1, 1), (60, 2, 1)]
    assert line(one, two, saved=saved) == [(60, 2, 1), (50, 1, 1)]
    new = replace(
        launch_of(3, Attempt(60, 2, 1)), started=started_after([one.started, two.started], 0.0)
    )
    assert line(one, two, new, saved=[*saved, (70, 3, 1)])[0] == (70, 3, 1)


@pytest.mark.parametrize("parent", [1, 2, 0])
def test_a_launch_comes_after_its_parent(parent: int) -> None:
    with pytest.raises(InvalidKeyError):
        Launch(1, NONCE, AttemptId(Attempt(5, parent, 1), NONCE), 1, 0.0)


# Random lives of a job that moves between nodes


@dataclass
class Tier:
    """What one tier holds."""

    claims: dict[int, Launch] = field(default_factory=dict)
    saved: set[AttemptId] = field(default_factory=set)


def seen_on(tiers: list[Tier], everyone: dict[LaunchId, Launch]) -> dict[LaunchId, Launch]:
    """What commits say of launches, and claims of those without one."""
    of_commits = {saved.launch for tier in tiers for saved in tier.saved}
    claimed = {launch.id: launch for tier in tiers for launch in tier.claims.values()}
    return claimed | {launch: everyone[launch] for launch in of_commits}


@dataclass
class History:
    """Launches that each reach some of the tiers, restore something or nothing, and save."""

    tiers: list[Tier]
    launches: dict[LaunchId, Launch] = field(default_factory=dict)
    saw: dict[LaunchId, set[LaunchId]] = field(default_factory=dict)

    def live(self, draw: st.DrawFn, clock: float) -> None:
        count = len(self.tiers)
        reached = draw(st.sets(st.integers(0, count - 1), min_size=1))
        here = [self.tiers[index] for index in sorted(reached)]
        known = seen_on(here, self.launches)
        before = timeline(known, set().union(*(tier.saved for tier in here)))
        parent = draw(st.sampled_from([None, *before[:1] * 3, *before]))
        taken = {*(launch.number for launch in known)}
        nonce = nonce_of(len(self.launches) + 1)
        started = started_after([each.started for each in known.values()], clock)
        launch = Launch(next_launch(taken), nonce, parent, 1, started)
        self.launches[launch.id] = launch
        self.saw[launch.id] = {*known}
        for tier in here:
            if draw(st.booleans()):  # or it was killed before
                tier.claims.setdefault(launch.number, launch)
        first = parent.step if parent else 0
        for step in range(first + 1, first + 1 + draw(st.integers(0, 3))):
            saved = AttemptId(Attempt(step, launch.number, 1), nonce)
            for index in draw(st.sets(st.sampled_from(sorted(reached)), min_size=1)):
                # One key holds one commit: whose number is another's fails on that tier.
                rivals = {each.attempt for each in self.tiers[index].saved}
                if saved.attempt not in rivals:
                    self.tiers[index].saved.add(saved)


@st.composite
def histories(draw: st.DrawFn, skew: float) -> History:
    history = History([Tier() for _ in range(3)])
    for turn in range(draw(st.integers(1, 7))):
        late = draw(st.floats(-skew, skew)) if skew else 0.0
        history.live(draw, 1e9 + 100.0 * turn + late)
    return history


def ancestors(history: History, newest: LaunchId) -> dict[LaunchId, Attempt | None]:
    """The launches that lead to one, each with the last attempt that counts."""
    limits: dict[LaunchId, Attempt | None] = {newest: None}
    limit: Attempt | None = None
    while (parent := history.launches[newest].parent) is not None:
        limit = parent.attempt if limit is None else min(limit, parent.attempt)
        newest = parent.launch
        limits[newest] = limit
    return limits


def reachable(history: History, regained: set[int]) -> tuple[list[AttemptId], set[AttemptId]]:
    here = [history.tiers[index] for index in regained]
    saved = set().union(*(tier.saved for tier in here))
    return timeline(seen_on(here, history.launches), saved), saved


@settings(max_examples=300)
@given(histories(0.0), st.sets(st.integers(0, 2), min_size=1))
def test_the_newest_acknowledged_work_wins(history: History, regained: set[int]) -> None:
    found, saved = reachable(history, regained)
    if not saved:
        assert found == []
        return
    began = {launch: each.started for launch, each in history.launches.items()}
    newest = max((each.launch for each in saved), key=began.__getitem__)
    assert found[0] == max(each for each in saved if each.launch == newest)
    # All that leads there is found, as far as somebody who can be reached tells what led there.
    known = seen_on([history.tiers[index] for index in regained], history.launches)
    for launch, limit in ancestors(history, newest).items():
        own = {each for each in saved if each.launch == launch}
        expected = {each for each in own if limit is None or each.attempt <= limit}
        assert {each for each in found if each.launch == launch} == expected
        if launch not in known:
            break


@settings(max_examples=300)
@given(histories(250.0), st.sets(st.integers(0, 2), min_size=1))
def test_clocks_that_disagree_never_hide_what_came_after(
    history: History, regained: set[int]
) -> None:
    """Whoever saw a launch is newer than it, and what was saved is never all hidden."""
    found, saved = reachable(history, regained)
    assert bool(found) == bool(saved)
    for launch in {each.launch for each in saved}:
        assert found[0].launch not in history.saw[launch]


def test_next_numbers_count_the_dead() -> None:
    seen = [Attempt(5, 3, 1), Attempt(5, 3, 4), Attempt(5, 2, 9), Attempt(6, 3, 7)]
    assert next_launch([]) == 1
    assert next_launch([1, 2, *(attempt.launch for attempt in seen)]) == 4
    assert next_try(seen, 5, 3) == Attempt(5, 3, 5)
    assert next_try(seen, 7, 3) == Attempt(7, 3, 1)


@pytest.mark.parametrize("parent", [None, AttemptId(Attempt(5, 1, 1), NONCE)])
def test_records_come_back(parent: AttemptId | None) -> None:
    record = Launch(3, NONCE, parent, 8, 1700000000.25)
    assert Launch.from_bytes(record.to_bytes()) == record


def test_a_record_of_format_1() -> None:
    stored = seal(
        {
            "format": 1,
            "launch": 3,
            "nonce": NONCE,
            "parent": [2, "000000000005-000001-01"],
            "started": 1.5,
            "world_size": 8,
        }
    )
    parent = AttemptId(Attempt(5, 1, 1), "")
    assert Launch.from_bytes(stored) == Launch(3, NONCE, parent, 8, 1.5, format=1)


def test_every_flipped_bit_of_a_record_is_found() -> None:
    data = launch_of(3, Attempt(5, 1, 1)).to_bytes()
    for at in range((len(data) - 1) * 8):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(FormatError):
            Launch.from_bytes(damaged)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("started", 1e300), ("started", -1.0), ("started", "soon"), ("started", None),
        ("launch", 0), ("launch", 10**9), ("launch", "x"), ("nonce", "short"), ("nonce", None),
        ("parent", "x"), ("parent", [1]), ("parent", 7), ("world_size", "many"),
        ("parent", f"000000000005-000009-01-{NONCE}"),
    ],
)  # fmt: skip
def test_a_sealed_record_that_makes_no_sense(name: str, value: object) -> None:
    record = json.loads(launch_of(3, Attempt(5, 1, 1)).to_bytes())
    del record["crc32c"]
    with pytest.raises(FormatError, match="is not a launch record"):
        Launch.from_bytes(seal(record | {name: value}))


def test_an_empty_or_newer_record() -> None:
    with pytest.raises(FormatError, match="the key"):
        Launch.from_bytes(b"", "the key")
    with pytest.raises(NewerFormatError):
        Launch.from_bytes(b'{"format":7}')
