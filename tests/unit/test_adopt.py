"""Files that a tier takes by a link, without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.attempts import contents
from tests.shards import assert_restores, folder
from tests.staging import FIRST, SECOND, change, only, staged
from tierstore.backend import adopt, local_path
from tierstore.backends.images import ImagesBackend
from tierstore.backends.local.backend import LocalBackend, LocalOptions
from tierstore.backends.memory import MemoryBackend
from tierstore.blocks import block_crcs
from tierstore.checkpoint.fragment import FileEntry
from tierstore.errors import IntegrityError
from tierstore.image.pool import StagingPool
from tierstore.keys import RunKeys
from tierstore.ladder.find import choose
from tierstore.wrappers.retry import Retrying

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def pool(shm_path: Path) -> Iterator[StagingPool]:
    with closing(StagingPool(str(shm_path), limit=4)) as made:
        yield made


@pytest.fixture
def images(shm_path: Path) -> ImagesBackend:
    return ImagesBackend(shm_path)


def test_a_tier_in_the_same_tmpfs_takes_the_files_by_a_link(
    pool: StagingPool, images: ImagesBackend, shm_path: Path
) -> None:
    shard, image = staged(pool)
    one = folder("t", shm_path / "tier")
    assert only(images).send(one.backend) is not None
    assert only(images).send(one.backend) is not None
    keys = RunKeys("run").attempt(FIRST, shard.launch.nonce)
    for segment in shard.layout.segments:
        stored = Path(str(local_path(one.backend, keys.segment(segment.name))))
        assert stored.samefile(Path(str(image.path)) / segment.name)
        written = Path(str(local_path(one.backend, keys.fragment(0))))
        assert stored.stat().st_mode == written.stat().st_mode
    image.release()
    _, again = staged(pool, SECOND)  # over no file that is the tier's
    assert again.path != image.path
    assert_restores(choose([one], "run"), FIRST)
    again.release()
    pool.close()
    assert_restores(choose([one], "run"), FIRST)


def test_what_is_damaged_is_taken_by_no_tier(
    pool: StagingPool, images: ImagesBackend, shm_path: Path
) -> None:
    shard, image = staged(pool)
    files = [
        FileEntry(s.name, s.size, block_crcs(image.buffer[s.image_offset :][: s.size]))
        for s in shard.layout.segments
    ]
    told = shard.description("run", files)
    image.describe(told.name, told.to_bytes())
    change(image, shard.layout.segments[1].name, 9000)
    one = folder("t", shm_path / "tier")
    with pytest.raises(IntegrityError, match="block 0 is damaged where it is staged"):
        only(images).send(one.backend)
    keys = RunKeys("run").attempt(FIRST, shard.launch.nonce)
    stored = [info.key for info in one.backend.list("runs/run/data/")]
    assert stored == [keys.segment(shard.layout.segments[0].name)]


def test_a_link_is_refused_where_it_would_not_be_the_same(shm_path: Path, tmp_path: Path) -> None:
    file = shm_path / "file"
    file.write_bytes(b"12345")
    other = shm_path / "other"
    other.symlink_to(file)
    here, there = folder("h", shm_path / "tier").backend, folder("t", tmp_path).backend
    assert adopt(there, "a/b", str(file), 5) is None
    assert adopt(MemoryBackend("memory://adopts-not"), "a/b", str(file), 5) is None
    assert adopt(here, "a/b", str(other), 5) is None
    assert adopt(here, "a/b", str(file), 4) is None
    info = adopt(here, "a/b", str(file), 5)
    assert info is not None
    assert (info.key, info.size) == ("a/b", 5)
    assert adopt(here, "a/b", str(file), 5) is not None  # repeated
    file.unlink()
    file.write_bytes(b"67890")
    assert adopt(here, "a/b", str(file), 5) is None
    assert contents(here) == {"a/b": b"12345"}
    strict = LocalBackend(str(shm_path / "strict"), LocalOptions(mode="0640"))
    assert adopt(Retrying(strict), "c", str(file), 5) is not None
    assert (shm_path / "strict/c").stat().st_mode & 0o777 == 0o640
