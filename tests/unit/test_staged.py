"""Staged shards, as a process finds them that had no part in the save."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE
from tests.shards import assert_restores, folder, launch, stage, tier, until
from tests.staging import FIRST, SECOND, change, copied, only, staged, whole
from tierstore.backends.images import ImagesBackend
from tierstore.backends.memory import MemoryBackend
from tierstore.blocks import block_count
from tierstore.checkpoint.delete import bury
from tierstore.errors import (
    AttemptDeletedError,
    FormatError,
    IntegrityError,
    NotFoundError,
    TruncatedFileError,
    UnsupportedError,
)
from tierstore.image.pool import StagingPool
from tierstore.keys import RunKeys
from tierstore.ladder.find import choose
from tierstore.ladder.save import Saver
from tierstore.ladder.staged import find_staged
from tierstore.ladder.staging_memory import diagnose_staging
from tierstore.wrappers.faults import Fault, Faulty

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def pool(shm_path: Path) -> Iterator[StagingPool]:
    with closing(StagingPool(str(shm_path), limit=4)) as made:
        yield made


@pytest.fixture
def images(shm_path: Path) -> ImagesBackend:
    return ImagesBackend(shm_path)


def test_segments_are_files_with_the_bytes_that_will_be_stored(
    pool: StagingPool, images: ImagesBackend
) -> None:
    shard, image = staged(pool)
    keys = RunKeys("run").attempt(FIRST, shard.launch.nonce)
    segments = shard.layout.segments
    assert len(segments) > 1
    for segment in segments:
        file = Path(str(image.path)) / segment.name
        end = segment.image_offset + segment.size
        assert file.read_bytes() == image.buffer[segment.image_offset : end]
        assert file.stat().st_mode & 0o777 == 0o600
        assert whole(images, keys.segment(segment.name)) == file.read_bytes()
    assert [info.key for info in images.list("")] == [
        *(keys.segment(segment.name) for segment in segments),
        keys.staged(0),
    ]


def test_a_listing_is_that_of_every_tier(pool: StagingPool, images: ImagesBackend) -> None:
    staged(pool)
    staged(pool, SECOND, rank=1, world=2)
    memory = MemoryBackend("memory://the-same")
    everything = list(images.list(""))
    for info in everything:
        memory.create(info.key, whole(images, info.key))
    prefixes = {info.key[:at] for info in everything for at in range(0, len(info.key) + 1, 3)}
    for prefix in sorted(prefixes):
        for delimiter in (False, True):
            for after in (None, prefix, prefix + "0", everything[2].key):
                got, wanted = (
                    [(i.key, i.size) for i in one.list(prefix, after=after, delimiter=delimiter)]
                    for one in (images, memory)
                )
                assert got == wanted, (prefix, delimiter, after)


def test_reading_is_exact(pool: StagingPool, images: ImagesBackend) -> None:
    staged(pool)
    info = next(images.list(""))
    data = whole(images, info.key)
    parts = [bytearray(5), bytearray(7)]
    images.read_into(info.key, 4090, *map(memoryview, parts))
    assert bytes(parts[0] + parts[1]) == data[4090:4102]
    buffer = memoryview(bytearray(info.size))
    assert images.fetch(info.key, buffer) == info
    assert buffer == data
    with pytest.raises(TruncatedFileError):
        images.read_into(info.key, info.size - 1, memoryview(bytearray(2)))
    with pytest.raises(TruncatedFileError):
        images.fetch(info.key, buffer[:-1])
    for other in (info.key[:-1], info.key.replace("-000.", "-999."), "runs/x", f"{info.key}/y"):
        with pytest.raises(NotFoundError):
            images.stat(other)


def test_nothing_is_written(pool: StagingPool, images: ImagesBackend) -> None:
    staged(pool)
    key = next(images.list("")).key
    writes: list[Callable[[], object]] = [
        lambda: images.create(key, b""),
        lambda: images.upload(key, 1),
        lambda: images.delete([key]),
    ]
    for write in writes:
        with pytest.raises(UnsupportedError, match="can only be read"):
            write()
    images.flush()
    images.close()


def test_an_image_is_incomplete_until_it_is_described_and_after_it_is_released(
    pool: StagingPool, images: ImagesBackend
) -> None:
    image = copied(pool, *stage(FIRST, launch()))
    found = find_staged(images)
    assert not found.shards
    (state,) = found.incomplete
    assert (str(state.path), state.shard, state.owned) == (image.path, None, True)
    assert list(images.list("")) == []
    image.release()
    _, again = staged(pool)
    assert again.path == image.path
    assert only(images).image.owned
    again.release()
    assert list(images.list("")) == []


def test_what_a_reader_holds_is_not_staged_over(pool: StagingPool, images: ImagesBackend) -> None:
    shard, image = staged(pool)
    name = shard.description("run").name
    key = next(images.list("")).key
    before = whole(images, key)
    with images.hold(name):
        image.release()
        other = copied(pool, *stage(SECOND, launch()))
        assert other.path != image.path
        with pytest.raises(NotFoundError):  # a tier has it, and it may go at any moment
            images.stat(key)
    other.release()
    assert before
    with pytest.raises(NotFoundError), images.hold(name):
        pass


def test_memory_is_reused_for_the_same_files_and_no_others(pool: StagingPool) -> None:
    _, image = staged(pool)
    address = image.address
    image.derived["views"] = kept = object()
    image.release()
    _, again = staged(pool, SECOND)
    assert (again.address, again.derived["views"]) == (address, kept)
    again.release()
    _, larger = staged(pool, SECOND, rows=1600)
    assert larger.path != again.path
    assert not Path(str(again.path)).exists()


def test_an_image_of_no_shard_cannot_be_described_and_one_of_a_shard_not_lent(
    pool: StagingPool,
) -> None:
    shard, image = staged(pool)
    with pytest.raises(UnsupportedError):
        image.lend()
    told = shard.description("run")
    with pytest.raises(UnsupportedError):
        pool.acquire(4096, timeout=1).describe(told.name, told.to_bytes())


def test_a_rank_that_holds_values_only_is_staged_too(
    pool: StagingPool, images: ImagesBackend, tmp_path: Path
) -> None:
    for rank in range(2):
        staged(pool, rank=rank, world=2, rows=1)  # rank 0 has no row
    backend = folder("t", tmp_path).backend
    shards = find_staged(images).shards
    assert [len(shard.description.fragment.files) for shard in shards] == [0, 1]
    assert [shard.send(backend) is not None for shard in shards] == [False, True]
    assert_restores(choose([tier("t", backend, (0, 1))], "run"), FIRST, rows=1)


def test_what_was_staged_is_checked_and_sent(
    pool: StagingPool, images: ImagesBackend, tmp_path: Path
) -> None:
    staged(pool)
    shard = only(images)
    assert not shard.description.checkable
    shard.check()
    one = folder("t", tmp_path)
    commit = shard.send(one.backend)
    assert commit is not None
    assert shard.send(one.backend) == commit
    assert_restores(choose([one], "run"), FIRST)


def test_ranks_are_sent_one_by_one_and_committed_with_the_last(
    pool: StagingPool, images: ImagesBackend, tmp_path: Path
) -> None:
    for rank in range(3):
        staged(pool, rank=rank, world=3)
    shared, node = (folder(name, tmp_path / name, range(3)) for name in ("shared", "node"))
    shards = find_staged(images).shards
    assert [shard.send(shared.backend) is None for shard in shards] == [True, True, False]
    assert_restores(choose([shared], "run"), FIRST)
    assert [shard.send(node.backend, (1, 2)) is None for shard in shards[1:]] == [True, False]


def test_a_deleted_checkpoint_is_not_sent_again(
    pool: StagingPool, images: ImagesBackend, tmp_path: Path
) -> None:
    staged(pool)
    backend = folder("t", tmp_path).backend
    bury(backend, RunKeys("run").commit(FIRST))
    with pytest.raises(AttemptDeletedError):
        only(images).send(backend)
    assert list(backend.list("runs/run/data/")) == []


@pytest.mark.parametrize("at", [8, 20, 200])
def test_a_damaged_header_is_noticed(
    pool: StagingPool, images: ImagesBackend, tmp_path: Path, at: int
) -> None:
    shard, image = staged(pool)
    change(image, shard.layout.segments[0].name, at)
    found, backend = only(images), folder("t", tmp_path).backend
    for use in (found.check, lambda: found.send(backend)):
        with pytest.raises(FormatError):
            use()
    assert list(backend.list("")) == []


def test_a_file_of_another_size_is_noticed(pool: StagingPool, images: ImagesBackend) -> None:
    shard, image = staged(pool)
    path = Path(str(image.path)) / shard.layout.segments[1].name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(TruncatedFileError, match="where staged"):
        only(images).check()
    path.unlink()
    with pytest.raises(NotFoundError):
        only(images).check()


def test_descriptions_that_lie_are_set_apart(pool: StagingPool, images: ImagesBackend) -> None:
    shard, image = staged(pool)
    told = shard.description("run")
    description = Path(str(image.path)) / str(told.name)
    good = description.read_bytes()
    other = stage(SECOND, launch())[0].description("run").to_bytes()
    for bad in (b"", good[:-1], good.replace(b"run@", b"ran@"), other):
        description.write_bytes(bad)
        found = find_staged(images)
        assert not found.shards
        ((state, error),) = found.damaged
        assert (str(state.path), isinstance(error, IntegrityError)) == (image.path, True)
    description.write_bytes(good)
    assert only(images).description.name == told.name


def test_what_others_may_have_written_is_not_read(
    pool: StagingPool, images: ImagesBackend, shm_path: Path
) -> None:
    shard, image = staged(pool)
    path = Path(str(image.path))
    segment = path / shard.layout.segments[0].name
    key = RunKeys("run").attempt(FIRST, shard.launch.nonce).segment(segment.name)
    aside = shm_path / "elsewhere"
    segment.rename(aside)
    segment.symlink_to(aside)
    with pytest.raises(Exception, match="symbolic links"):
        images.stat(key)
    segment.unlink()
    os.mkfifo(segment)
    with pytest.raises(NotFoundError):
        images.stat(key)
    segment.unlink()
    aside.rename(segment)
    images.stat(key)
    path.chmod(0o777)
    assert list(images.list("")) == []
    with pytest.raises(NotFoundError):
        images.stat(key)
    path.chmod(0o700)
    moved = shm_path / "moved"
    path.rename(moved)
    path.symlink_to(moved)
    assert list(images.list("")) == []
    path.unlink()
    moved.rename(path)


def test_the_saver_describes_what_it_holds_and_adds_the_crcs_when_a_tier_has_them(
    pool: StagingPool, images: ImagesBackend, tmp_path: Path
) -> None:
    first, second = threading.Event(), threading.Event()
    tiers = [
        tier(name, Faulty(folder(name, tmp_path / name).backend, _gated(gate)))
        for name, gate in (("fast", first), ("slow", second))
    ]
    shard, source = stage(FIRST, launch())
    with closing(Saver(tiers, "run", pool=pool)) as saver:
        image = copied(pool, shard, source)
        save = saver.submit(shard, image)
        until(lambda: find_staged(images).shards)
        assert not only(images).description.checkable
        first.set()
        save.wait("fast", timeout=PATIENCE)
        until(lambda: only(images).description.checkable)
        found = only(images)
        assert all(len(f.crcs) == block_count(f.size) for f in found.description.fragment.files)
        found.check()
        segment = shard.layout.segments[-1]
        change(image, segment.name, segment.size - 1)
        with pytest.raises(IntegrityError, match="is damaged: CRC32C"):
            found.check()
        with pytest.raises(IntegrityError, match="in the source"):
            found.send(folder("third", tmp_path / "third").backend)
        change(image, segment.name, segment.size - 1)
        second.set()
        save.wait(timeout=PATIENCE)
        until(lambda: not find_staged(images).shards)


def _gated(gate: threading.Event) -> Fault:
    return Fault("write", times=1000, action=lambda _: (gate.wait(PATIENCE), None)[1])


def test_without_room_for_a_description_a_save_is_as_good(
    pool: StagingPool,
    images: ImagesBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tierstore.image.folder.ImageFolder.describe", full)
    gate, one = threading.Event(), folder("t", tmp_path)
    shard, source = stage(FIRST, launch())
    with closing(Saver([tier("t", Faulty(one.backend, _gated(gate)))], "run", pool=pool)) as saver:
        save = saver.submit(shard, copied(pool, shard, source))
        until(lambda: "cannot be sent by another process" in caplog.text)
        assert not find_staged(images).shards
        gate.set()
        save.wait(timeout=PATIENCE)
    assert_restores(choose([one], "run"), FIRST)


TRAINER = """
import sys, time
from pathlib import Path
from tests.shards import launch, stage
from tests.staging import copied, staged
from tierstore.image.pool import StagingPool
from tierstore.keys import Attempt
pool = StagingPool(sys.argv[1])
if sys.argv[2] == "whole":
    staged(pool)
else:
    copied(pool, *stage(Attempt(7, 1, 1), launch()))
print("staged", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("what", ["whole", "half"])
def test_what_a_dead_trainer_held_is_named_when_it_is_removed(
    shm_path: Path, images: ImagesBackend, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    command = [sys.executable, "-c", TRAINER, str(shm_path), what]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"staged\n"
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    (fit, *left) = diagnose_staging(images)
    assert (fit.name, fit.outcome) == ("survives the trainer", "ok")
    assert [check.detail[:67] for check in left] == [
        "dead trainers left 1 staged shards, such as rank 0 of step 7 of run"
    ] * (what == "whole")
    states = images.images()
    assert [(state.shard is not None, state.owned) for state in states] == [
        (what == "whole", False)
    ]
    with caplog.at_level("INFO"):
        StagingPool(str(shm_path)).close()
    assert list(shm_path.iterdir()) == []
    named = "rank 0's part of step 7 of run run, which may be on no tier"
    assert (named in caplog.text) == (what == "whole")


def test_where_nothing_can_be_staged_that_survives_is_told(
    tmp_path: Path, shm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_check(path: Path) -> str:
        (check,) = diagnose_staging(ImagesBackend(path))
        assert (check.outcome, bool(check.advice)) == ("warning", True)
        return check.detail

    assert "nothing can be written" in only_check(tmp_path / "none")
    monkeypatch.setattr("tierstore.ladder.staging_memory.tmpfs_room", lambda _: 56 << 20)
    assert "room for 56 MiB" in only_check(shm_path)
    monkeypatch.setattr("tierstore.ladder.staging_memory.kind_of", lambda _: "ext4")
    assert "the file system is ext4" in only_check(tmp_path)
