"""The HDFS of tierstore.testing starts, can be spoiled and healed, and never outlives its owner."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest
import urllib3

from tests.conftest import HdfsRoot
from tests.patience import PATIENCE
from tests.unit.test_servers import _gone
from tierstore.errors import ConfigError
from tierstore.testing.servers import (
    Daemon,
    HdfsError,
    HdfsServer,
    ServerUnavailableError,
    hadoop,
    hdfs,
)

ODD = "a b/100%+é,x;y&z=1?#.bin"


@pytest.mark.hdfs
def test_it_holds_what_is_put(hdfs_root: HdfsRoot, no_leaks):
    data = bytes(range(256)) * 100
    hdfs_root.server.client().write(f"{hdfs_root.path}/{ODD}", data, blocksize=8192)
    assert hdfs_root.keys() == [ODD]
    assert hdfs_root.read(ODD) == data
    for datanode in (0, 1):
        blocks = hdfs_root.server.blocks(f"{hdfs_root.path}/{ODD}", datanode)
        assert b"".join(block.read_bytes() for block in blocks) == data
        assert len(blocks) == 4


@pytest.mark.hdfs
def test_its_url_names_the_folder(hdfs_root: HdfsRoot):
    assert hdfs_root.url == f"hdfs://{hdfs_root.server.address}{hdfs_root.path}"
    assert os.environ["HADOOP_USER_NAME"] == hdfs_root.server.user


@pytest.mark.hdfs
def test_permissions_are_on(hdfs_root: HdfsRoot):
    stranger = hdfs_root.server.client("stranger")
    with pytest.raises(HdfsError, match="403 AccessControlException"):
        stranger.write(f"{hdfs_root.path}/k", b"x")
    hdfs_root.server.client().set_owner(hdfs_root.path, "stranger")
    stranger.write(f"{hdfs_root.path}/k", b"x")


@pytest.mark.hdfs
def test_quotas(hdfs_root: HdfsRoot):
    hdfs_root.server.set_quota(hdfs_root.path, names=2)
    hdfs_root.write("k", b"x")
    with pytest.raises(HdfsError, match="NSQuotaExceededException"):
        hdfs_root.write("l", b"x")
    hdfs_root.server.set_quota(hdfs_root.path, space=1 << 20)
    with pytest.raises(HdfsError, match="DSQuotaExceededException"):
        hdfs_root.write("l", b"x")
    hdfs_root.server.set_quota(hdfs_root.path)
    hdfs_root.write("l", b"x")


@pytest.mark.hdfs
def test_safe_mode(hdfs_root: HdfsRoot):
    hdfs_root.write("k", b"x")
    hdfs_root.server.safe_mode(on=True)
    try:
        assert hdfs_root.read("k") == b"x"
        with pytest.raises(HdfsError, match="SafeModeException"):
            hdfs_root.write("l", b"x")
    finally:
        hdfs_root.server.safe_mode(on=False)
    hdfs_root.write("l", b"x")


@pytest.mark.hdfs
def test_daemons_stop_and_come_back(hdfs_root: HdfsRoot):
    server = hdfs_root.server
    hdfs_root.write("k", b"x")
    server.namenode.kill()
    assert not server.namenode.running
    with pytest.raises(urllib3.exceptions.HTTPError):
        server.client().status("/")
    with pytest.raises(ServerUnavailableError, match="namenode ended"):
        server.wait_ready()
    server.namenode.start()
    server.wait_ready()
    for _ in server.datanodes:  # each may notice only now that its namenode has hung up
        with contextlib.suppress(HdfsError):
            hdfs_root.read("k")
    assert hdfs_root.read("k") == b"x"
    server.datanodes[0].restart()
    server.wait_ready()
    assert hdfs_root.read("k") == b"x"


@pytest.mark.hdfs
@pytest.mark.slow
def test_a_dead_datanode_is_given_up_and_taken_back(hdfs_root: HdfsRoot):
    server = hdfs_root.server
    hdfs_root.write("k", b"x")
    server.datanodes[1].kill()
    server.wait_dead(1)
    assert hdfs_root.read("k") == b"x"
    server.datanodes[1].start()
    server.wait_ready()


@pytest.mark.hdfs
@pytest.mark.slow
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "done"])
def test_it_ends_with_its_owner(hdfs_server, tmp_path, killed):
    """The session's own server shows that HDFS can be had; this one has an owner to end."""
    code = (
        "from tierstore.testing.servers import hdfs\n"
        "with hdfs(datanodes=1) as server:\n"
        "    print(server.namenode.pid, server.datanodes[0].pid, flush=True); input()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # a killed one cannot remove its folder
    )
    with owner, owner.stdin, owner.stdout:
        daemons = list(map(int, owner.stdout.readline().split()))
        assert len(daemons) == 2
        if killed:
            owner.kill()
        else:
            owner.communicate("\n", timeout=PATIENCE)
            assert owner.returncode == 0
            assert list(tmp_path.iterdir()) == []
        assert all(_gone(pid) for pid in daemons)


def test_an_address_names_a_server_that_is_there(monkeypatch):
    monkeypatch.setenv("TIERSTORE_TEST_HDFS", "http://me@127.0.0.1:9870#127.0.0.1:8020")
    with hdfs() as server:
        assert (server.endpoint, server.user) == ("http://127.0.0.1:9870", "me")
        assert server.rpc == "127.0.0.1:8020"
        assert server.url("/a b") == "hdfs://127.0.0.1:9870/a b"
        with pytest.raises(ServerUnavailableError, match="not started here"):
            server.namenode.kill()


@pytest.mark.parametrize("address", ["127.0.0.1:9870", "http://u@h", "hdfs://u@h:1", "http://h:1"])
def test_a_malformed_address_is_refused(address):
    with pytest.raises(ConfigError, match="TIERSTORE_TEST_HDFS"):
        HdfsServer.parse(address)


@pytest.mark.parametrize("missing", ["java", "mvn"])
def test_missing_programs_are_named(monkeypatch, tmp_path, missing):
    if missing == "mvn":
        (tmp_path / "java").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ServerUnavailableError, match=f"{missing} is not on PATH"):
        hadoop.find_hadoop()


def test_jars_are_looked_for_once(monkeypatch, tmp_path):
    for name in ("java", "mvn"):
        (tmp_path / name).touch(mode=0o755)
    fetched = []

    def fetch(pom, listing):
        fetched.append(pom)
        (tmp_path / "a.jar").touch()
        listing.write_text(f"{tmp_path / 'a.jar'}")

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hadoop, "_fetch", fetch)
    for wanted in (1, 1):
        assert hadoop.find_hadoop().jars == (tmp_path / "a.jar",)
        assert len(fetched) == wanted
    (tmp_path / "a.jar").unlink()  # someone emptied Maven's cache
    hadoop.find_hadoop()
    assert len(fetched) == 2


def test_a_daemon_that_was_never_started(tmp_path):
    daemon = Daemon("x", ["x"], folder=tmp_path, data=tmp_path, address="127.0.0.1:1")
    assert not daemon.running
    daemon.stop()
    with pytest.raises(ServerUnavailableError, match="never started"):
        daemon.kill()
