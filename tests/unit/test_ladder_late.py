"""A tier that was too far behind, or down, gets the newest save as soon as it can."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fired import fired
from tests.patience import PATIENCE
from tests.shards import assert_restores, folder, launch, stage, tier, until
from tierstore.backends.memory import MemoryBackend
from tierstore.checkpoint.store import RunStore
from tierstore.errors import (
    AlreadyExistsError,
    CheckpointError,
    IncompleteError,
    OutOfSpaceError,
    UnreachableError,
)
from tierstore.keys import Attempt
from tierstore.ladder import turns
from tierstore.ladder.find import choose
from tierstore.ladder.handle import SaveHandle, State
from tierstore.ladder.save import Saver
from tierstore.ladder.tiers import OpenTier
from tierstore.wrappers.delegate import Call
from tierstore.wrappers.faults import Fault, Faulty

pytestmark = pytest.mark.usefixtures("no_leaks")

DOWN = UnreachableError("connection refused")
Make = Callable[..., Saver]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(turns, "_LONGEST_PAUSE", 0.05)


@pytest.fixture
def make() -> Iterator[Make]:
    with ExitStack() as stack:

        def new(*tiers: OpenTier, **options: Any) -> Saver:
            saver = Saver(tiers, "run", **options)
            stack.callback(saver.close, timeout=PATIENCE)
            return saver

        yield new


@pytest.fixture
def memory(tmp_path: Path) -> MemoryBackend:
    return MemoryBackend(f"memory://{tmp_path.name}")


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()  # whatever has failed: nobody is left behind it


def held(gate: threading.Event, **when: Any) -> Fault:
    def wait(_: Call) -> None:
        gate.wait(PATIENCE)

    return Fault("upload", action=wait, **when)


def state(save: SaveHandle, name: str) -> State:
    return save.status()[name].state


def steps(backend: Any) -> list[int]:
    return [attempt.step for attempt in RunStore(backend, "run").entries()]


def submit(saver: Saver, step: int, **options: Any) -> SaveHandle:
    return saver.submit(*stage(Attempt(step, 1, 1), launch()), **options)


def congested(saver: Saver) -> list[SaveHandle]:
    """Four saves to a slow tier that holds the first, lets one wait, and is behind for two."""
    saves: list[SaveHandle] = []
    for step in range(4):
        saves.append(submit(saver, step))
        saves[-1].wait("fast", timeout=PATIENCE)
        until(lambda: state(saves[0], "slow") == "writing")
    assert saver.behind() == ("slow",)
    return saves


def test_a_tier_that_is_too_far_behind_is_trouble_and_catches_up(
    make: Make,
    memory: MemoryBackend,
    tmp_path: Path,
    gate: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow = tier("slow", Faulty(memory, held(gate)))
    saves = congested(make(folder("fast", tmp_path), slow, backlog=1))
    for save in saves[2:]:
        assert save.done
        assert state(save, "slow") == "behind"
        for name in ("slow", None):
            with pytest.raises(CheckpointError, match=r"'slow' is too far behind to take step \d"):
                save.wait(name, timeout=PATIENCE)
        assert list(save.failed) == ["slow"]
    assert "too far behind to take step 3: 1 saves wait" in caplog.text
    gate.set()
    until(lambda: state(saves[3], "slow") == "committed")
    saves[3].wait(timeout=PATIENCE)
    assert saves[3].failed == {}
    status = saves[3].status()
    assert status["slow"].nbytes == status["fast"].nbytes
    assert status["slow"].gb_per_s > 0
    assert state(saves[2], "slow") == "behind"  # what is older stays left out
    assert steps(memory) == [0, 1, 3]
    assert "tier slow has caught up: step 3 is there" in caplog.text
    assert_restores(choose([slow], "run"), Attempt(3, 1, 1))


def test_closing_waits_for_what_a_tier_was_behind_with(
    make: Make, memory: MemoryBackend, tmp_path: Path, gate: threading.Event
) -> None:
    slow = tier("slow", Faulty(memory, held(gate)))
    saver = make(folder("fast", tmp_path), slow, backlog=1)
    saves = congested(saver)
    threading.Timer(0.05, gate.set).start()
    saver.close(timeout=PATIENCE)
    assert state(saves[3], "slow") == "committed"
    assert steps(memory) == [0, 1, 3]


def test_what_is_newer_takes_the_place_of_what_is_owed(
    make: Make, memory: MemoryBackend, tmp_path: Path, gate: threading.Event
) -> None:
    slow = tier("slow", Faulty(memory, held(gate)))
    saver = make(folder("fast", tmp_path), slow, backlog=1)
    saves = []
    for step, behind in ((0, []), (1, ["slow"]), (2, [])):
        saves.append(submit(saver, step, behind=behind))
        saves[-1].wait("fast", timeout=PATIENCE)
        until(lambda: state(saves[0], "slow") == "writing")
    gate.set()
    saves[2].wait(timeout=PATIENCE)
    saver.close(timeout=PATIENCE)
    assert state(saves[1], "slow") == "behind"
    assert steps(memory) == [0, 2]


def test_a_save_that_no_tier_can_take_lets_go_of_its_memory(
    make: Make, memory: MemoryBackend, gate: threading.Event
) -> None:
    saver = make(tier("only", Faulty(memory, held(gate))))
    first = submit(saver, 0)
    shard, image = stage(Attempt(1, 1, 1), launch())
    save = saver.submit(shard, image, behind=["only"])
    assert image.released
    assert save.done
    gate.set()
    first.wait(timeout=PATIENCE)
    saver.close(timeout=PATIENCE)  # its bytes are nowhere, so it is not tried for ever
    assert state(save, "only") == "behind"
    assert steps(memory) == [0]


@pytest.mark.parametrize("error", [DOWN, OutOfSpaceError("full")], ids=lambda error: error.message)
@pytest.mark.parametrize("operation", ["upload", "write", "commit", "create", "list"])
def test_a_tier_that_was_down_gets_the_newest_step_when_it_is_back(
    make: Make, memory: MemoryBackend, tmp_path: Path, operation: str, error: Exception
) -> None:
    back = threading.Event()

    def refuse(_: Call) -> None:
        if not back.is_set():
            raise error

    faulty = Faulty(memory, Fault(operation, times=10**6, action=refuse))
    saver = make(folder("fast", tmp_path), tier("slow", faulty), commit_timeout=0.0)
    saves = [submit(saver, step) for step in range(3)]
    for save in saves:
        save.wait("fast", timeout=PATIENCE)
        until(lambda save=save: save.done)
        assert save.failed.keys() == {"slow"}
    assert len(saver.failures) == 3  # tries that follow are none of their own
    until(lambda: fired(faulty)[0] > 6)
    assert len(saver.failures) == 3
    back.set()
    until(lambda: not saves[2].failed)
    saver.close(timeout=PATIENCE)
    assert state(saves[2], "slow") == "committed"
    assert {0, 1, 2} & {*steps(memory)} >= {2}
    if operation in ("upload", "write"):
        assert steps(memory) == [2]
    assert_restores(choose([tier("slow", memory)], "run"), Attempt(2, 1, 1))
    assert not memory._space.uploads


def test_what_can_never_be_there_is_not_tried_again(
    make: Make, memory: MemoryBackend, tmp_path: Path
) -> None:
    faulty = Faulty(memory, Fault("upload", error=AlreadyExistsError("another job's")))
    saver = make(folder("fast", tmp_path), tier("slow", faulty))
    save = submit(saver, 0)
    until(lambda: save.done)
    saver.close(timeout=PATIENCE)
    assert state(save, "slow") == "failed"
    assert [call.operation for call in faulty.calls].count("upload") == 1


def test_the_first_tier_catches_up_from_a_lower_one(
    make: Make, memory: MemoryBackend, tmp_path: Path
) -> None:
    fast = tier("fast", Faulty(memory, Fault("upload", times=2, error=DOWN)))
    save = submit(make(fast, folder("slow", tmp_path)), 0)
    until(lambda: state(save, "fast") == "committed")
    save.wait(timeout=PATIENCE)
    assert_restores(choose([fast], "run"), Attempt(0, 1, 1))


def test_ranks_that_failed_and_ranks_that_wrote_end_with_one_commit(
    make: Make, tmp_path: Path
) -> None:
    """Rank 1 cannot reach the shared tier until rank 0 has long given up waiting for it."""
    shared, line, saves = MemoryBackend(f"memory://{tmp_path.name}"), launch(world=2), []
    back = threading.Event()

    def refuse(_: Call) -> None:
        if not back.is_set():
            raise DOWN

    for rank in (0, 1):
        inner = Faulty(shared, Fault("upload", times=10**6, action=refuse)) if rank else shared
        ladder = folder("local", tmp_path / str(rank), (rank,)), tier("shared", inner, (0, 1))
        shard, image = stage(Attempt(7, 1, 1), line, rank=rank, world=2)
        saves.append(make(*ladder, commit_timeout=0.0).submit(shard, image))
    for save, error in zip(saves, (IncompleteError, UnreachableError), strict=True):
        with pytest.raises(error):
            save.wait("shared", timeout=PATIENCE)
    back.set()
    for save in saves:
        until(lambda save=save: not save.failed)
        save.wait(timeout=PATIENCE)
    assert_restores(choose([tier("shared", shared)], "run"), Attempt(7, 1, 1))


def test_what_a_tier_owes_when_it_closes_stays_failed(
    make: Make, memory: MemoryBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = Faulty(memory, Fault("upload", times=10**6, error=DOWN))
    saver = make(folder("fast", tmp_path), tier("slow", faulty))
    with caplog.at_level(logging.WARNING):
        save = submit(saver, 0)
        until(lambda: fired(faulty)[0] > 3)
        saver.close(timeout=PATIENCE)
    assert state(save, "slow") == "failed"
    assert caplog.text.count("connection refused") == 1  # said once, not at each try


def test_another_save_that_fails_is_tried_again_soon() -> None:
    """The pauses that had grown were of the one before."""
    tier_turns: turns.Turns[str] = turns.Turns(2)
    for _ in range(4):
        tier_turns.put("a")
        tier_turns.settle(str(tier_turns.take()), again=True)
        tier_turns._due = 0.0
        tier_turns.settle(str(tier_turns.take()), again=True)
    tier_turns.put("b")
    assert tier_turns.take() == "b"
    tier_turns.settle("b", again=True)
    assert tier_turns._left() <= 1.25 * turns._FIRST_PAUSE
