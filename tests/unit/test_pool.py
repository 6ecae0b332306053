"""The staging pool: real mappings and real locks."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tierstore.errors import (
    CheckpointError,
    DeadlineError,
    OutOfSpaceError,
    UnsupportedError,
)
from tierstore.image.capacity import available_memory
from tierstore.image.pool import StagingPool

MIB = 1024**2


@pytest.fixture
def folder(shm_path):
    return shm_path / "pool"


@pytest.fixture
def pool(folder):
    with_room = StagingPool(str(folder), limit=1)
    yield with_room
    with_room.close()


def images(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.image"))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_image_is_an_aligned_private_file_in_a_private_folder(pool, folder):
    image = pool.acquire(MIB + 1, timeout=1)
    assert len(image.buffer) >= MIB + 1
    assert len(image.buffer) % 4096 == 0
    assert image.address % 4096 == 0
    assert not image.buffer.readonly
    assert image.shared
    (path,) = images(folder)
    assert image.path == str(path)
    assert path.stat().st_mode & 0o777 == 0o700
    (file,) = path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_blocks * 512 >= MIB
    assert str(os.geteuid()) in path.name
    image.buffer[:4] = b"ABCD"
    assert ctypes.string_at(image.address, 4) == b"ABCD"
    assert file.read_bytes()[:4] == b"ABCD"


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097])
def test_sizes_are_rounded_up_to_pages(pool, size):
    image = pool.acquire(size, timeout=1)
    assert len(image.buffer) == max(4096, -(-size // 4096) * 4096)


def test_memory_is_reused_with_what_was_derived_from_it(pool):
    first = pool.acquire(MIB, timeout=1)
    first.buffer[:3] = b"old"
    first.derived["views"] = views = object()
    first.release()
    second = pool.acquire(MIB // 2, timeout=1)
    assert second is not first
    assert second.address == first.address
    assert bytes(second.buffer[:3]) == b"old"
    assert second.derived["views"] is views


def test_growing_replaces_the_file(pool, folder):
    discarded = []
    small = pool.acquire(MIB, timeout=1)
    small.derived["views"] = 1
    small.on_discard(lambda: discarded.append(Path(small.path).exists()))
    small.release()
    large = pool.acquire(2 * MIB, timeout=1)
    assert len(large.buffer) == 2 * MIB
    assert large.derived == {}
    assert discarded == [True]
    assert [str(path) for path in images(folder)] == [large.path]


def test_the_smallest_that_is_large_enough_is_taken(folder):
    pool = StagingPool(str(folder), limit=3)
    leases = [pool.acquire(n * MIB, timeout=1) for n in (3, 1, 2)]
    for lease in leases:
        lease.release()
    assert len(pool.acquire(2 * MIB, timeout=1).buffer) == 2 * MIB
    assert len(images(folder)) == 3
    pool.close()
    assert images(folder) == []


def test_a_late_second_release_frees_nobody_elses_image(pool):
    first = pool.acquire(MIB, timeout=1)
    first.release()
    first.release()
    second = pool.acquire(MIB, timeout=1)
    first.release()
    with pytest.raises(DeadlineError):
        pool.acquire(MIB, timeout=0)
    second.release()
    pool.acquire(MIB, timeout=0).release()


def test_deadline_names_the_holder_and_the_remedy(pool):
    image = pool.acquire(MIB, timeout=1, holder="step 100")
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"became free within 0\.1 s") as caught:
        pool.acquire(MIB, timeout=0.1)
    assert time.monotonic() - started >= 0.1
    assert "step 100" in str(caught.value)
    assert image.path in str(caught.value)
    assert "allow more images" in caught.value.hint


def meanwhile(pool, act, monkeypatch) -> list[bool]:
    """Have a thread do something once somebody waits; return how each wait ended: woken, or not."""
    wait, woken = pool._changed.wait, []

    def waits(seconds: float) -> bool:
        thread = threading.Thread(target=act)  # it needs the lock, which the wait lets go of
        thread.start()
        woken.append(wait(seconds))
        return woken[-1]

    monkeypatch.setattr(pool._changed, "wait", waits)
    return woken


def test_acquire_wakes_when_an_image_is_released(pool, monkeypatch):
    image = pool.acquire(MIB, timeout=1)
    woken = meanwhile(pool, image.release, monkeypatch)
    pool.acquire(MIB, timeout=PATIENCE)
    assert woken == [True]


def test_threads_never_share_an_image(folder):
    pool = StagingPool(str(folder), limit=2)

    def work(number: int) -> None:
        for turn in range(20):
            image = pool.acquire(4096 * (1 + (number + turn) % 3), timeout=PATIENCE)
            mark = bytes([number]) * 4096
            image.buffer[:4096] = mark
            time.sleep(0)
            assert image.buffer[:4096] == mark
            image.release()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert 1 <= len(images(folder)) <= 2
    pool.close()


def test_close_removes_everything_and_is_idempotent(folder):
    before = descriptors()
    pool = StagingPool(str(folder))
    image = pool.acquire(MIB, timeout=1)
    pool.close()
    pool.close()
    image.release()
    assert images(folder) == []
    assert descriptors() == before
    with pytest.raises(CheckpointError, match="closed"):
        pool.acquire(1, timeout=1)


def test_close_leaves_memory_that_is_still_viewed(folder):
    pool = StagingPool(str(folder))
    image = pool.acquire(MIB, timeout=1)
    image.buffer[:3] = b"abc"
    view = image.buffer[:3]
    pool.close()
    assert bytes(view) == b"abc"
    assert images(folder) == []


def test_close_wakes_who_waits(pool, monkeypatch):
    pool.acquire(MIB, timeout=1)
    woken = meanwhile(pool, pool.close, monkeypatch)
    with pytest.raises(CheckpointError, match="closed"):
        pool.acquire(MIB, timeout=PATIENCE)
    assert woken == [True]


def test_a_forgotten_pool_removes_its_files(folder):
    pool = StagingPool(str(folder))
    pool.acquire(MIB, timeout=1).release()
    assert len(images(folder)) == 1
    del pool
    assert images(folder) == []


def test_one_failure_leaves_the_pool_usable(pool, folder, monkeypatch):
    def full(*_args):
        raise OutOfSpaceError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("tierstore.image.memory.check_memory", full)
        with pytest.raises(OutOfSpaceError):
            pool.acquire(MIB, timeout=1)
    assert images(folder) == []
    assert pool.acquire(MIB, timeout=1).shared


def test_more_than_the_memory_is_refused(pool, folder, monkeypatch):
    # The folder may have the room; the memory limit must be what refuses.
    monkeypatch.setattr("tierstore.image.memory.tmpfs_room", lambda _: None)
    room = available_memory()
    if room is None:
        pytest.skip("this system does not tell its memory")
    with pytest.raises(OutOfSpaceError, match="does not fit in memory"):
        pool.acquire(room * 2, timeout=1)
    assert images(folder) == []


def test_unusable_folder_means_anonymous_memory_and_one_warning(tmp_path, caplog):
    obstacle = tmp_path / "file"
    obstacle.write_text("")
    pool = StagingPool(str(obstacle / "pool"), limit=2)
    with caplog.at_level(logging.WARNING):
        first, second = (pool.acquire(MIB, timeout=1) for _ in range(2))
    assert len(caplog.records) == 1
    assert "lost if this process dies" in caplog.text
    for image in (first, second):
        assert not image.shared
        assert image.path is None
        assert image.address % 4096 == 0
        image.buffer[:1] = b"x"
        with pytest.raises(UnsupportedError):
            image.lend()
    first.release()
    assert pool.acquire(MIB, timeout=1).address == first.address
    pool.close()


def test_a_failing_callback_is_logged_and_the_memory_still_goes(pool, folder, caplog):
    image = pool.acquire(MIB, timeout=1)
    called = []
    image.on_discard(lambda: called.append(1))
    image.on_discard(lambda: 1 // 0)
    pool.close()
    assert called == [1]
    assert "ZeroDivisionError" in caplog.text
    assert images(folder) == []


def test_release_by_the_garbage_collector_inside_acquire(folder):
    pool = StagingPool(str(folder), limit=1)
    image = pool.acquire(MIB, timeout=1)
    with pool._changed:  # as a finaliser would, in the thread that has the lock
        image.release()
        assert pool.acquire(MIB, timeout=0).address == image.address
    pool.close()


def test_a_pool_needs_room_for_one():
    with pytest.raises(ValueError, match="at least one"):
        StagingPool(limit=0)


def test_hundred_saves_take_no_more_memory(pool, folder):
    pool.acquire(MIB, timeout=1).release()
    before = descriptors(), images(folder)
    for turn in range(100):
        image = pool.acquire(MIB - turn, timeout=0)
        image.buffer[:1] = b"x"
        image.release()
    assert (descriptors(), images(folder)) == before
