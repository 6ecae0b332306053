"""The rules of HDFS on a real one: each test fails without its rule."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.conftest import HdfsRoot
from tests.loopback import answer, read_request, serving
from tests.s3_faults import Misbehaving, Misdeed, misbehaving
from tierstore.backend import Check, abort_uploads
from tierstore.blocks import crc32c
from tierstore.config import TierConfig
from tierstore.errors import (
    AccessError,
    AlreadyExistsError,
    BlockedError,
    ConfigError,
    InvalidKeyError,
    NotFoundError,
    OutOfSpaceError,
    StorageError,
    TransientError,
    TruncatedFileError,
)
from tierstore.ladder.diagnosis import diagnose
from tierstore.testing.contract_base import noise
from tierstore_hdfs import HdfsBackend, HdfsOptions, open_hdfs

pytestmark = pytest.mark.hdfs
PART = 4 << 20
DATA = noise(2 * PART + 77)
OPTIONS = HdfsOptions(part_size=PART, stall_timeout=60)


@pytest.fixture
def backend(hdfs_root: HdfsRoot) -> Iterator[HdfsBackend]:
    backend = open_hdfs(hdfs_root.url, OPTIONS)
    yield backend
    backend.close()


@pytest.fixture
def proxy(hdfs_root: HdfsRoot) -> Iterator[Misbehaving]:
    with misbehaving(hdfs_root.server.address) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy: Misbehaving, hdfs_root: HdfsRoot) -> Iterator[HdfsBackend]:
    """The backend, whose namenode is behind the proxy."""
    address = proxy.endpoint.removeprefix("http://")
    backend = open_hdfs(f"hdfs://{address}{quote(hdfs_root.path)}", OPTIONS)
    yield backend
    backend.close()


def send(backend: HdfsBackend, key: str = "d/x"):
    upload = backend.upload(key, len(DATA))
    for offset in range(0, len(DATA), PART):
        part = DATA[offset : offset + PART]
        upload.write(offset, part, crc32c(part))
    return upload


def whole(backend: HdfsBackend, key: str = "d/x") -> bytes:
    into = bytearray(backend.stat(key).size)
    backend.read_into(key, 0, memoryview(into))
    return bytes(into)


@pytest.mark.parametrize("op", ["CONCAT", "RENAME"])
@pytest.mark.parametrize("if_absent", [False, True])
def test_a_commit_whose_answer_was_lost_may_be_repeated(
    behind: HdfsBackend, proxy: Misbehaving, hdfs_root: HdfsRoot, op: str, if_absent: bool
) -> None:
    upload = send(behind)
    proxy.misdeeds.append(Misdeed(f".*op={op}", "lose"))
    # RENAME is judged at once by what there is; after CONCAT the whole is there to go on with.
    info = upload.commit(if_absent=if_absent, crc32c=crc32c(DATA))
    assert proxy.misdeeds[0].done == 1
    assert info.size == len(DATA)
    assert whole(behind) == DATA
    assert hdfs_root.keys() == ["d/x"]


def test_a_create_whose_rename_was_not_answered(
    behind: HdfsBackend, proxy: Misbehaving, hdfs_root: HdfsRoot
) -> None:
    proxy.misdeeds.append(Misdeed(".*op=RENAME", "lose"))
    assert behind.create("k", b"mine", if_absent=True).size == 4
    assert proxy.misdeeds[0].done == 1
    assert hdfs_root.keys() == ["k"]
    proxy.misdeeds.append(Misdeed(".*op=RENAME", "reset"))
    with pytest.raises(TransientError):
        behind.create("k", b"new")
    assert hdfs_root.read("k") == b"mine"
    assert hdfs_root.keys() == ["k"]


def test_a_part_cut_short_is_not_joined(backend: HdfsBackend, hdfs_root: HdfsRoot) -> None:
    upload = send(backend)
    (part,) = [key for key in hdfs_root.keys("d/") if "/00001-" in key]
    hdfs_root.write(part, DATA[PART : PART + 100])
    with pytest.raises(TruncatedFileError, match="100 of 4194304 bytes of part 1"):
        upload.commit()
    assert upload.done == [(0, PART), (2 * PART, 77)]
    upload.write(PART, DATA[PART : 2 * PART], crc32c(DATA[PART : 2 * PART]))
    upload.commit(crc32c=crc32c(DATA))
    assert hdfs_root.read("d/x") == DATA


def test_part_names_are_never_used_twice(backend: HdfsBackend, hdfs_root: HdfsRoot) -> None:
    upload = backend.upload("d/x", 3)
    for _ in range(2):
        upload.write(0, b"abc", crc32c(b"abc"))
    assert len(hdfs_root.keys("d/.tierstore-")) == 2
    upload.abort()


def test_a_late_part_does_not_bring_an_aborted_upload_back(
    backend: HdfsBackend, hdfs_root: HdfsRoot
) -> None:
    upload = backend.upload("d/x", 3)
    upload.abort()
    with pytest.raises(NotFoundError):
        upload.write(0, b"abc", crc32c(b"abc"))
    assert hdfs_root.keys() == []


def test_a_writer_killed_between_concat_and_rename(
    behind: HdfsBackend, proxy: Misbehaving, hdfs_root: HdfsRoot
) -> None:
    upload = send(behind)
    proxy.misdeeds.append(Misdeed(".*op=RENAME", "reset", times=9))
    with pytest.raises(TransientError):
        upload.commit(crc32c=crc32c(DATA))
    proxy.misdeeds.clear()
    (left,) = behind.uploads("d/")
    assert left.key == "d/x"
    assert list(behind.list("")) == []
    again = behind.upload("d/x", len(DATA), resume=upload.token)
    assert again.done == [(0, PART), (PART, PART), (2 * PART, 77)]
    again.commit(crc32c=crc32c(DATA))
    assert whole(behind) == DATA
    assert hdfs_root.keys() == ["d/x"]


def test_leftovers_are_collected(backend: HdfsBackend, hdfs_root: HdfsRoot) -> None:
    send(backend, "d/a,b/c x%")
    send(backend, "e/y")
    hdfs_root.write("e/.tierstore-0123456789abcdef", b"of a create")
    assert list(backend.list("")) == []
    assert [u.key for u in backend.uploads("d/a,b/")] == ["d/a,b/c x%"]
    found = list(backend.uploads())
    assert sorted(u.key for u in found) == ["d/a,b/c x%", "e/.tierstore-0123456789abcdef", "e/y"]
    for upload in found * 2:
        backend.abort_upload(upload)
    assert hdfs_root.keys() == []


@pytest.mark.parametrize("key", ["d/k", "k", "a,b/c/k"])
def test_what_is_unfinished_of_one_key_is_freed(
    backend: HdfsBackend, hdfs_root: HdfsRoot, key: str
) -> None:
    """Uploads, and the hidden file of a small object, whose writers were killed."""
    others = [f"{key}2", f"else/{key}", "d/other"]
    for each in (key, key, *others):
        backend.upload(each, 2 * PART).write(0, DATA[:PART], crc32c(DATA[:PART]))
        hidden = backend._files.paths.temporary(each)
        hdfs_root.write(hidden.removeprefix(f"{hdfs_root.path}/"), b"half")
    abort_uploads(backend, key)
    left = list(backend.uploads())
    assert sorted(upload.key for upload in left if "tierstore" not in upload.key) == sorted(others)
    assert len(left) == 2 * len(others)
    abort_uploads(backend, "nothing/there")


@pytest.mark.parametrize("key", ["a,b/x", "a b/c%2C+ü,x", "plain"])
def test_commas_and_odd_signs(backend: HdfsBackend, hdfs_root: HdfsRoot, key: str) -> None:
    send(backend, key).commit(crc32c=crc32c(DATA))
    assert hdfs_root.read(key) == DATA
    assert hdfs_root.keys() == [key]


@pytest.mark.parametrize("key", ["a:b", ".snapshot/x", ".tierstore-0/x", "n" * 256])
def test_keys_that_hdfs_cannot_hold(backend: HdfsBackend, hdfs_root: HdfsRoot, key: str) -> None:
    with pytest.raises(InvalidKeyError):
        backend.create(key, b"x")
    assert hdfs_root.keys() == []


def test_an_existing_target(backend: HdfsBackend, hdfs_root: HdfsRoot) -> None:
    hdfs_root.write("d/x", b"theirs")
    with pytest.raises(AlreadyExistsError):
        send(backend).commit(if_absent=True, crc32c=crc32c(DATA))
    assert hdfs_root.read("d/x") == b"theirs"
    assert hdfs_root.keys() == ["d/x"]


@pytest.mark.parametrize("user", ["tierstore", "somebody"])
def test_a_folder_and_a_file_of_one_name(hdfs_root: HdfsRoot, user: str) -> None:
    hdfs_root.server.client().set_owner(hdfs_root.path, user)
    options = HdfsOptions(user=user, part_size=PART)
    with contextlib.closing(open_hdfs(hdfs_root.url, options)) as backend:
        backend.create("d/x", b"x")
        for key in ("d", "d/x/y"):
            for if_absent in (False, True):
                with pytest.raises(BlockedError, match="folder"):
                    backend.create(key, b"y", if_absent=if_absent)
                with pytest.raises(BlockedError, match="folder"):
                    send(backend, key).commit(if_absent=if_absent)
            with pytest.raises(NotFoundError):
                backend.stat(key)
            with pytest.raises(NotFoundError):
                backend.read_into(key, 0, memoryview(bytearray(1)))
        backend.delete(["d", "d/x/y"])
        assert [list(backend.list(prefix)) for prefix in ("d/x/", "d/x/y/")] == [[], []]
        for upload in backend.uploads():  # of "d", which was refused only at its end
            backend.abort_upload(upload)
    assert hdfs_root.keys() == ["d/x"]
    assert hdfs_root.read("d/x") == b"x"


def test_pages_are_put_in_key_order(
    behind: HdfsBackend, proxy: Misbehaving, hdfs_root: HdfsRoot
) -> None:
    names = [f"{first}{number:02}" for number in range(8) for first in ("b", "é", "b/x", "€/y")]
    keys = ["a", "a!", "bé", "z€", "z", *names]
    for key in keys:
        hdfs_root.write(key, b"x")
    assert [info.key for info in behind.list("")] == sorted(keys, key=str.encode)
    wanted = [key for key in keys if key.encode() > b"b/x05"]
    assert [info.key for info in behind.list("", after="b/x05")] == sorted(wanted, key=str.encode)
    if hdfs_root.server.cluster:  # its pages are short
        assert any("startAfter=" in line for line in proxy.requests)


def test_rights_users_and_quotas(backend: HdfsBackend, hdfs_root: HdfsRoot) -> None:
    stranger = open_hdfs(hdfs_root.url, HdfsOptions(user="stranger"))
    with pytest.raises(AccessError, match="HADOOP_USER_NAME") as caught:
        stranger.create("d/x", b"x")
    assert (caught.value.url, caught.value.key) == (stranger.url, "d/x")
    stranger.close()
    hdfs_root.server.set_quota(hdfs_root.path, names=1)
    with pytest.raises(OutOfSpaceError, match="quota"):
        backend.create("d/x", b"x")
    hdfs_root.server.set_quota(hdfs_root.path)


def _standby(sock: socket.socket) -> None:
    read_request(sock)
    said = {"exception": "StandbyException", "message": "Operation category READ is not supported"}
    sock.sendall(answer(json.dumps({"RemoteException": said}).encode(), "403 Forbidden"))


@pytest.mark.parametrize("first", ["down", "standby"])
def test_the_active_namenode_is_found(hdfs_root: HdfsRoot, first: str) -> None:
    with contextlib.ExitStack() as stack:
        down, other = "127.0.0.1:2", "127.0.0.1:1"
        if first == "standby":
            other = stack.enter_context(serving(_standby)).removeprefix("http://")
        backend = open_hdfs(hdfs_root.url.replace("hdfs://", f"hdfs://{other},"), OPTIONS)
        stack.callback(backend.close)
        backend.create("x", b"x")
        assert hdfs_root.read("x") == b"x"
        alone = open_hdfs(f"hdfs://{down},{other}/t", OPTIONS)
        stack.callback(alone.close)
        with pytest.raises(TransientError, match=f"{down}: .*{other}: ") as caught:
            alone.stat("x")
        assert caught.value.hint


def test_the_port_of_another_protocol_is_no_empty_tier(hdfs_root: HdfsRoot) -> None:
    with contextlib.closing(open_hdfs(f"hdfs://{hdfs_root.server.rpc}/t")) as backend:
        with pytest.raises(StorageError, match=r"dfs\.namenode\.http-address"):
            list(backend.list(""))


def test_users_that_hdfs_does_not_take(
    hdfs_root: HdfsRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in ("a b", "ü", "x@EXAMPLE.COM", "a+b"):
        with contextlib.closing(open_hdfs(hdfs_root.url, HdfsOptions(user=user))) as backend:
            with pytest.raises(AccessError, match="HADOOP_USER_NAME"):
                backend.stat("x")
    for name in ("HADOOP_USER_NAME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31)  # as in a container
    with pytest.raises(ConfigError, match="HADOOP_USER_NAME"):
        open_hdfs(hdfs_root.url)


def test_only_201_is_a_written_file() -> None:
    """What stands between may answer 200 for a datanode that never heard."""
    lines: list[str] = []

    def serve(sock: socket.socket) -> None:
        line = read_request(sock)[0].split(b"\r\n")[0].decode()
        lines.append(line)
        there = {"Location": f"{url}/datanode"} if "op=CREATE" in line else {"boolean": True}
        sock.sendall(answer(json.dumps(there).encode(), headers="Connection: close\r\n"))

    with serving(serve) as url:
        with contextlib.closing(open_hdfs(url.replace("http", "hdfs") + "/t")) as backend:
            with pytest.raises(StorageError, match="proxy"):
                backend.create("x", b"x")
    assert [line for line in lines if "RENAME" in line] == []
    assert "op=DELETE" in lines[-1]


@pytest.mark.parametrize("proxied", [True, False])
def test_a_token_is_never_shown(
    tmp_path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, *, proxied: bool
) -> None:
    heads: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        heads.append(read_request(sock)[0])
        said = {"exception": "InvalidToken", "message": "token is expired"}
        sock.sendall(answer(json.dumps({"RemoteException": said}).encode(), "403 Forbidden"))

    file = tmp_path / "token"
    file.write_text("SECRETTOKEN\n")
    with caplog.at_level(logging.DEBUG), serving(serve) as url:
        address = url.removeprefix("http://")
        if proxied:
            monkeypatch.setenv("HTTP_PROXY", url)
            address = "namenode.test"
        backend = open_hdfs(f"hdfs://{address}/t", HdfsOptions(token_file=str(file)))
        with pytest.raises(AccessError, match="renew") as caught:
            backend.stat("x")
        backend.close()
    assert b"delegation=SECRETTOKEN" in heads[0]
    assert b"user.name" not in heads[0]
    shown = f"{caught.value!r} {caught.value} {backend!r} {caplog.text}"
    assert re.search(r"GET http://\S+/t/x: 403", shown)
    assert "SECRETTOKEN" not in shown


def test_doctor(hdfs_root: HdfsRoot) -> None:
    def looked(**options: object) -> dict[str, Check]:
        return {c.name: c for c in diagnose(TierConfig("hdfs", hdfs_root.url, options=options))}

    found = looked()
    warned = {name for name, check in found.items() if check.outcome != "ok"}
    assert warned <= {"checksums", "free space"}
    assert {"replication", "free space", "unfinished uploads"} <= set(found)
    assert looked(replication=1)["replication"].outcome == "warning"
    left = "runs/.tierstore-0123456789abcdef"
    hdfs_root.write(left, b"x")
    assert looked()["unfinished uploads"].outcome == "ok"
    day = int((time.time() - 90_000) * 1000)
    path = f"{hdfs_root.path}/{left}"
    hdfs_root.server.client().call("PUT", path, "SETTIMES", modificationtime=day)
    check = looked()["unfinished uploads"]
    assert (check.outcome, left in check.detail) == ("warning", True)
    assert hdfs_root.keys() == [left]
