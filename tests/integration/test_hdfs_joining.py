"""Parts of a real HDFS become one file, by CONCAT where it may be, else by one stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from tests.conftest import HdfsRoot
from tests.hdfs_zone import make_zone
from tests.patience import PATIENCE
from tests.s3_faults import Misbehaving, Misdeed, misbehaving
from tierstore.backend import Backend
from tierstore.blocks import crc32c
from tierstore.config import TierConfig
from tierstore.ladder.diagnosis import diagnose
from tierstore.testing.contract_base import noise
from tierstore_hdfs import HdfsBackend, HdfsOptions, open_hdfs

pytestmark = pytest.mark.hdfs
PART = 4 << 20
DATA = noise(2 * PART + 77)
OPTIONS = HdfsOptions(part_size=PART, stall_timeout=60)
CODED = "XOR-2-1-1024k"


@pytest.fixture
def proxy(hdfs_root: HdfsRoot) -> Iterator[Misbehaving]:
    with misbehaving(hdfs_root.server.address) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy: Misbehaving, hdfs_root: HdfsRoot) -> Iterator[HdfsBackend]:
    """The backend, whose namenode is behind the proxy."""
    address = proxy.endpoint.removeprefix("http://")
    with contextlib.closing(
        open_hdfs(f"hdfs://{address}{quote(hdfs_root.path)}", OPTIONS)
    ) as backend:
        yield backend


def send(backend: Backend, key: str, *, first: int = 0, upload=None):
    upload = upload or backend.upload(key, len(DATA))
    for offset in range(first, len(DATA), PART):
        part = DATA[offset : offset + PART]
        upload.write(offset, part, crc32c(part))
    return upload


def operations(proxy: Misbehaving) -> list[str]:
    """What was asked of the namenode from the CONCAT on, without looking."""
    asked = [line.partition("op=")[2].partition("&")[0] for line in proxy.requests]
    return [op for op in asked[asked.index("CONCAT") :] if op in ("CONCAT", "CREATE", "RENAME")]


def encode(root: HdfsRoot, path: str) -> None:
    client = root.server.client()
    client.call("PUT", "/", "ENABLEECPOLICY", ecpolicy=CODED)
    client.call("PUT", path, "SETECPOLICY", ecpolicy=CODED)


def test_an_encryption_zone_gets_one_stream(
    behind: HdfsBackend, proxy: Misbehaving, hdfs_root: HdfsRoot
) -> None:
    if not hdfs_root.server.cluster:
        pytest.skip("only an HDFS that was started here has a key")
    zone = f"{hdfs_root.path}/zone"
    hdfs_root.server.client().make_folder(zone)
    make_zone(hdfs_root.server, zone)
    send(behind, "zone/d/x").commit(if_absent=True, crc32c=crc32c(DATA))
    assert operations(proxy) == ["CONCAT", "CREATE", "RENAME"]
    assert hdfs_root.read("zone/d/x") == DATA
    assert hdfs_root.keys() == ["zone/d/x"]
    status = hdfs_root.server.client().status(f"{zone}/d/x")
    assert status is not None
    assert status["encBit"]
    checks = {check.name: check for check in diagnose(TierConfig("z", f"{hdfs_root.url}/zone"))}
    assert checks["joining"].outcome == "warning"


def test_erasure_coded_parts_are_joined(
    behind: HdfsBackend, proxy: Misbehaving, hdfs_root: HdfsRoot
) -> None:
    encode(hdfs_root, hdfs_root.path)
    send(behind, "d/x").commit(if_absent=True, crc32c=crc32c(DATA))
    assert operations(proxy) == ["CONCAT", "RENAME"]
    assert hdfs_root.read("d/x") == DATA
    into = bytearray(1000)
    behind.read_into("d/x", 2 * PART - 500, memoryview(into)[:577])  # across the seam
    assert into[:577] == DATA[2 * PART - 500 :]
    status = hdfs_root.server.client().status(f"{hdfs_root.path}/d/x")
    assert status is not None
    assert status["ecPolicy"] == CODED


@pytest.mark.parametrize("alike", [1, 2])
def test_parts_that_differ_in_erasure_coding_get_one_stream(
    behind: HdfsBackend,
    proxy: Misbehaving,
    hdfs_root: HdfsRoot,
    alike: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tierstore_hdfs.multipart._QUERY", 1)  # one CONCAT for each part
    upload = behind.upload("d/x", len(DATA))
    for offset in range(0, alike * PART, PART):
        part = DATA[offset : offset + PART]
        upload.write(offset, part, crc32c(part))
    folder = hdfs_root.keys("d/.tierstore-")[0].rpartition("/")[0]
    encode(hdfs_root, f"{hdfs_root.path}/{folder}")
    send(behind, "d/x", first=alike * PART, upload=upload).commit(crc32c=crc32c(DATA))
    assert operations(proxy) == [*["CONCAT"] * alike, "CREATE", "RENAME"]
    assert hdfs_root.read("d/x") == DATA
    assert hdfs_root.keys() == ["d/x"]


def test_streams_do_not_wait_for_each_other(hdfs_root: HdfsRoot) -> None:
    """A root with a comma always needs one, which writes and meanwhile reads."""
    options = HdfsOptions(part_size=PART, concurrency=1, total_timeout=PATIENCE)
    backend = open_hdfs(f"{hdfs_root.url}/r,s", options)
    uploads = [send(backend, f"d/{number}") for number in range(4)]
    with contextlib.closing(backend), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda upload: upload.commit(crc32c=crc32c(DATA)), uploads))
    assert hdfs_root.keys() == [f"r,s/d/{number}" for number in range(4)]
    assert hdfs_root.read("r,s/d/3") == DATA


def test_a_folder_that_is_pruned_before_the_rename(
    behind: HdfsBackend, proxy: Misbehaving, hdfs_root: HdfsRoot
) -> None:
    """Below a comma the parts lie elsewhere, so the folder is empty until then."""
    take, pruned = proxy.take, []

    def prune_first(line: str) -> Misdeed | None:
        if "op=RENAME" in line and not pruned:
            pruned.append(line)
            path = f"{hdfs_root.path}/a,b"
            hdfs_root.server.client().call("DELETE", path, "DELETE", recursive="false")
        return take(line)

    proxy.take = prune_first  # type: ignore[method-assign]
    send(behind, "a,b/x").commit(if_absent=True, crc32c=crc32c(DATA))
    assert operations(proxy) == ["CONCAT", "RENAME", "RENAME"]
    assert hdfs_root.read("a,b/x") == DATA
    assert hdfs_root.keys() == ["a,b/x"]


def test_a_datanode_that_is_down_gets_no_second_try(
    hdfs_root: HdfsRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The namenode still places on it, and no wrapper repeats."""
    victim = hdfs_root.server.datanodes[0].address
    with misbehaving(hdfs_root.server.address) as proxy:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        proxy.misdeeds.append(Misdeed(f"PUT http://{victim}/", "reset", times=1000))
        with contextlib.closing(open_hdfs(hdfs_root.url, OPTIONS)) as backend:
            upload = backend.upload("d/x", len(DATA))
            for _ in range(40):
                upload.write(0, DATA[:PART], crc32c(DATA[:PART]))
                backend.create("k", b"x")
                if proxy.misdeeds[0].done > 1:
                    break
            send(backend, "d/x", upload=upload).commit(crc32c=crc32c(DATA))
    assert proxy.misdeeds[0].done > 1
    sent = [line.partition("?")[0] for line in proxy.requests if line.startswith("PUT http://127")]
    sent = [line.partition("/webhdfs")[2] for line in sent if hdfs_root.server.address not in line]
    assert len(set(sent)) == len(sent), "a name was used twice"
    assert hdfs_root.read("d/x") == DATA
    assert hdfs_root.keys() == ["d/x", "k"]
