"""A real HDFS that fails in real ways, under a tier as a ladder opens it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import HdfsRoot, leaving_nothing
from tests.patience import PATIENCE
from tests.s3_faults import Misbehaving, Misdeed, misbehaving
from tests.shards import assert_restores, launch, stage, until
from tierstore.backend import Backend
from tierstore.blocks import crc32c
from tierstore.config import Policy, TierConfig
from tierstore.errors import AccessError, OutOfSpaceError, TransientError, UnreachableError
from tierstore.keys import Attempt
from tierstore.ladder.find import choose
from tierstore.ladder.save import Saver
from tierstore.ladder.tiers import OpenTier
from tierstore.testing.contract_base import noise
from tierstore.testing.servers import Daemon
from tierstore.wrappers import open_tier
from tierstore.wrappers.faults import Fault, Faulty
from tierstore.wrappers.retry import Budget, Retrying
from tierstore_hdfs import open_hdfs

pytestmark = [pytest.mark.hdfs, pytest.mark.slow]

MIB = 1 << 20
PART = 4 * MIB
DATA = noise(4 * PART + 77)
PUT, GET = "PUT .*namenoderpcaddress", "GET .*namenoderpcaddress"  # of a datanode
FIRST = Attempt(1, 1, 1)
ROWS = 12_000  # 47 MiB


@pytest.fixture
def root(hdfs_root: HdfsRoot) -> Iterator[HdfsRoot]:
    """A folder whose test leaves nothing behind; all daemons run afterwards."""
    server = hdfs_root.server
    try:
        with leaving_nothing("socket"):  # daemons that are started again have other pipes
            yield hdfs_root
        found = server.client().walk(hdfs_root.path, folders=True)
        assert [path for path in found if "/.tierstore-" in path] == []
    finally:
        for daemon in (server.namenode, *server.datanodes):
            daemon.start()
        server.wait_ready()


class Hasty(Retrying):
    """Tries again soon and as often as it takes: a daemon that is back is noticed at once."""

    def __init__(self, inner: Backend, **options: Any) -> None:
        super().__init__(inner, budget=Budget(1e9), **options)
        self._pause = lambda seconds: self._closed.wait(min(seconds, 0.2))


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.wrappers.Retrying", Hasty)


@pytest.fixture
def proxy(root: HdfsRoot, monkeypatch: pytest.MonkeyPatch) -> Iterator[Misbehaving]:
    """What every request to the namenode and to the datanodes goes through."""
    with misbehaving(root.server.address) as proxy:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        yield proxy


@pytest.fixture
def opened(root: HdfsRoot) -> Iterator[contextlib.ExitStack]:
    """Closes what a test opens, before it is looked at what was left."""
    with contextlib.ExitStack() as stack:
        yield stack


def tier(
    opened: contextlib.ExitStack, root: HdfsRoot, *, retry: float = PATIENCE, **options: Any
) -> OpenTier:
    """Open the folder with small parts, so that there are many, and a ladder's wrappers."""
    config = TierConfig(
        "hdfs",
        root.url,
        options={"part_size": PART, "read_size": PART, "stall_timeout": 60.0, **options},
        policy=Policy(retry_seconds=retry),
    )
    return OpenTier(config, opened.enter_context(contextlib.closing(open_tier(config))))


def put(root: HdfsRoot) -> None:
    """Write `k` along the second path, and wait until both datanodes have it."""
    root.write("k", DATA)

    def replicated() -> bool:
        found = root.server.client().json("GET", f"{root.path}/k", "GET_BLOCK_LOCATIONS")
        return all(len(b["locations"]) == 2 for b in found["LocatedBlocks"]["locatedBlocks"])

    until(replicated)  # one that was just restarted may have been left out at first


def send(backend: Backend, data: bytes = DATA) -> None:
    """Upload `k`, and abort on failure as every writer does."""
    upload = backend.upload("k", len(data))
    try:
        for offset in range(0, len(data), PART):
            part = memoryview(data)[offset : offset + PART]
            upload.write(offset, part, crc32c(part))
        upload.commit(crc32c=crc32c(data))
    except BaseException:
        upload.abort()
        raise


def whole(backend: Backend) -> bytes:
    """Read `k` part by part."""
    into = bytearray(len(DATA))
    for offset in range(0, len(DATA), PART):
        backend.read_into("k", offset, memoryview(into)[offset : offset + PART])
    return bytes(into)


def collect(root: HdfsRoot) -> int:
    """Abort all uploads that are open, and return their number."""
    with contextlib.closing(open_hdfs(root.url)) as backend:
        found = list(backend.uploads())
        for upload in found:
            backend.abort_upload(upload)
    return len(found)


def on_datanode(
    root: HdfsRoot, act: Callable[[Daemon], None], *, asked: bool
) -> Callable[[str], None]:
    """Return what does something to the datanode that a request names, or to the other one."""

    def call(line: str) -> None:
        for daemon in root.server.datanodes:
            if (daemon.address in line) is asked:
                act(daemon)

    return call


@pytest.mark.parametrize("deed", ["cut", "lose"])
def test_a_part_cut_short_or_without_an_answer_is_sent_again(
    root: HdfsRoot, proxy: Misbehaving, opened: contextlib.ExitStack, deed: Any
) -> None:
    proxy.misdeeds.append(Misdeed(PUT, deed))
    send(tier(opened, root).backend)
    assert proxy.misdeeds[0].done == 1
    assert root.read("k") == DATA
    assert root.keys() == ["k"]


@pytest.mark.parametrize("request_line", [PUT, ".*op=CONCAT", ".*op=RENAME"])
def test_a_duplicate_that_arrives_late_changes_nothing(
    root: HdfsRoot, proxy: Misbehaving, opened: contextlib.ExitStack, request_line: str
) -> None:
    proxy.misdeeds.append(Misdeed(request_line, "late"))
    send(tier(opened, root).backend)
    assert root.read("k") == DATA
    root.write("k", b"newer")
    proxy.late.set()
    until(lambda: proxy.late_answers)
    assert proxy.late_answers[0][8:13] in ("", " 404 ")  # refused within a body, none is heard
    assert root.read("k") == b"newer"
    assert root.keys() == ["k"]


def test_a_late_duplicate_of_a_small_object_is_collected(
    root: HdfsRoot, proxy: Misbehaving, opened: contextlib.ExitStack
) -> None:
    backend = tier(opened, root).backend
    proxy.misdeeds.append(Misdeed(PUT, "late"))
    backend.create("k", b"x")
    proxy.late.set()
    until(lambda: proxy.late_answers)
    assert " 201 " in proxy.late_answers[0]
    assert [info.key for info in backend.list("")] == ["k"]
    assert collect(root) == 1
    assert root.keys() == ["k"]


WRITER = """
import sys
from tierstore.blocks import crc32c
from tierstore.testing.contract_base import noise
from tierstore_hdfs import HdfsOptions, open_hdfs

size, part = int(sys.argv[2]), int(sys.argv[3])
data = noise(size)
upload = open_hdfs(sys.argv[1], HdfsOptions(part_size=part)).upload("k", size)
print(upload.token, flush=True)
for offset in range(0, size, part):
    piece = data[offset : offset + part]
    upload.write(offset, piece, crc32c(piece))
upload.commit(crc32c=crc32c(data))
"""
INSTANTS = {
    "within a part": Misdeed(PUT, "hold"),
    "before CONCAT": Misdeed(".*op=CONCAT", "stall"),
    "before RENAME": Misdeed(".*op=RENAME", "stall"),
    "before it cleaned up": Misdeed(".*op=DELETE", "stall"),
}


@pytest.mark.parametrize(
    ("instant", "resumes"), [*((instant, True) for instant in INSTANTS), ("before RENAME", False)]
)
def test_a_killed_writer(
    root: HdfsRoot,
    proxy: Misbehaving,
    opened: contextlib.ExitStack,
    instant: str,
    resumes: bool,
) -> None:
    """With SIGKILL; another process goes on, or begins anew and collects what was left."""
    proxy.misdeeds.append(replace(INSTANTS[instant]))
    command = [sys.executable, "-c", WRITER, root.url, str(len(DATA)), str(PART)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        token = writer.stdout.readline().strip()
        until(lambda: proxy.misdeeds[0].done)
        writer.kill()
    backend = tier(opened, root).backend
    if instant == "within a part":
        until(
            lambda: 0 < _length_of_one(root) < PART
        )  # HDFS closes what was cut short, and keeps it
    committed = instant == "before it cleaned up"
    assert [info.key for info in backend.list("")] == (["k"] if committed else [])
    if resumes:
        upload = backend.upload("k", len(DATA), resume=token)
        for offset in range(0, len(DATA), PART):
            if (offset, min(PART, len(DATA) - offset)) not in upload.done:
                part = DATA[offset : offset + PART]
                upload.write(offset, part, crc32c(part))
        upload.commit(crc32c=crc32c(DATA), if_absent=True)
    else:
        send(backend)
        assert collect(root) == 1
    assert whole(backend) == DATA
    assert root.keys() == ["k"]


def _length_of_one(root: HdfsRoot) -> int:
    """Return the length of the only file; 0 while the datanode has not made it yet."""
    keys = root.keys()
    assert len(keys) < 2
    status = root.server.client().status(f"{root.path}/{keys[0]}") if keys else None
    return int(status["length"]) if status else 0


def test_an_erasure_coded_folder_takes_one_stream(
    root: HdfsRoot, proxy: Misbehaving, opened: contextlib.ExitStack
) -> None:
    client, policy = root.server.client(), "XOR-2-1-1024k"
    client.call("PUT", "/", "ENABLEECPOLICY", ecpolicy=policy)
    client.call("PUT", root.path, "SETECPOLICY", ecpolicy=policy)
    backend = tier(opened, root).backend
    send(backend)
    assert any("op=CONCAT" in line for line in proxy.requests)
    assert whole(backend) == DATA
    status = client.status(f"{root.path}/k")
    assert status
    assert status["ecPolicy"] == policy
    assert root.keys() == ["k"]


def test_odd_signs_in_the_root(root: HdfsRoot, opened: contextlib.ExitStack) -> None:
    below = HdfsRoot(root.server, f"{root.path}/a b/100%25+é&;=?#")
    root.server.client().make_folder(below.path)
    backend = tier(opened, below).backend
    send(backend)
    backend.create("l m/+%2F", b"x", if_absent=True)
    assert [info.key for info in backend.list("")] == ["k", "l m/+%2F"]
    assert below.read("k") == DATA
    assert whole(backend) == DATA
    backend.delete(["k", "l m/+%2F"])
    assert root.keys() == []


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "other"])
def test_a_datanode_killed_during_a_write(
    root: HdfsRoot, proxy: Misbehaving, opened: contextlib.ExitStack, asked: bool
) -> None:
    proxy.misdeeds.append(Misdeed(PUT, "call", call=on_datanode(root, Daemon.kill, asked=asked)))
    backend = tier(opened, root).backend
    send(backend)
    assert sum(daemon.running for daemon in root.server.datanodes) == 1
    assert root.keys() == ["k"]
    assert whole(backend) == DATA


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "other"])
def test_a_datanode_killed_during_a_read(
    root: HdfsRoot, proxy: Misbehaving, opened: contextlib.ExitStack, asked: bool
) -> None:
    put(root)
    proxy.misdeeds.append(Misdeed(GET, "call", call=on_datanode(root, Daemon.kill, asked=asked)))
    # No wrapper repeats: another replica's datanode is asked within the request.
    assert whole(tier(opened, root, retry=0.0).backend) == DATA
    assert sum(daemon.running for daemon in root.server.datanodes) == 1


def test_a_datanode_that_hangs_during_a_read(
    root: HdfsRoot, proxy: Misbehaving, opened: contextlib.ExitStack
) -> None:
    put(root)
    pause = on_datanode(root, Daemon.pause, asked=True)
    proxy.misdeeds.append(Misdeed(GET, "call", call=pause))
    backend, into = tier(opened, root, retry=0.0, stall_timeout=4.0).backend, bytearray(PART)
    try:
        backend.read_into("k", 0, memoryview(into))
        assert into == DATA[:PART]
        assert proxy.misdeeds[0].done == 1
    finally:
        for daemon in root.server.datanodes:
            daemon.resume()


def test_without_any_datanode(root: HdfsRoot, opened: contextlib.ExitStack) -> None:
    put(root)
    backend = tier(opened, root, retry=1.0).backend
    for daemon in root.server.datanodes:
        daemon.kill()
    for work in (lambda: send(backend), lambda: backend.create("l", b"x"), lambda: whole(backend)):
        with pytest.raises(TransientError) as caught:
            work()
        assert "the 1 seconds for retries are over" in caught.value.__notes__[0]
        assert str(caught.value).startswith(f"{root.url}/")
    assert root.keys() == ["k"]


def test_the_namenode_restarted_during_a_save(root: HdfsRoot, opened: contextlib.ExitStack) -> None:
    hdfs, hasty = tier(opened, root), tier(opened, root, retry=1.0).backend
    namenode = root.server.namenode
    down = Fault("write", nth=3, action=lambda _: namenode.kill())
    failing = OpenTier(hdfs.config, Faulty(hdfs.backend, down))
    shard, image = stage(FIRST, launch(), rows=ROWS)
    with contextlib.closing(Saver([failing], "run", commit_timeout=PATIENCE)) as saver:
        handle = saver.submit(shard, image)
        until(lambda: not namenode.running)
        with pytest.raises(UnreachableError, match=root.server.address):
            hasty.stat("k")
        namenode.start()
        until(lambda: handle.done)
    assert handle.failed == {}
    assert hdfs.backend.snapshot().retries, "the restart was not noticed"
    root.server.wait_ready()
    assert_restores(choose([hdfs], "run"), FIRST, ROWS)
    collect(root)  # a small object's hidden file, which could not be removed meanwhile


def test_safe_mode_is_waited_out(root: HdfsRoot, opened: contextlib.ExitStack) -> None:
    backend, hasty = tier(opened, root).backend, tier(opened, root, retry=0.5).backend
    root.server.safe_mode(on=True)
    with ThreadPoolExecutor(1) as pool:
        try:
            with pytest.raises(TransientError, match="safe mode"):
                hasty.create("k", b"x")
            made = pool.submit(backend.create, "k", b"x")
            until(lambda: backend.snapshot().retries)
        finally:
            root.server.safe_mode(on=False)
        made.result()
    assert root.read("k") == b"x"


@pytest.mark.parametrize("quota", [{"space": 4 * PART}, {"names": 3}], ids=["space", "names"])
def test_an_exceeded_quota_is_not_repeated(
    root: HdfsRoot, opened: contextlib.ExitStack, quota: dict[str, int]
) -> None:
    backend = tier(opened, root, block_size=PART).backend
    root.server.set_quota(root.path, **quota)
    with pytest.raises(OutOfSpaceError, match="quota"):
        send(backend)
    assert not backend.snapshot().retries
    root.server.set_quota(root.path)


def test_rights_are_refused_at_once(root: HdfsRoot, opened: contextlib.ExitStack) -> None:
    put(root)
    client = root.server.client()
    client.set_permission(f"{root.path}/k", 0o600)
    stranger = tier(opened, root, user="stranger").backend
    for work in (
        lambda: send(stranger),
        lambda: stranger.create("l", b"x", if_absent=True),
        lambda: whole(stranger),
        lambda: stranger.delete(["k"]),
    ):
        with pytest.raises(AccessError, match="user=stranger"):
            work()
    assert not stranger.snapshot().retries
    assert root.read("k") == DATA


def test_a_damaged_replica_is_read_from_the_other(
    root: HdfsRoot, proxy: Misbehaving, opened: contextlib.ExitStack
) -> None:
    put(root)
    backend = tier(opened, root, retry=0.0).backend

    def asked() -> list[int]:
        """The datanodes that were asked for the part that is damaged."""
        places = [daemon.address for daemon in root.server.datanodes]
        lines = [line for line in proxy.requests if f"&offset={PART}&" in f"{line}&"]
        return [places.index(line.split("/")[2]) for line in lines if line.split("/")[2] in places]

    assert whole(backend) == DATA
    first = asked()[0]
    proxy.requests.clear()
    _flip(root, first)
    # The namenode chooses among the replicas. That this one is asked is not sure: the datanode
    # that is asked may read it by itself, and tells the namenode, who then names it no more.
    for _ in range(40):
        assert whole(backend) == DATA
        if first in asked():
            break


def test_bytes_damaged_in_every_replica_are_not_handed_out(
    root: HdfsRoot, opened: contextlib.ExitStack
) -> None:
    put(root)
    backend = tier(opened, root, retry=0.0).backend
    for datanode in (0, 1):
        _flip(root, datanode)
    with pytest.raises(TransientError):
        whole(backend)


def _flip(root: HdfsRoot, datanode: int) -> None:
    """Change a byte of `k` on a datanode's disk."""
    (block,) = root.server.blocks(f"{root.path}/k", datanode)
    with block.open("r+b") as file:
        file.seek(PART + 5)
        byte = file.read(1)[0]
        file.seek(PART + 5)
        file.write(bytes([byte ^ 1]))
