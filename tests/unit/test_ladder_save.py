"""Saving down the ladder: states, failures, the staging image, and the last writer's commit."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fired import fired
from tests.patience import PATIENCE
from tests.shards import Image, assert_restores, folder, launch, stage, tier, until
from tierstore.backends.memory import MemoryBackend
from tierstore.checkpoint.delete import bury
from tierstore.checkpoint.store import RunStore
from tierstore.errors import (
    AccessError,
    AttemptDeletedError,
    CheckpointError,
    ConfigError,
    CorruptBlockError,
    DeadlineError,
    IncompleteError,
    OutOfSpaceError,
    UnreachableError,
)
from tierstore.image.pool import StagingPool
from tierstore.keys import Attempt
from tierstore.ladder.find import choose
from tierstore.ladder.handle import State
from tierstore.ladder.save import Saver
from tierstore.ladder.tiers import OpenTier
from tierstore.wrappers.delegate import Call
from tierstore.wrappers.faults import Fault, Faulty
from tierstore.wrappers.retry import Retrying

pytestmark = pytest.mark.usefixtures("no_leaks")

FIRST = Attempt(1, 1, 1)
Make = Callable[..., Saver]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make Savers that are closed when the test ends, also when it fails."""
    made: list[Saver] = []

    def new(*tiers: OpenTier, **options: Any) -> Saver:
        made.append(Saver(tiers, "run", **options))
        return made[-1]

    yield new
    for saver in made:
        saver.close(timeout=PATIENCE)


@pytest.fixture
def memory(tmp_path: Path) -> MemoryBackend:
    return MemoryBackend(f"memory://{tmp_path.name}")


def states(handle: Any) -> dict[str, str]:
    return {name: str(status.state) for name, status in handle.status().items()}


def test_a_save_reaches_every_tier_with_the_same_bytes(
    make: Make, memory: MemoryBackend, tmp_path: Path
) -> None:
    fast, slow = folder("fast", tmp_path / "fast"), tier("slow", memory)
    shard, image = stage(FIRST, launch())
    begun = time.monotonic()
    save = make(fast, slow).submit(shard, image)
    save.wait(timeout=PATIENCE)
    took = time.monotonic() - begun
    assert save.done
    assert states(save) == {"fast": "committed", "slow": "committed"}
    assert image.released
    total = sum(segment.size for segment in shard.layout.segments)
    for status in save.status().values():
        assert status.nbytes == total
        assert 0 < status.seconds <= took
        assert status.gb_per_s > 0
    for single in (fast, slow):
        assert_restores(choose([single], "run"), FIRST)
    for info in slow.backend.list("runs/run/"):
        other = bytearray(info.size)
        fast.backend.read_into(info.key, 0, memoryview(other))
        again = bytearray(info.size)
        slow.backend.read_into(info.key, 0, memoryview(again))
        assert other == again


def test_tiers_take_every_nth_save_beginning_with_the_first(
    make: Make, memory: MemoryBackend, tmp_path: Path
) -> None:
    fast, slow = folder("fast", tmp_path), tier("slow", memory, every=3)
    saver = make(fast, slow)
    seen = []
    for step in range(5):
        save = saver.submit(*stage(Attempt(step, 1, 1), launch()))
        save.wait(timeout=PATIENCE)
        seen.append(states(save)["slow"])
    assert seen == ["committed", "skipped", "skipped", "committed", "skipped"]
    with pytest.raises(CheckpointError, match=r"step 4 goes to \['fast'\], not to tier 'slow'"):
        save.wait("slow")
    last = saver.submit(*stage(Attempt(5, 1, 1), launch()), tiers=["slow"])
    last.wait(timeout=PATIENCE)
    assert states(last) == {"fast": "skipped", "slow": "committed"}
    for wrong, text in ((["tape"], "no tier 'tape'"), ([], "at least one tier")):
        shard, image = stage(Attempt(6, 1, 1), launch())
        with pytest.raises(ConfigError, match=text):
            saver.submit(shard, image, tiers=wrong)
        assert image.released


@pytest.mark.parametrize("broken", ["first", "second"])
@pytest.mark.parametrize("error", [OutOfSpaceError("full"), AccessError("expired")])
def test_a_failing_tier_stops_nobody_and_never_becomes_success(
    make: Make, tmp_path: Path, broken: str, error: Exception
) -> None:
    tiers = []
    for name in ("first", "second"):
        backend = MemoryBackend(f"memory://{tmp_path.name}-{name}")
        fault = Fault("write", nth=2, times=99, error=error)
        tiers.append(tier(name, Faulty(backend, fault) if name == broken else backend))
    saver = make(*tiers)
    shard, image = stage(FIRST, launch())
    save = saver.submit(shard, image)
    good = "second" if broken == "first" else "first"
    save.wait(good, timeout=PATIENCE)
    with pytest.raises(type(error)):
        save.wait(broken, timeout=PATIENCE)
    with pytest.raises(type(error)):
        save.wait(timeout=PATIENCE)
    assert states(save) == {good: "committed", broken: "failed"}
    assert list(save.failed) == [broken]
    assert [(f.attempt, f.tier) for f in saver.failures] == [(FIRST, broken)]
    assert image.released
    assert_restores(choose(tiers, "run"), FIRST)
    inner = next(t.backend for t in tiers if t.name == broken).inner  # type: ignore[attr-defined]
    assert not inner._space.uploads
    assert not RunStore(inner, "run").entries()


def test_a_fault_at_any_request_ends_in_an_error_or_a_checkpoint(tmp_path: Path) -> None:
    failed = 0
    for nth in range(1, 200):
        backend = MemoryBackend(f"memory://{tmp_path.name}-{nth}")
        faulty = Faulty(backend, Fault("*", nth=nth, error=AccessError("expired")))
        saver = Saver([tier("t", faulty)], "run", commit_timeout=PATIENCE)
        save = saver.submit(*stage(FIRST, launch()))
        saver.close(timeout=PATIENCE)
        assert not backend._space.uploads
        if not save.failed:
            assert_restores(choose([tier("t", backend)], "run"), FIRST)
            if nth > len(faulty.calls):
                break
            continue
        failed += 1
        assert isinstance(save.failed["t"], AccessError)
    assert failed > 10
    assert nth > len(faulty.calls)


def hold(event: threading.Event) -> Callable[[Call], None]:
    return lambda _: (event.wait(PATIENCE), None)[1]


def the_next_save_gets_the_image(
    make: Make, tmp_path: Path, slow: OpenTier, gate: threading.Event, operation: str
) -> None:
    """One tier has the bytes, the slow one is at `operation` until the gate opens."""
    pool = StagingPool(str(tmp_path / "staging"))
    saver = make(folder("fast", tmp_path), slow, pool=pool)
    shard, staged = stage(FIRST, launch())
    image = saver.acquire(shard.layout.size, timeout=PATIENCE)
    image.buffer[: len(staged.buffer)] = staged.buffer
    save = saver.submit(shard, image)
    save.wait("fast", timeout=PATIENCE)
    faulty: Any = slow.backend
    faulty = faulty.inner if isinstance(faulty, Retrying) else faulty
    until(lambda: operation in [call.operation for call in faulty.calls])
    second = saver.acquire(shard.layout.size, timeout=PATIENCE / 10)
    assert states(save)["slow"] == "writing"
    second.buffer[:] = b"\xee" * len(second.buffer)
    gate.set()
    save.wait("slow", timeout=PATIENCE)
    assert_restores(choose([slow], "run"), FIRST)  # read back from the fast tier, not the image
    second.release()
    pool.close()


def test_the_image_is_given_up_once_another_save_wants_it_and_one_tier_has_its_bytes(
    make: Make, tmp_path: Path
) -> None:
    gate = threading.Event()
    memory = MemoryBackend(f"memory://{tmp_path.name}")
    slow = tier("slow", Faulty(memory, Fault("upload", action=hold(gate))))
    the_next_save_gets_the_image(make, tmp_path, slow, gate, "upload")


def test_a_request_that_is_repeated_does_not_keep_the_image(make: Make, tmp_path: Path) -> None:
    gate = threading.Event()

    def refuse(_: Call) -> None:
        if not gate.is_set():
            raise UnreachableError("gone")

    memory = MemoryBackend(f"memory://{tmp_path.name}")
    down = Retrying(Faulty(memory, Fault("write", times=10**6, action=refuse)), seconds=PATIENCE)
    the_next_save_gets_the_image(make, tmp_path, tier("slow", down), gate, "write")


def test_an_image_that_no_tier_has_yet_is_not_given_up(make: Make, tmp_path: Path) -> None:
    gate = threading.Event()
    memory = MemoryBackend(f"memory://{tmp_path.name}")
    only = tier("only", Faulty(memory, Fault("upload", action=hold(gate))))
    pool = StagingPool(str(tmp_path / "staging"))
    saver = make(only, pool=pool)
    shard, _ = stage(FIRST, launch())
    saver.submit(shard, saver.acquire(shard.layout.size, timeout=PATIENCE))
    with pytest.raises(DeadlineError, match="no staging image became free"):
        saver.acquire(shard.layout.size, timeout=0.1)
    threading.Timer(0.1, gate.set).start()
    saver.acquire(shard.layout.size, timeout=PATIENCE).release()
    saver.close()
    pool.close()


def test_a_damaged_first_tier_does_not_damage_the_second(make: Make, tmp_path: Path) -> None:
    gate = threading.Event()
    fast = folder("fast", tmp_path)
    memory = MemoryBackend(f"memory://{tmp_path.name}")
    slow = tier("slow", Faulty(memory, Fault("upload", action=hold(gate))))
    saver = make(fast, slow)
    shard, image = stage(FIRST, launch())
    save = saver.submit(shard, image)
    save.wait("fast", timeout=PATIENCE)
    next(iter(saver._images)).lease.revoke()
    path = next(tmp_path.rglob("00000-000.safetensors"))
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    gate.set()
    with pytest.raises(CorruptBlockError, match="block 0 is damaged on every tier"):
        save.wait("slow", timeout=PATIENCE)
    assert not RunStore(memory, "run").entries()


def test_a_stuck_tier_is_overtaken(make: Make, tmp_path: Path) -> None:
    gate = threading.Event()
    stuck_memory = MemoryBackend(f"memory://{tmp_path.name}-stuck")
    stuck = tier("stuck", Faulty(stuck_memory, Fault("upload", action=hold(gate))))
    other = folder("other", tmp_path)
    save = make(stuck, other, overtake=0.1).submit(*stage(FIRST, launch()))
    save.wait("other", timeout=PATIENCE)
    assert states(save)["stuck"] == "writing"
    with pytest.raises(DeadlineError, match=r"not committed on \['stuck'\] after 0.01 s"):
        save.wait(timeout=0.01)
    gate.set()
    save.wait(timeout=PATIENCE)


def test_the_last_writer_commits_for_all(make: Make, tmp_path: Path) -> None:
    line = launch(world=3)
    saves = []
    for rank in (2, 0, 1):
        saver = make(folder("t", tmp_path, range(3)))
        saves.append(saver.submit(*stage(FIRST, line, rank=rank, world=3)))
        saves[-1].wait(timeout=PATIENCE, until="written")
        if len(saves) < 3:
            assert not RunStore(saver._tiers[0].backend, "run").entries()
    for save in saves:
        save.wait(timeout=PATIENCE)
    assert_restores(choose([folder("t", tmp_path)], "run"), FIRST)


def test_a_commit_of_other_ranks_is_no_success(make: Make, tmp_path: Path) -> None:
    line = launch(world=2)
    savers = [make(folder("t", tmp_path, (rank,))) for rank in range(2)]  # each believes it alone
    first, second = (
        saver.submit(*stage(FIRST, line, rank=rank, world=2)) for rank, saver in enumerate(savers)
    )
    with contextlib.suppress(CheckpointError):
        first.wait(timeout=PATIENCE)
    with contextlib.suppress(CheckpointError):
        second.wait(timeout=PATIENCE)
    errors = [*first.failed.values(), *second.failed.values()]
    assert [str(error).partition(" (")[0] for error in errors] in (
        [f"tier 't': the commit of step 1 covers only ranks [{rank}]"] for rank in range(2)
    )


def test_a_last_writer_that_dies_before_its_commit_is_replaced(make: Make, tmp_path: Path) -> None:
    line = launch(world=2)
    dying = Faulty(
        folder("t", tmp_path).backend,
        Fault("create", key="manifest-", times=99, error=AccessError("dead")),
    )
    first = make(folder("t", tmp_path, (0, 1))).submit(*stage(FIRST, line, rank=0, world=2))
    first.wait(timeout=PATIENCE, until="written")
    last = make(tier("t", dying, (0, 1))).submit(*stage(FIRST, line, rank=1, world=2))
    first.wait(timeout=PATIENCE)
    assert_restores(choose([folder("t", tmp_path)], "run"), FIRST)
    with pytest.raises(AccessError):
        last.wait(timeout=PATIENCE)


def test_missing_ranks_are_named_at_the_deadline(make: Make, tmp_path: Path) -> None:
    saver = make(folder("t", tmp_path, range(4)), commit_timeout=0.3)
    save = saver.submit(*stage(FIRST, launch(world=4), rank=1, world=4))
    with pytest.raises(IncompleteError, match=r"ranks \[0, 2, 3\] have not written their part"):
        save.wait(timeout=PATIENCE)


def test_trouble_while_waiting_for_the_commit_is_waited_out(make: Make, tmp_path: Path) -> None:
    faulty = Faulty(
        folder("t", tmp_path).backend,
        Fault("list", key="fragments/", times=3, error=UnreachableError("reset")),
    )
    save = make(tier("t", faulty)).submit(*stage(FIRST, launch()))
    save.wait(timeout=PATIENCE)
    assert fired(faulty) == [3]
    assert_restores(choose([folder("t", tmp_path)], "run"), FIRST)


def test_a_late_committer_finds_the_tombstone(make: Make, tmp_path: Path) -> None:
    fast = folder("t", tmp_path)
    bury(fast.backend, RunStore(fast.backend, "run").keys.commit(FIRST))
    save = make(fast).submit(*stage(FIRST, launch()))
    with pytest.raises(AttemptDeletedError):
        save.wait(timeout=PATIENCE)


def test_a_launch_whose_number_is_anothers_saves_all_the_same(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fast = folder("t", tmp_path)
    RunStore(fast.backend, "run").claim_launch(launch(1, world=7))
    save = make(fast).submit(*stage(FIRST, launch()))
    save.wait(timeout=PATIENCE)
    assert "another launch has number 1; this one is told from it by its nonce" in caplog.text
    assert_restores(choose([fast], "run"), FIRST)


def test_close_gives_up_what_takes_too_long(make: Make, tmp_path: Path) -> None:
    saver = make(folder("t", tmp_path, (0, 1)))
    shard, image = stage(FIRST, launch(world=2), world=2)
    save = saver.submit(shard, image)
    save.wait(timeout=PATIENCE, until="written")
    saver.close(timeout=0.1)
    with pytest.raises(CheckpointError, match="the saver was closed"):
        save.wait()
    late = Image(shard.layout.size)
    with pytest.raises(CheckpointError, match="closed"):
        saver.submit(shard, late)
    assert late.released
    saver.close()


def test_saves_leave_nothing_behind_in_memory(make: Make, tmp_path: Path) -> None:
    broken = Faulty(
        MemoryBackend(f"memory://{tmp_path.name}"),
        Fault("write", times=10**6, error=OutOfSpaceError("full")),
    )
    saver = make(folder("fast", tmp_path), tier("broken", broken))
    handles, images = [], []
    for step in range(10):
        shard, image = stage(Attempt(step, 1, 1), launch())
        handles.append(saver.submit(shard, image))
        images.append(weakref.ref(image))
        del shard, image
        with pytest.raises(OutOfSpaceError):
            handles[-1].wait(timeout=PATIENCE)
    gc.collect()
    assert sum(image() is not None for image in images) <= 1  # the lanes' last one
    assert len(handles) == 10


def test_a_failed_image_is_freed_and_the_error_holds_no_view_of_it(
    make: Make, tmp_path: Path
) -> None:
    memory = MemoryBackend(f"memory://{tmp_path.name}")
    broken = tier("t", Faulty(memory, Fault("write", times=99, error=OutOfSpaceError("full"))))
    pool = StagingPool(str(tmp_path / "staging"))
    saver = make(broken, pool=pool)
    shard, _ = stage(FIRST, launch())
    save = saver.submit(shard, saver.acquire(shard.layout.size, timeout=PATIENCE))
    with pytest.raises(OutOfSpaceError):
        save.wait(timeout=PATIENCE)
    image = saver.acquire(shard.layout.size, timeout=PATIENCE)
    memory_of_image = image._memory
    image.release()
    del image
    assert memory_of_image.unused()
    assert save.status()["t"].state is State.FAILED
    pool.close()
