"""A real HDFS behind SPNEGO, as one with Kerberos is: who asks, and what is told to whom."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.conftest import HdfsRoot
from tests.loopback import answer, read_request, serving
from tests.spnego_front import Front, front
from tierstore.blocks import crc32c
from tierstore.errors import AccessError, ConfigError, StorageError
from tierstore.testing.contract_base import noise
from tierstore_hdfs import HdfsBackend, HdfsOptions, open_hdfs

pytestmark = pytest.mark.hdfs
PART = 4 << 20
DATA = noise(2 * PART + 77)
OPTIONS = HdfsOptions(auth="spnego", part_size=PART, stall_timeout=60)


@pytest.fixture
def users(hdfs_root: HdfsRoot, tmp_path: Path) -> Path:
    """Whom the front knows."""
    file = tmp_path / "users"
    file.write_text(f":{hdfs_root.server.user}:right\n:stranger:strange\n")
    return file


@pytest.fixture
def _ticket(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for a ticket; it, not this name, says who asks."""
    monkeypatch.setenv("NTLM_USER_FILE", str(users))
    monkeypatch.setenv("HADOOP_USER_NAME", "nobody")


@pytest.fixture
def namenode(hdfs_root: HdfsRoot, users: Path) -> Iterator[Front]:
    with front(hdfs_root.server.address, users) as namenode:
        yield namenode


@contextlib.contextmanager
def opened(root: HdfsRoot, *fronts: Front, options: HdfsOptions = OPTIONS) -> Iterator[HdfsBackend]:
    addresses = ",".join(each.address for each in fronts)
    backend = open_hdfs(f"hdfs://{addresses}{quote(root.path)}", options)
    with contextlib.closing(backend):
        yield backend


def send(backend: HdfsBackend, key: str) -> None:
    upload = backend.upload(key, len(DATA))

    def write(offset: int) -> None:
        part = DATA[offset : offset + PART]
        upload.write(offset, part, crc32c(part))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(0, len(DATA), PART)))
    upload.commit(if_absent=True, crc32c=crc32c(DATA))


@pytest.mark.usefixtures("_ticket")
def test_objects_are_written_read_listed_and_deleted(
    hdfs_root: HdfsRoot, namenode: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://{namenode.address}")  # it sees datanodes' requests
    with opened(hdfs_root, namenode) as backend:
        backend.create("small", b"x", if_absent=True)
        send(backend, "d/large")
        assert [info.key for info in backend.list("")] == ["d/large", "small"]
        into = bytearray(len(DATA))
        backend.read_into("d/large", 0, memoryview(into))
        assert into == DATA
        assert hdfs_root.read("d/large") == DATA
        owner = hdfs_root.server.client().status(f"{hdfs_root.path}/small")
        assert owner
        assert owner["owner"] == hdfs_root.server.user
        backend.delete(["small"])
    assert hdfs_root.keys() == ["d/large"]
    seen = namenode.seen()
    assert seen["exchanges"] == 1
    assert not [line for line, _ in seen["namenode"] if "user.name" in line or "delegation" in line]
    told = [headers.keys() & {"Cookie", "Authorization"} for _, headers in seen["namenode"]]
    assert told[:4] == [set(), {"Authorization"}, {"Authorization"}, {"Cookie"}]
    assert told[4:] == [{"Cookie"}] * len(told[4:])
    assert len(seen["datanode"]) >= 5  # one small, three parts, one read
    for line, headers in seen["datanode"]:
        assert "delegation=" in line
        assert not headers.keys() & {"Cookie", "Authorization"}


@pytest.mark.usefixtures("_ticket")
def test_threads_share_one_exchange_and_renew_a_cookie_once(
    hdfs_root: HdfsRoot, namenode: Front
) -> None:
    with opened(hdfs_root, namenode) as backend:
        for exchanges in (1, 2, 3):
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda _: list(backend.list("")), range(16)))
            assert namenode.seen()["exchanges"] == exchanges
            namenode.expire()
        upload = backend.upload("x", PART)
        upload.write(0, DATA[:PART], crc32c(DATA[:PART]))
        namenode.expire()
        upload.commit(crc32c=crc32c(DATA[:PART]))
    assert namenode.seen()["exchanges"] == 5
    assert hdfs_root.read("x") == DATA[:PART]


@pytest.mark.usefixtures("_ticket")
def test_each_namenode_gets_an_exchange_and_a_cookie_of_its_own(
    hdfs_root: HdfsRoot, namenode: Front, users: Path
) -> None:
    with front(hdfs_root.server.address, users, "standby") as standby:
        with opened(hdfs_root, standby, namenode) as backend:
            backend.create("x", b"x")
            assert backend.stat("x").size == 1
        passed, active = standby.seen(), namenode.seen()
    assert passed["exchanges"] == active["exchanges"] == 1
    sent = [
        {headers["Cookie"] for _, headers in seen["namenode"] if "Cookie" in headers}
        for seen in (passed, active)
    ]
    assert [len(cookies) for cookies in sent] == [1, 1]
    assert sent[0] != sent[1]


@pytest.mark.usefixtures("_ticket")
def test_the_user_whose_ticket_is_used(hdfs_root: HdfsRoot, namenode: Front) -> None:
    stranger = HdfsOptions(auth="spnego", user="stranger")
    with opened(hdfs_root, namenode, options=stranger) as backend:
        assert list(backend.list("")) == []
        with pytest.raises(AccessError, match=r"user=stranger.*klist.*-chown"):
            backend.create("x", b"x")
    unknown = HdfsOptions(auth="spnego", user="unknown")
    with opened(hdfs_root, namenode, options=unknown) as backend:
        with pytest.raises(AccessError, match=f"no ticket for {namenode.address}: .*kinit"):
            backend.stat("x")


def test_without_a_ticket(
    hdfs_root: HdfsRoot, namenode: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NTLM_USER_FILE", raising=False)
    with opened(hdfs_root, namenode) as backend:
        with pytest.raises(AccessError, match=f"no ticket for {namenode.address}: .*kinit"):
            backend.stat("x")
    assert namenode.seen()["exchanges"] == 0


@pytest.mark.usefixtures("_ticket")
def test_a_wrong_password(
    hdfs_root: HdfsRoot, namenode: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(f":{hdfs_root.server.user}:hunter2\n")
    monkeypatch.setenv("NTLM_USER_FILE", str(wrong))
    with opened(hdfs_root, namenode) as backend:
        with pytest.raises(
            AccessError, match=f"{namenode.address} refuses the ticket .*kinit"
        ) as e:
            backend.create("x", b"x")
        assert (e.value.url, e.value.key) == (backend.url, "x")
        monkeypatch.setenv("NTLM_USER_FILE", str(wrong.with_name("users")))
        backend.create("x", b"x")  # as after a kinit
    assert hdfs_root.read("x") == b"x"


@pytest.mark.usefixtures("_ticket")
@pytest.mark.parametrize(
    ("header", "error", "said"),
    [
        ("WWW-Authenticate", AccessError, "does not prove that it is the namenode"),
        ("Set-Cookie", StorageError, "sets no cookie hadoop.auth"),
    ],
)
def test_what_an_exchange_has_to_end_with(
    hdfs_root: HdfsRoot, users: Path, header: str, error: type[Exception], said: str
) -> None:
    with front(hdfs_root.server.address, users, header) as namenode:
        with opened(hdfs_root, namenode) as backend, pytest.raises(error, match=said):
            backend.create("x", b"x")
    assert hdfs_root.keys() == []


@pytest.mark.usefixtures("_ticket")
def test_an_hdfs_without_kerberos(hdfs_root: HdfsRoot) -> None:
    with contextlib.closing(open_hdfs(hdfs_root.url, OPTIONS)) as backend:
        with pytest.raises(AccessError, match=r"asks for no ticket .*leave it out"):
            backend.create("x", b"x")
    assert hdfs_root.keys() == []


@pytest.mark.usefixtures("_ticket")
def test_a_server_that_wants_something_else() -> None:
    heads: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        heads.append(read_request(sock)[0])
        headers = 'WWW-Authenticate: Basic realm="Negotiate or not"\r\n'
        sock.sendall(answer(b"<html>", "401 Unauthorized", headers))

    with serving(serve) as url:
        with contextlib.closing(open_hdfs(url.replace("http", "hdfs") + "/t", OPTIONS)) as backend:
            with pytest.raises(AccessError, match="does not offer Negotiate"):
                backend.stat("x")
    assert not [head for head in heads if b"Authorization" in head]


@pytest.mark.usefixtures("_ticket")
def test_nothing_secret_is_shown(
    hdfs_root: HdfsRoot, namenode: Front, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), opened(hdfs_root, namenode) as backend:
        send(backend, "d/x")
        namenode.expire()
        with pytest.raises(StorageError) as caught:
            backend.stat("absent")
        client = backend._files.client
        shown = f"{caught.value!r} {backend!r} {vars(backend)} {client!r} {client._sessions!r}"
    assert "step input: ***" in caplog.text
    assert re.search(r"PUT http://\S+/d/\S+: 201", caplog.text)
    assert "delegation" not in caplog.text
    secrets = namenode.seen()["secrets"]
    assert len(secrets) > 10
    assert [secret for secret in secrets if secret in caplog.text + shown] == []


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spnego", None)
    with pytest.raises(ConfigError, match=r"pip install 'tierstore\[hdfs-kerberos\]'"):
        open_hdfs("hdfs://h/t", OPTIONS)
    open_hdfs("hdfs://h/t").close()


def test_a_token_and_a_ticket_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both auth and token_file"):
        HdfsOptions(auth="spnego", token_file=str(tmp_path / "token"))


@pytest.mark.parametrize(
    ("kind", "said", "token", "advice"),
    [
        ("", "", False, r'token_file, or a Kerberos ticket by auth = "spnego"'),
        ("", "", True, r"new delegation token into token_file.*auth = "),
        ("AccessControlException", "user=u, access=WRITE", True, "to the token's user"),
        ("AccessControlException", "user=dr.who, access=WRITE", True, "leave token_file out"),
        ("AccessControlException", "user=dr.who, access=WRITE", False, "set user or HADOOP"),
    ],
)
def test_what_is_advised_to_whom(
    tmp_path: Path, kind: str, said: str, token: bool, advice: str
) -> None:
    remote = json.dumps({"RemoteException": {"exception": kind, "message": said}}).encode()

    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(remote if kind else b"", "403 No" if kind else "401 Unauthorized"))

    file = tmp_path / "token"
    file.write_text("hunter2")
    options = HdfsOptions(token_file=str(file)) if token else HdfsOptions(user="u")
    with serving(serve) as url:
        with contextlib.closing(open_hdfs(url.replace("http", "hdfs") + "/t", options)) as backend:
            with pytest.raises(AccessError, match=advice):
                backend.stat("x")
