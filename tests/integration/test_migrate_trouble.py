"""What goes wrong half way of a migration that empties its source, on real stores.

A clear outcome each; every object is whole at one end at least; and once the trouble is over, the
same command finishes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.command import COMMAND, tierstore
from tests.conftest import Bucket, HdfsRoot, bucket_of
from tests.disks import small_disk
from tests.ends import MIB, PART, End, s3_end
from tests.files import receipts
from tests.forked import forked
from tests.patience import PATIENCE
from tests.s3_faults import Misbehaving, Misdeed, misbehaving
from tests.shards import until
from tierstore.testing.servers import minio

pytestmark = pytest.mark.slow
SLOW, SLOWER = (f"write_bandwidth={mib * MIB}" for mib in (8, 4))
# Whom the modes of files bind: root only without the capability to ignore them.
BOUND = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if not os.geteuid() else ()
KINDS = [
    "local",
    pytest.param("s3", marks=pytest.mark.minio),
    pytest.param("hdfs", marks=pytest.mark.hdfs),
]
ANYBODY = ("AbortMultipartUpload", "GetObject", "ListMultipartUploadParts", "PutObject")


def objects() -> dict[str, bytes]:
    small = {f"small/{number:02}": os.urandom(1000 + number) for number in range(10)}
    return {"a": b"first", "large": os.urandom(4 * PART + 1), **small}


@dataclass
class Move:
    """A migration with --delete-source from one end to another."""

    source: End
    target: End
    state: Path
    options: Sequence[str] = ()
    held: dict[str, bytes] = field(default_factory=objects)

    def __post_init__(self) -> None:
        for key, data in self.held.items():
            self.source.write(key, data)

    def words(self, *options: str) -> list[str]:
        target = self.target.with_options(*self.options, *options)
        return ["migrate", str(self.source), target, "--delete-source", "--json"]

    @contextmanager
    def under_way(self, *prefix: str, halt: bool = True) -> Iterator[Callable[[], tuple[str, Any]]]:
        """Begin it and halt it when a part has arrived; yields what has it go on to its end."""
        words, pipes = (
            self.words(SLOW if halt else SLOWER),
            {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
        )
        if prefix:
            process = subprocess.Popen([*prefix, *COMMAND, *words], text=True, **pipes)
        else:
            process = forked(*words, **pipes)
        try:
            while not self.receipts():
                assert process.poll() is None, process.communicate()
                time.sleep(0.005)
            if halt:
                process.send_signal(signal.SIGSTOP)
            assert self.receipts() < len(self.held["large"]) // PART, "what follows comes too late"

            def end() -> tuple[str, Any]:
                process.send_signal(signal.SIGCONT)
                out, err = process.communicate(timeout=PATIENCE)
                assert process.returncode == 1, out + err
                assert "Traceback" not in err, err
                return out + err, json.loads(out.splitlines()[-1])

            yield end
        finally:
            process.kill()
            process.communicate()

    def receipts(self) -> int:
        return sum(len(receipts(journal)) for journal in self.state.rglob("*.journal"))

    def assert_nothing_lost(self) -> None:
        left = self.source.contents()
        arrived = self.target.contents()
        for key, data in self.held.items():
            assert left.get(key, data) == data
            assert key in left or arrived[key] == data, key

    def finish(self) -> None:
        """Do it again, now that nothing is wrong any more."""
        self.assert_nothing_lost()
        done = tierstore(*self.words())
        assert done.code == 0, done.out + done.err
        assert self.target.contents() == self.held
        assert self.source.keys() == []
        assert self.target.leftovers() == []


@pytest.fixture
def move(
    end: Callable[[str, str], End], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Move]:
    """Make a migration between two kinds of stores."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def make(one: str, other: str, *options: str) -> Move:
        return Move(end(one, "from"), end(other, "to"), tmp_path / "state", options)

    return make


def test_a_full_disk(move: Callable[..., Move], tmp_path: Path) -> None:
    with small_disk(tmp_path / "to", 20) as enlarge:
        moving = move("local", "local")
        done = tierstore(*moving.words())
        assert done.code == 1
        assert "it stopped before its end: " in done.said
        assert "33,554,433 bytes needed" in done.said
        assert "large" in moving.source
        enlarge(60)
        moving.finish()


def takes_more(bucket: Bucket) -> bool:
    try:
        bucket.write("probe", bytes(PART))
    except bucket.client.exceptions.ClientError:
        return False
    return True


@pytest.mark.minio
def test_a_full_minio(
    end: Callable[[str, str], End], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with small_disk(tmp_path / "disk", 24) as enlarge, minio(tmp_path / "disk") as server:
        with bucket_of(server, monkeypatch) as bucket:
            moving = Move(end("local", "from"), s3_end(bucket, "to"), tmp_path / "state")
            done = tierstore(*moving.words())
            assert done.code == 1
            lines = [line for line in done.out.splitlines() if '"outcome": "failed"' in line]
            (failed,) = (line for line in lines if '"key": "large"' in line)
            # MinIO that fills up while parts arrive may rather lose their upload.
            assert "507 XMinioStorageFull" in failed or "404 NoSuchUpload" in failed
            assert "large" in moving.source
            enlarge(400)
            until(lambda: takes_more(bucket))  # it looks at its disk now and then only
            moving.finish()


@pytest.mark.hdfs
def test_a_full_hdfs(move: Callable[..., Move], hdfs_root: HdfsRoot) -> None:
    moving = move("local", "hdfs", f"block_size={PART}")
    hdfs_root.server.set_quota(hdfs_root.path, space=4 * PART)
    done = tierstore(*moving.words())
    assert done.code == 1
    assert "it stopped before its end: " in done.said
    assert "quota" in done.said
    assert "large" in moving.source
    hdfs_root.server.set_quota(hdfs_root.path)
    moving.finish()


def test_a_folder_that_may_no_more_be_written(move: Callable[..., Move], tmp_path: Path) -> None:
    moving = move("local", "local")
    with moving.under_way(*BOUND) as end:
        (tmp_path / "to").chmod(0o500)
        (tmp_path / "to" / ".tierstore-tmp").chmod(0o500)
        said, told = end()
    (tmp_path / "to").chmod(0o700)
    (tmp_path / "to" / ".tierstore-tmp").chmod(0o700)
    denied(moving, said, told)


@pytest.mark.hdfs
def test_hdfs_that_may_no_more_be_written(
    move: Callable[..., Move], hdfs_root: HdfsRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, path = hdfs_root.server.client(), f"{hdfs_root.path}/to"
    moving = move("local", "hdfs")
    client.set_owner(hdfs_root.path, "migrator")
    monkeypatch.setenv("HADOOP_USER_NAME", "migrator")
    with moving.under_way() as end:
        client.set_permission(path, 0o000)
        said, told = end()
    client.set_permission(path, 0o755)
    denied(moving, said, told)


@pytest.mark.minio
def test_a_bucket_that_may_no_more_be_written(
    move: Callable[..., Move], minio_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, client = minio_bucket.name, minio_bucket.client
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"AWS": ["*"]},
                "Action": [f"s3:{action}" for action in actions],
                "Resource": [f"arn:aws:s3:::{name}{below}"],
            }
            for below, actions in (
                ("/*", ANYBODY),
                ("", ("ListBucket", "ListBucketMultipartUploads", "GetBucketLocation")),
            )
        ],
    }
    client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
    moving = move("local", "s3", "anonymous=true")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with moving.under_way() as end:
        client.delete_bucket_policy(Bucket=name)
        said, told = end()
    client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
    denied(moving, said, told)


def denied(moving: Move, said: str, told: Any) -> None:
    """Each object that was refused is named with the reason, and is where it was."""
    assert told["failed"], said
    failed = [json.loads(line) for line in said.splitlines() if '"outcome": "failed"' in line]
    assert "large" in {event["key"] for event in failed}
    for event in failed:
        assert event["key"] in moving.source
        assert "denied" in event["reason"].lower(), event
    moving.finish()


def test_a_file_that_cannot_be_read(move: Callable[..., Move], tmp_path: Path) -> None:
    moving = move("local", "local")
    (tmp_path / "from" / "small" / "05").chmod(0)
    done = subprocess.run(
        [*BOUND, *COMMAND, *moving.words()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    (failed,) = (line for line in done.stdout.splitlines() if '"outcome": "failed"' in line)
    assert "small/05" in failed
    assert "Permission denied" in failed
    assert moving.source.keys() == ["small/05"]
    (tmp_path / "from" / "small" / "05").chmod(0o600)
    moving.finish()


@pytest.fixture
def proxy(minio_bucket: Bucket) -> Iterator[Misbehaving]:
    with misbehaving(minio_bucket.server.address) as proxy:
        yield proxy


@pytest.mark.minio
def test_a_server_that_always_ends_in_the_middle_of_a_part(
    move: Callable[..., Move], proxy: Misbehaving
) -> None:
    moving = move("s3", "local")
    proxy.misdeeds.append(Misdeed("GET .*/large", "halve", times=1000))
    words = moving.words()
    words[1] = moving.source.with_options("retry_seconds=1", f"endpoint_url={proxy.endpoint}")
    done = tierstore(*words)
    assert done.code == 1
    assert "it stopped before its end: " in done.said
    assert "large" in moving.source
    assert "large" not in moving.target
    moving.finish()


@pytest.mark.parametrize("kind", KINDS)
def test_somebody_else_writes_it_meanwhile(move: Callable[..., Move], kind: str) -> None:
    moving = move("local", kind)
    with moving.under_way() as end:
        moving.target.write("large", b"somebody else's")
        said, told = end()
    assert told["failed"] == 1
    assert "the destination already has something else there" in said
    assert moving.target.read("large") == b"somebody else's"
    assert moving.source.keys() == ["large"]
    assert moving.target.leftovers() == []
    done = tierstore(*moving.words(), "--conflict", "overwrite")
    assert done.code == 0, done.err
    assert moving.source.keys() == []
    assert moving.target.contents() == moving.held


@pytest.mark.parametrize("kind", KINDS)
def test_the_source_goes_away_meanwhile(move: Callable[..., Move], kind: str) -> None:
    """What is deleted at the source is reported, and frees what was sent of it."""
    moving = move(kind, "local")
    # Not halted: MinIO deletes nothing that somebody is still reading.
    with moving.under_way(halt=False) as end:
        moving.source.delete("large")
        said, told = end()
    assert told["failed"] == 1, said
    del moving.held["large"]
    assert moving.target.contents() == moving.held
    assert moving.source.keys() == []
