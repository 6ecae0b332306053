"""A migration without a disk: any order of answers, failures, crashes and restarts ends well.

The world below is a source and a destination of a few small objects. Commands are carried out in
any order; any of them may fail, and at any moment the process may be killed: then some of what was
under way has happened, and the next life has only the journal, perhaps without its last lines.
Some objects are checkpoints: x1, x2 and y1, y2, with the commits xz and yz.
Or a worker is lost with what it had open, while the process lives on, and others come. Or the first
of two sources does not give an object.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.migrate_world import ALONE, ARRIVED, COMMITS, KNOWN, PARTS, World, replayed
from tierstore.transfer.engine.entries import Outcome
from tierstore.transfer.engine.machine import Machine
from tierstore.transfer.engine.records import Begun, Finished, Void


def populate(world: World) -> None:
    """Some objects at both ends: nothing there, the same, the same size, another size."""
    for key in (*ALONE, *PARTS, *COMMITS):
        if world.chance.random() < 0.2:
            continue
        data = world.chance.randbytes(world.chance.randrange(key in COMMITS, 14))
        world.source.put(key, data)
        world.original[key] = data
        kind = world.chance.randrange(6)
        if kind == 0:
            world.target.put(key, data)
        elif kind == 1:
            world.target.put(key, bytes(len(data)))
        elif kind == 2:
            world.target.put(key, data + b"?")


def judge(world: World, machine: Machine, before: dict[str, tuple[bytes, float]]) -> None:
    assert not machine.trouble
    objects = world.source.objects
    dead = {key[0] for key in COMMITS if objects.get(key, (b"?",))[0] == b""}  # may not be swept
    held = {key for key in objects if key in ALONE or key[0] not in dead}
    assert set(world.outcomes) >= held - world.troubled
    for key, (outcome, reason) in world.outcomes.items():
        if key in world.troubled or key in "xy":
            continue
        source, target = world.original[key], world.target.objects.get(key, (None, 0))[0]
        parts = [part for part in PARTS if key in COMMITS and part[0] == key[0]]
        lost = [part for part in parts if world.outcomes.get(part, KNOWN)[0] not in ARRIVED]
        if outcome in ARRIVED:
            assert source == target
            assert not lost
            left = world.source.objects.get(key, (None, 0))[0]
            if not world.removes:
                assert left == source
            elif key in ALONE:
                assert left is None
            elif key in COMMITS:
                assert left == b""
        elif lost:
            assert target == before.get(key, (None, 0))[0]
        else:
            assert key in before, reason
            assert target == before[key][0] != source
            wanted = {"skip": Outcome.KEPT, "fail": Outcome.FAILED}
            if key in COMMITS:
                wanted["overwrite"] = Outcome.FAILED
            assert outcome is wanted[world.conflict]  # KeyError: overwriting has no conflicts
    begun: dict[int, set[str]] = {}  # a later life may use a number once it is free
    over: set[str] = set()
    for record in world.journal:
        if isinstance(record, Begun):
            begun.setdefault(record.upload, set()).add(record.token)
        elif isinstance(record, Void | Finished):
            over |= begun.pop(record.upload, set())
    for token, (key, _, _) in world.target.uploads.items():
        # What was begun at the moment of a crash nobody knows of; what failed can be resumed.
        assert token not in over or key in world.troubled
    assert machine.totals.moved == machine.totals.found_bytes
    reported = world.outcomes.keys() - {"x", "y"}
    assert sum(machine.totals.settled.values()) == machine.totals.found == len(reported)


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    conflict=st.sampled_from(["skip", "fail", "overwrite"]),
    checked=st.booleans(),
    parallel=st.booleans(),
    crashes=st.integers(0, 5),
    failures=st.integers(0, 3),
    changes=st.integers(0, 3),
    losses=st.integers(0, 2),
    removes=st.booleans(),
    deaths=st.integers(0, 4),
    resumable=st.booleans(),
    misses=st.integers(0, 4),
)
def test_every_object_ends_identical_or_reported(seed: int, **how: object) -> None:
    world = World(random.Random(seed), **how)  # type: ignore[arg-type]
    populate(world)
    before = dict(world.target.objects)
    judge(world, world.migrate(), before)
    # Once nothing goes wrong any more, the same command settles what had failed before.
    again = replace(
        world, crashes=0, failures=0, changes=0, losses=0, misses=0, deaths=min(world.deaths, 1)
    )
    machine = again.migrate()
    assert not machine.trouble
    for key, (data, _) in again.source.objects.items():
        if key not in again.outcomes:  # what was deleted
            assert again.source.objects[key[0] + "z"][0] == b""
            assert key in COMMITS
            continue
        outcome = again.outcomes[key][0]
        if outcome in ARRIVED:
            assert again.target.objects[key][0] in (data, again.original.get(key))
        elif again.conflict == "overwrite" and key not in COMMITS:
            pytest.fail(f"{key}: {again.outcomes[key]}")
        elif key not in COMMITS:
            assert again.target.objects[key][0] != data
    held = {r.token for r in again.journal if isinstance(r, Begun)}
    left = {*again.target.uploads} - (again.unknown - held)
    assert not left, "every upload is finished or freed"
    failed = {key for key, (outcome, _) in again.outcomes.items() if outcome is Outcome.FAILED}
    with replayed(again.journal) as past:
        assert {key for _, key in past.held} <= failed
    # And then there is nothing left to do.
    last = replace(again)
    quiet = last.migrate()
    assert quiet.totals.sent == 0


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), lies=st.integers(1, 3))
def test_a_destination_that_damages_is_noticed(seed: int, lies: int) -> None:
    world = World(random.Random(seed), "overwrite", False, True, 0, 0, 0, 0, lies=lies)
    populate(world)
    judge(world, world.migrate(), dict(world.target.objects))
