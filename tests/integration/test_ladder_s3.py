"""The ladder over a local folder and a real MinIO, with a network that fails in real ways."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.fired import fired
from tests.patience import PATIENCE
from tests.shards import assert_restores, folder, launch, stage, tier, until
from tierstore.blocks import BLOCK_SIZE
from tierstore.config import Policy, TierConfig
from tierstore.errors import (
    AccessError,
    CorruptBlockError,
    NotFoundError,
    StorageError,
    ThrottledError,
    TransientError,
    UnreachableError,
)
from tierstore.image.pool import StagingPool
from tierstore.keys import Attempt
from tierstore.ladder.find import choose
from tierstore.ladder.save import Saver
from tierstore.ladder.tiers import OpenTier
from tierstore.testing.servers import Proxy, Toxiproxy
from tierstore.transfer.verify import verify_files
from tierstore.wrappers import open_tier
from tierstore.wrappers.faults import Fault, Faulty
from tierstore.wrappers.retry import Retrying

pytestmark = [pytest.mark.minio]

FIRST = Attempt(1, 1, 1)
ROWS = 12_000  # 47 MiB
SIZE = 512 * 1024**2
QUICK: dict[str, Any] = {"stall_timeout": 3.0}
SMALL: dict[str, Any] = {"part_size": 8 * 1024**2, "read_size": 4 * 1024**2}


def remote(opened: ExitStack, bucket: Any, *, retry: float = 10.0, **options: Any) -> OpenTier:
    """Open MinIO as the tier "s3", with small parts so that there are many."""
    config = TierConfig(
        "s3",
        f"s3://{bucket.name}/t",
        options={**SMALL, **options},
        policy=Policy(retry_seconds=retry),
    )
    return OpenTier(config, opened.enter_context(closing(open_tier(config))))


@pytest.fixture
def proxy(toxics: Toxiproxy, minio_bucket: Any) -> Proxy:
    return toxics.proxy(minio_bucket.server.address)


@pytest.fixture
def opened(minio_bucket: Any, proxy: Proxy, no_leaks: None) -> Iterator[ExitStack]:
    """Close what a test opened; what it leaves behind counts from after the servers' start."""
    with ExitStack() as stack:
        yield stack


def through(opened: ExitStack, bucket: Any, proxy: Proxy, *, retry: float = 15.0) -> OpenTier:
    return remote(opened, bucket, retry=retry, endpoint_url=proxy.endpoint, **QUICK)


def staged(attempt: Attempt = FIRST) -> Any:
    return stage(attempt, launch(), rows=ROWS, segment_bytes=SIZE)


def save(*tiers: OpenTier) -> dict[str, BaseException]:
    """Save once to the end and return what failed."""
    with closing(Saver(tiers, "run", commit_timeout=PATIENCE)) as saver:
        handle = saver.submit(*staged())
        until(lambda: handle.done)
    return handle.failed


def test_a_save_reaches_both_tiers_and_comes_back_from_either(
    minio_bucket: Any, tmp_path: Path, opened: ExitStack
) -> None:
    local, s3 = folder("local", tmp_path), remote(opened, minio_bucket)
    assert save(local, s3) == {}
    for tiers in ([local, s3], [s3]):
        found = choose(tiers, "run")
        assert_restores(found, FIRST, ROWS)
        for replica in found.replicas:
            assert not any(check.damage for check in verify_files(replica, found.manifest.files))
    minio_bucket.assert_no_uploads()


def test_s3_is_fed_from_the_local_tier_once_the_image_is_wanted(
    minio_bucket: Any, tmp_path: Path, opened: ExitStack
) -> None:
    gate = threading.Event()
    # Two parts at a time, so that others are left when the image is wanted.
    s3 = remote(opened, minio_bucket, concurrency=2)
    local = Faulty(folder("local", tmp_path).backend)
    held = Fault("write", nth=2, times=99, action=lambda _: (gate.wait(PATIENCE), None)[1])
    gated = Faulty(s3.backend, held)
    slow = OpenTier(s3.config, gated)
    pool = StagingPool(str(tmp_path / "staging"))
    with closing(Saver([tier("local", local), slow], "run", pool=pool)) as saver:
        shard, source = staged()
        image = saver.acquire(shard.layout.size, timeout=PATIENCE)
        image.buffer[: len(source.buffer)] = source.buffer
        handle = saver.submit(shard, image)
        handle.wait("local", timeout=PATIENCE)
        until(lambda: fired(gated) > [0])
        (lease,) = (waiting.lease for waiting in saver._images)
        taken = threading.Thread(target=lambda: _overwrite(saver, shard.layout.size))
        taken.start()  # comes when the parts that are being sent have let go of the image
        until(lambda: not lease.held)
        assert not _read_back(local)
        gate.set()
        handle.wait("s3", timeout=PATIENCE)
        taken.join()
    pool.close()
    assert _read_back(local)
    assert_restores(choose([slow], "run"), FIRST, ROWS)


def _read_back(local: Faulty) -> list[int]:
    """Where the local tier's data was read, by the tier below it."""
    segments = [call for call in local.calls if call.key.endswith(".safetensors")]
    return [call.offset for call in segments if call.operation == "read_into"]


def _overwrite(saver: Saver, size: int) -> None:
    image = saver.acquire(size, timeout=PATIENCE)
    image.buffer[:] = b"\xee" * len(image.buffer)
    image.release()


@pytest.mark.parametrize(
    "error", [ThrottledError("503 SlowDown"), UnreachableError("500"), TransientError("reset")]
)
def test_passing_faults_of_the_server_are_waited_out(
    minio_bucket: Any, opened: ExitStack, error: Exception
) -> None:
    s3 = remote(opened, minio_bucket)
    faults = [
        Fault(operation, nth=nth, times=3, error=error)
        for operation, nth in (("write", 2), ("commit", 1), ("create", 2))
    ]
    inner = Faulty(s3.backend, *faults, Fault("write", nth=6, error=error, after=True))
    assert save(tier("s3", Retrying(inner, seconds=PATIENCE))) == {}
    assert fired(inner) == [3, 3, 3, 1]
    assert_restores(choose([s3], "run"), FIRST, ROWS)
    minio_bucket.assert_no_uploads()


@pytest.mark.parametrize("operation", ["upload", "write", "commit", "create"])
def test_lasting_faults_fail_the_tier_and_leave_nothing_open(
    minio_bucket: Any, tmp_path: Path, opened: ExitStack, operation: str
) -> None:
    s3 = remote(opened, minio_bucket)
    faulty = Faulty(s3.backend, Fault(operation, nth=1, times=99, error=AccessError("expired")))
    failed = save(folder("local", tmp_path), tier("s3", faulty))
    assert {name: type(error) for name, error in failed.items()} == {"s3": AccessError}
    minio_bucket.assert_no_uploads()
    assert_restores(choose([folder("local", tmp_path), s3], "run"), FIRST, ROWS)


TOXICS: dict[str, tuple[str, str, dict[str, int]]] = {
    "reset while sending": ("reset_peer", "upstream", {"timeout": 30}),
    "reset while answering": ("reset_peer", "downstream", {"timeout": 30}),
    "half a body sent": ("limit_data", "upstream", {"bytes": 3_000_000}),
    "a server that never answers": ("timeout", "downstream", {"timeout": 0}),
    "a network that stalls": ("timeout", "upstream", {"timeout": 0}),
}


@pytest.mark.parametrize("toxic", TOXICS.values(), ids=TOXICS.keys())
def test_a_save_outlasts_a_network_that_fails_for_a_while(
    minio_bucket: Any, proxy: Proxy, opened: ExitStack, toxic: tuple[Any, Any, dict[str, int]]
) -> None:
    kind, stream, attributes = toxic
    s3 = through(opened, minio_bucket, proxy, retry=PATIENCE)

    def noticed() -> bool:
        return s3.backend.snapshot().retries.get("write", 0) > 0

    with ThreadPoolExecutor(1) as pool:

        def break_network(_: object) -> None:
            name = proxy.add(kind, stream=stream, **attributes)
            mending.append(pool.submit(lambda: (until(noticed), proxy.remove(name))))
            time.sleep(0.1)  # other parts are being sent

        mending: list[Future[Any]] = []
        failing = Faulty(s3.backend, Fault("write", nth=3, action=break_network))
        assert save(tier("s3", failing)) == {}
        mending[0].result()
    assert noticed()
    assert_restores(choose([remote(opened, minio_bucket)], "run"), FIRST, ROWS)
    minio_bucket.assert_no_uploads()


@pytest.mark.parametrize("toxic", TOXICS.values(), ids=TOXICS.keys())
def test_a_save_to_a_network_that_stays_broken_ends_in_a_clear_error(
    minio_bucket: Any,
    proxy: Proxy,
    tmp_path: Path,
    opened: ExitStack,
    toxic: tuple[Any, Any, dict[str, int]],
) -> None:
    kind, stream, attributes = toxic
    s3 = through(opened, minio_bucket, proxy, retry=2)
    with proxy.toxic(kind, stream=stream, **attributes):
        failed = save(folder("local", tmp_path), s3)
    error = failed["s3"]
    assert isinstance(error, StorageError)
    assert "s3://" in str(error)
    assert set(failed) == {"s3"}
    minio_bucket.assert_no_uploads()
    assert choose([folder("local", tmp_path), s3], "run").attempt == FIRST


@pytest.mark.parametrize(
    "toxic",
    [
        ("reset_peer", {"timeout": 30}),
        ("limit_data", {"bytes": 2_000_000}),
        ("timeout", {"timeout": 0}),
    ],
    ids=["reset", "half a body", "stall"],
)
def test_a_restore_goes_on_with_the_next_tier_when_the_network_breaks(
    minio_bucket: Any,
    proxy: Proxy,
    tmp_path: Path,
    opened: ExitStack,
    toxic: tuple[Any, dict[str, int]],
) -> None:
    kind, attributes = toxic
    local, s3 = folder("local", tmp_path), through(opened, minio_bucket, proxy, retry=1)
    assert save(local, remote(opened, minio_bucket)) == {}  # as patient as usual
    found = choose([s3, local], "run")  # S3 first
    with proxy.toxic(kind, **attributes):
        assert_restores(found, FIRST, ROWS)
        alone = choose([local], "run")
        broken = type(alone)("run", found.commit, found.manifest, found.replicas[:1])
        with pytest.raises((TransientError, CorruptBlockError)):
            assert_restores(broken, FIRST, ROWS)


def _segment(bucket: Any) -> str:
    return str(next(key for key in bucket.keys("t/") if key.endswith(".safetensors")))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damage_on_minio_is_made_good_by_the_next_tier_or_named(
    minio_bucket: Any, tmp_path: Path, opened: ExitStack, damage: str
) -> None:
    local, s3 = folder("local", tmp_path), remote(opened, minio_bucket)
    assert save(local, s3) == {}
    key = _segment(minio_bucket)
    content = bytearray(minio_bucket.read(key))
    content[9 * 1024**2] ^= 1  # in block 2
    if damage == "flipped":
        minio_bucket.write(key, bytes(content))
    elif damage == "truncated":
        minio_bucket.write(key, bytes(content[: 9 * 1024**2]))
    else:
        minio_bucket.client.delete_object(Bucket=minio_bucket.name, Key=key)
    found = choose([s3, local], "run")
    assert_restores(found, FIRST, ROWS)
    (check,) = verify_files(found.replicas[0], found.manifest.files)
    assert check.damage
    error = NotFoundError if damage == "missing" else CorruptBlockError
    with pytest.raises(error) as caught:
        assert_restores(choose([s3], "run"), FIRST, ROWS)
    if isinstance(caught.value, CorruptBlockError):
        assert caught.value.file == "00000-000.safetensors"
        blocks = -(-len(content) // BLOCK_SIZE)
        assert caught.value.block in (range(2, blocks) if damage == "truncated" else (2,))
        assert caught.value.tiers[0].startswith("s3: ")


def test_two_ranks_racing_to_commit_on_s3_write_one_commit(
    minio_bucket: Any, opened: ExitStack
) -> None:
    line = launch(world=2)
    savers, handles = [], []
    for rank in (0, 1):
        one = remote(opened, minio_bucket)
        shared = OpenTier(one.config, one.backend, (0, 1))
        savers.append(
            opened.enter_context(closing(Saver([shared], "run", commit_timeout=PATIENCE)))
        )
        handles.append(savers[-1].submit(*stage(FIRST, line, rank=rank, world=2)))
    for handle in handles:
        handle.wait(timeout=PATIENCE)
    assert len([key for key in minio_bucket.keys("t/") if "/commits/" in key]) == 1
    assert_restores(choose([remote(opened, minio_bucket)], "run"), FIRST)
