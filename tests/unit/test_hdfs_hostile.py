"""Namenodes that answer what none should: an error of ours, soon, and no secret in it."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loopback import answer, read_request, serving
from tierstore.errors import BlockedError, StorageError, TransientError
from tierstore.http import Response
from tierstore.http.transport import WHOLE_BODY
from tierstore_hdfs import HdfsBackend, HdfsOptions, open_hdfs
from tierstore_hdfs.errors import answered

pytestmark = pytest.mark.usefixtures("no_leaks")

Reply = Callable[[bytes], bytes]
FILE = {"pathSuffix": "", "type": "FILE", "length": 3, "modificationTime": 1_700_000_000_000}
FOLDER = {**FILE, "type": "DIRECTORY", "length": 0}
NAN, INFINITY = float("nan"), float("inf")


def said(value: object) -> bytes:
    return answer(value if isinstance(value, bytes) else json.dumps(value).encode())


def status(**changed: Any) -> bytes:
    return said({"FileStatus": {**FILE, **changed}})


def page(*found: object, remaining: object = 0) -> bytes:
    inside = {"FileStatuses": {"FileStatus": list(found)}}
    return said({"DirectoryListing": {"partialListing": inside, "remainingEntries": remaining}})


def named(*names: str, **changed: Any) -> list[dict[str, Any]]:
    return [{**FILE, "pathSuffix": name, **changed} for name in names]


@contextlib.contextmanager
def opened(reply: Reply, **options: Any) -> Iterator[HdfsBackend]:
    """A tier at a namenode that answers each request's head with what `reply` says."""

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                sock.sendall(reply(read_request(sock)[0]))

    with serving(serve) as url:
        given = HdfsOptions(**{"user": "me", **options})
        with contextlib.closing(open_hdfs(f"hdfs://{url[7:]}/t", given)) as backend:
            yield backend


def refused(backend: HdfsBackend, work: Callable[[HdfsBackend], object]) -> StorageError:
    with pytest.raises(StorageError) as caught:
        work(backend)
    assert caught.value.hint
    assert caught.value.url == backend.url
    return caught.value


NO_STATUS: list[bytes] = [
    *map(said, ({}, [], 1, None, "text", {"FileStatus": 1}, {"FileStatus": {}}, b"", b"null")),
    *(status(length=value) for value in (None, -1, 2**63, "3", 3.0, True, NAN, INFINITY, [])),
    *(status(modificationTime=value) for value in (None, -1, 10**20, "now", INFINITY, {})),
    *(status(type=value) for value in (None, "PIPE", 1, [])),
    *(status(pathSuffix=value) for value in (None, 1, "a/b", "..", ".", "\0", "\ud800")),
    said(b"<html>Welcome</html>"),
    said(b'{"FileStatus": {"length": ' + b"9" * 5000 + b"}}"),
    said(b"[" * 100_000),
    said(b'{"a":' * 100_000),
    said(b"\xff\xfe"),
]


@pytest.mark.parametrize("number", range(len(NO_STATUS)))
def test_what_is_no_status(number: int) -> None:
    with opened(lambda _: NO_STATUS[number]) as backend:
        with pytest.raises(StorageError) as caught:
            backend.stat("k")
    assert caught.value.hint or isinstance(caught.value, TransientError)
    assert "GETFILESTATUS" in str(caught.value)


@pytest.mark.parametrize(
    "reply",
    [
        said({}),
        said({"DirectoryListing": {"partialListing": [], "remainingEntries": 0}}),
        page(1),
        page({}),
        page(*named("a"), remaining=-1),
        page(*named("a"), remaining="1"),
        page(*named("a"), remaining=None),
        page(remaining=1),
        page(*named("a"), remaining=5),  # the same page for ever
        page(*named("a", "a")),
        page(*named("a/b")),
        page(*named("..")),
        page(*named("\ud800")),
        page(*named("d" * 60, type="DIRECTORY")),  # folders without end
    ],
)
def test_a_listing_that_goes_wrong_ends(reply: bytes) -> None:
    with opened(lambda _: reply) as backend:
        error = refused(backend, lambda b: list(b.list("")))
        assert not isinstance(error, TransientError)


def test_what_is_left_of_uploads_is_looked_for_in_folders_that_end() -> None:
    with opened(lambda _: page(*named(".tierstore-" + "0" * 16, type="DIRECTORY"))) as backend:
        assert len(list(backend.uploads())) == 1
    with opened(lambda _: page(*named("d" * 60, type="DIRECTORY"))) as backend:
        assert list(backend.uploads()) == []


@pytest.mark.parametrize(
    "place",
    [
        None,
        7,
        "",
        "/relative",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "https://127.0.0.1:1/x?delegation=s3cret",
        "http://",
        "http://:80/x?delegation=s3cret",
        "http://127.0.0.1:0/x?delegation=s3cret",
        "http://127.0.0.1:99999/x?delegation=s3cret",
        "http://127.0.0.1:port/x?delegation=s3cret",
        "http://[::1/x?delegation=s3cret",
        "http://user:s3cret@127.0.0.1:1/x",
        "http://\ud800/x?delegation=s3cret",
    ],
)
@pytest.mark.parametrize("use", ["read", "write"])
def test_redirects_to_nowhere(place: object, use: str) -> None:
    with opened(lambda _: said({"Location": place})) as backend:
        if use == "read":
            error = refused(backend, lambda b: b.read_into("k", 0, memoryview(bytearray(3))))
        else:
            error = refused(backend, lambda b: b.create("k", b"abc"))
    assert "s3cret" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("member", [b"{}", b"[]", b"[1,2]", b'{"a":1}'])
def test_an_answer_that_would_take_all_memory_is_not_parsed(member: bytes) -> None:
    """16 MiB of empty objects became 400."""
    many = b",".join([member] * 1_100_000)
    assert len(many) < WHOLE_BODY
    with opened(lambda _: said(b'{"FileStatus":[%s]}' % many)) as backend:
        tracemalloc.start()
        try:
            error = refused(backend, lambda b: b.stat("k"))
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert not isinstance(error, TransientError)
    assert most < 6 * len(many)


HIDDEN = ".tierstore-" + "0" * 16


@pytest.mark.parametrize(
    "changed",
    [
        *({"upload_id": f"{value}/x"} for value in ("", "runs", "d", "..", "/", None)),
        {"upload_id": f"d/{HIDDEN}0/x"},
        {"upload_id": f"other/{HIDDEN}/x"},
        {"upload_id": f"../d/{HIDDEN}/x"},
        {"upload_id": "runs"},
        {"upload_id": f"d/{HIDDEN}/../../runs"},
        {"upload_id": f"d/{HIDDEN}"},
        *({"upload_id": value} for value in (None, 1, [], "", "\ud800")),
        *({"part_size": value} for value in (0, -1, "4", 4.0, None, True, 1)),
        {"more": 1},
    ],
)
def test_a_token_that_none_was_given_names_nothing_to_remove(changed: dict[str, Any]) -> None:
    """A journal holds it, which anyone may have written to."""
    size = 10**6
    token = {"key": "d/x", "size": size, "part_size": 4 << 20, "upload_id": f"d/{HIDDEN}/x"}
    asked: list[bytes] = []

    def reply(head: bytes) -> bytes:
        asked.append(head)
        return status(type="DIRECTORY") if b"GETFILESTATUS" in head else page()

    with opened(reply) as backend:
        assert backend.upload("d/x", size, resume=json.dumps(token)).done == []
        asked.clear()
        old = {"key": "d/x", "size": size, "part_size": 4 << 20, "outer": f"d/{HIDDEN}"}
        old |= {"inner": f"d/{HIDDEN}/x"}  # as it was before all stores' tokens were one
        texts = (json.dumps(token | changed), json.dumps(old), "[" * 100_000, "null", "{}")
        for text in texts:
            with pytest.raises(StorageError, match="token") as caught:
                backend.upload("d/x", size, resume=text).abort()
            assert type(caught.value) is StorageError  # begun anew then
    assert asked == []


def test_a_diagnosis_of_nonsense() -> None:
    with opened(lambda head: page() if b"LISTSTATUS" in head else said({})) as backend:
        refused_by = pytest.raises(StorageError, match="FileStatus")
        with refused_by:
            list(backend.diagnose())


@pytest.mark.parametrize(
    "body",
    [
        {"RemoteException": 1},
        {"RemoteException": {"exception": 1, "message": [1]}},
        {"RemoteException": {"exception": "E" * 10**5, "message": "m" * 10**5}},
        b"[" * 60_000,
        b"\xff",
    ],
)
def test_refusals_that_are_none(body: object) -> None:
    with opened(lambda _: said(body).replace(b"200 OK", b"403 Forbidden")) as backend:
        with pytest.raises(StorageError, match="GETFILESTATUS: 403") as caught:
            backend.stat("k")
    assert len(str(caught.value)) < 2000


def test_a_namenode_that_repeats_the_request_tells_no_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does a datanode, of the token that the namenode gave."""
    own, given = "KAAKSm9i-x_YhunterTWOhunter", "GIVENxx-tokenTWOhunter-ofblock"
    file = tmp_path / "token"
    file.write_text(own)
    where: list[str] = []

    def reply(head: bytes) -> bytes:
        if b"noredirect" in head:
            where.append(head.decode().partition("Host: ")[2].split()[0])
            return said({"Location": f"http://{where[0]}/x?op=OPEN&delegation={given}"})
        token = head.decode().partition("delegation=")[2].split()[0].partition("&")[0]
        message = f"bad request {token[:20]} \x1b[2J {head.decode()}"
        told = {"exception": "IOException", "message": message.replace("\r\n", "; ")}
        return said({"RemoteException": told}).replace(b"200 OK", b"403 Forbidden")

    uses: list[Callable[[HdfsBackend], object]] = [
        lambda b: b.stat("k"),
        lambda b: b.read_into("k", 0, memoryview(bytearray(3))),
        lambda b: b.create("k", b"abc"),
    ]
    with caplog.at_level(logging.DEBUG), opened(reply, user=None, token_file=str(file)) as backend:
        for use in uses:
            with pytest.raises(StorageError, match="bad request") as caught:
                use(backend)
            text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
            text += caplog.text + repr(backend) + repr(vars(backend))
            assert [each for each in (own[:16], given[:16]) if each in text] == []


@pytest.mark.parametrize("doing", ["CREATE", "MKDIRS", "PUT at 10.0.0.7:9864", "RENAME"])
def test_a_file_in_the_place_of_a_folder_is_told_from_what_hdfs_cannot_do(doing: str) -> None:
    """Else a mirror takes it for a failure, and never frees the place."""
    why = {"exception": "ParentNotDirectoryException", "message": "/t/n (is not a directory)"}
    refusal = Response(403, {}, json.dumps({"RemoteException": why}).encode())
    assert isinstance(answered(refusal, doing=doing, who="name"), BlockedError)
