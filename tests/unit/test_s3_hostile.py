"""S3 servers that answer what none should: an error of ours, soon, and no secret in it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from tests.loopback import answer, read_request, serving
from tests.unit.test_s3_listing import one, said
from tierstore.errors import AccessError, ConfigError, StorageError, TransientError
from tierstore_s3 import S3Backend, S3Options, open_s3

pytestmark = pytest.mark.usefixtures("no_leaks")

Reply = Callable[[bytes], bytes]
TOKEN = "FwoGZXIvYXdzEJr-hunter2-hunter2-hunter2"
MORE = "<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>"


@contextlib.contextmanager
def opened(reply: Reply, **options: Any) -> Iterator[S3Backend]:
    """A tier at a server that answers each request's head with what `reply` says."""

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                sock.sendall(reply(read_request(sock)[0]))

    with serving(serve) as url:
        given = {"anonymous": True, "region": "us-east-1", "endpoint_url": url, **options}
        if path := options.get("endpoint_url"):
            given["endpoint_url"] = url + path
        with contextlib.closing(open_s3("s3://bucket/p", S3Options(**given))) as backend:
            yield backend


def pages(*bodies: bytes) -> Reply:
    """Answer one page after another, the last for ever."""
    left = list(bodies)
    return lambda _: answer(left.pop(0) if len(left) > 1 else left[0])


def refused(backend: S3Backend, work: Callable[[S3Backend], object]) -> StorageError:
    with pytest.raises(StorageError) as caught:
        work(backend)
    assert not isinstance(caught.value, TransientError)
    assert caught.value.hint
    assert caught.value.url == backend.url
    return caught.value


@pytest.mark.parametrize(
    "reply",
    [
        pages(said(MORE.format("a"))),
        pages(said(MORE.format("a") + one("p/k"))),
        pages(said(MORE.format("a") + one("p/k")), said(MORE.format("a"))),
        pages(said(MORE.format("a")), said(MORE.format("b")), said(MORE.format("a"))),
        pages(said(MORE.format("a") + one("p/k")), said(one("p/j"))),
        pages(said(MORE.format("a") + one("p/k")), said(one("p/k"))),
        pages(said(one("p/k") + one("p/k"))),
        pages(said(one("q/k"))),
        pages(said("<IsTruncated>true</IsTruncated>")),
        pages(said(MORE.format("t" * 100_000))),
        pages(said(one("p/dir/k", size="9" * 40))),
        pages(said(one("p/dir/k", size="-1"))),
        pages(said(one("p/dir/k", size="\u0661"))),
        pages(said(one("p/dir/k", date="9" * 400))),
        pages(said(one("p/dir/k", date="0001-01-01T00:00:00Z"))),
        pages(said("<EncodingType>url</EncodingType>" + one("p/dir/%FF"))),
        pages(b"<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'>]>" + said(one("p/dir/&a;"))),
        pages(said("<a>" * 400_000)),
        pages(said("<a/>" * 400_000)),
        pages(said("<a " + " ".join(f"b{n}=''" for n in range(400_000)) + "/>")),
        pages(said(one("p/dir/k")).decode().encode("utf-16")),
    ],
    ids=range(21),
)
def test_a_listing_that_goes_wrong_ends(reply: Reply, request: pytest.FixtureRequest) -> None:
    prefix = "dir/" if "p/dir" in str(request.node.callspec.id) else ""
    with opened(reply) as backend:
        refused(backend, lambda b: list(b.list(prefix)))


def test_keys_beside_the_prefix_are_not_listed() -> None:
    with opened(pages(said(one("p/other/k")))) as backend:
        refused(backend, lambda b: list(b.list("dir/")))


def test_a_listing_that_invents_tokens_ends() -> None:
    numbers = iter(range(10**6))
    with opened(lambda _: answer(said(MORE.format(next(numbers))))) as backend:
        refused(backend, lambda b: list(b.list("")))
    assert next(numbers) < 2000


def test_a_page_without_objects_is_passed_over() -> None:
    """As of a bucket with many versions of deleted objects."""
    asked = []

    def reply(head: bytes) -> bytes:
        asked.append(parse_qs(head.split()[1].decode()).get("continuation-token"))
        inside = one("p/k") if len(asked) > 5 else MORE.format(len(asked))
        return answer(said(inside))

    with opened(reply) as backend:
        assert [info.key for info in backend.list("")] == ["k"]
    assert asked[1:] == [[str(number)] for number in range(1, 6)]


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "Content-Length: 5\r\nLast-Modified: yesterday\r\n",
        "Content-Length: 5\r\nLast-Modified: Mon, 99 Jan 99999 00:00:00 GMT\r\n",
    ],
)
def test_a_head_that_does_not_tell_is_no_empty_object(lines: str) -> None:
    with opened(lambda _: f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode()) as backend:
        refused(backend, lambda b: b.stat("k"))


@pytest.mark.parametrize("sent", ["", "bytes 0-2/9", "bytes 1-4/9", "bytes */9", "nonsense"])
def test_another_range_is_not_taken_for_the_one_that_was_asked_for(sent: str) -> None:
    said = f"HTTP/1.1 206 Partial Content\r\nContent-Range: {sent}\r\nContent-Length: 3\r\n\r\nabc"
    with opened(lambda _: said.encode()) as backend:
        refused(backend, lambda b: b.read_into("k", 1, memoryview(bytearray(3))))


USES: dict[str, Callable[[S3Backend], object]] = {
    "delete": lambda b: b.delete(["k"]),
    "begin": lambda b: b.upload("k", 10),
    "uploads": lambda b: list(b.uploads()),
    "parts": lambda b: b.upload(
        "k", 9, resume='{"key": "k", "size": 9, "upload_id": "u", "part_size": 8388608}'
    ),
}
UPLOADS = (
    "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>{}</ListMultipartUploadsResult>"
)
MARKERS = "<NextKeyMarker>p/k</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>"
UPLOAD = "<Upload><Key>p/k</Key><UploadId>u</UploadId><Initiated>{}</Initiated></Upload>"
PARTS = "<ListPartsResult><IsTruncated>true</IsTruncated>{}</ListPartsResult>"


@pytest.mark.parametrize(
    ("use", "body"),
    [
        *(
            (use, body)
            for use in USES
            for body in ("<html>Wel<come></html>", "<b>" * 9 + "&", "hi")
        ),
        ("delete", "<!DOCTYPE x><DeleteResult/>"),
        ("uploads", UPLOADS.format("")),
        ("uploads", UPLOADS.format(MARKERS)),
        ("uploads", UPLOADS.format(MARKERS.replace("u<", "v<") + UPLOAD.format("2026"))),
        ("uploads", UPLOADS.format(UPLOAD.format("yesterday"))),
        ("uploads", UPLOADS.format("<Upload><Key>p/k</Key></Upload>")),
        ("parts", PARTS.format("")),
        ("parts", PARTS.format("<NextPartNumberMarker>7</NextPartNumberMarker>")),
        ("parts", PARTS.format("<NextPartNumberMarker>many</NextPartNumberMarker>")),
        ("parts", PARTS.format("<Part><PartNumber>one</PartNumber></Part>")),
    ],
)
def test_what_botocore_cannot_read_is_said(use: str, body: str) -> None:
    with opened(lambda _: answer(body.encode())) as backend:
        refused(backend, USES[use])


@pytest.mark.parametrize(
    ("use", "body"),
    [
        ("uploads", UPLOADS.format(MARKERS.replace("p/k", "p/k{:06}"))),
        ("parts", PARTS.format("<NextPartNumberMarker>{}</NextPartNumberMarker>")),
        ("parts", PARTS.format("<NextPartNumberMarker>{}000</NextPartNumberMarker>")),
    ],
)
def test_pages_that_always_go_on_end(use: str, body: str) -> None:
    numbers = iter(range(1, 10**6))
    with opened(lambda _: answer(body.format(next(numbers)).encode())) as backend:
        refused(backend, USES[use])
    assert next(numbers) < 12_000


@pytest.mark.parametrize(("number", "size"), [(0, 8 << 20), (-1, 8 << 20), (3, 9 - (16 << 20))])
def test_a_part_that_cannot_be_is_none(number: int, size: int) -> None:
    part = f"<Part><PartNumber>{number}</PartNumber><Size>{size}</Size><ETag>e</ETag></Part>"
    with opened(lambda _: answer(f"<ListPartsResult>{part}</ListPartsResult>".encode())) as backend:
        upload = USES["parts"](backend)
    assert upload.done == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "changed",
    [
        *({"part_size": value} for value in (0, -1, "8388608", 8388608.0, None, True, [])),
        *({"upload_id": value} for value in (None, 1, [], "", "\ud800")),
        {"more": 1},
    ],
)
def test_a_token_that_none_was_given(changed: dict[str, Any]) -> None:
    """It comes from a journal, a file that may hold anything."""
    token = {"key": "k", "size": 9, "upload_id": "u", "part_size": 8388608, **changed}
    with opened(lambda _: answer(b"<ListPartsResult/>")) as backend:
        for text in (json.dumps(token), "[" * 100_000, "null", "{}"):
            with pytest.raises(StorageError, match="token") as caught:
                backend.upload("k", 9, resume=text)
            assert type(caught.value) is StorageError  # begun anew then


def test_an_answer_that_was_cut_off_may_come_whole_the_next_time() -> None:
    with opened(lambda _: answer(b"<InitiateMultipartUploadResult><Bucket>b")) as backend:
        with pytest.raises(TransientError, match="cut off"):
            backend.upload("k", 10)


def test_a_control_answer_has_a_size() -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 60000000000\r\n\r\n"
    with opened(lambda _: said) as backend:
        refused(backend, USES["begin"])


def shown(error: BaseException, *more: object) -> str:
    """All that a traceback and a log show of an error."""
    return "".join(traceback.format_exception(error)) + repr(error) + "".join(map(str, more))


@pytest.mark.parametrize("use", ["delete", "list", "read"])
def test_a_server_that_repeats_the_request_tells_no_secret(
    use: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-sent-and-never-shown")
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    signatures: set[str] = set()

    def reply(head: bytes) -> bytes:
        signatures.update(re.findall(r"Signature=(\w+)", head.decode()))
        text = head.decode().replace("\r\n", "; ").replace("<", "")
        text += f"; cut: {TOKEN[:30]}\x1b]0;owned\x07"
        return answer(f"<Error><Code>Odd</Code><Message>{text[:1900]}</Message></Error>".encode(),
                      "400 Bad Request")  # fmt: skip

    uses = {**USES, "list": lambda b: list(b.list("")), "read": lambda b: b.stat("k")}
    uses["read"] = lambda b: b.read_into("k", 0, memoryview(bytearray(3)))
    with caplog.at_level(logging.DEBUG), opened(reply, anonymous=False) as backend:
        with pytest.raises(StorageError) as caught:
            uses[use](backend)
    text = shown(caught.value, caplog.text, backend, vars(backend))
    assert signatures
    secrets = [TOKEN, TOKEN[:20], "never-sent", *signatures]
    assert [secret for secret in secrets if secret in text] == []
    assert "400" in str(caught.value)


def test_a_process_that_gives_no_credentials_tells_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    command = f"sh -c 'echo token={TOKEN} >&2; exit 1'"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {command}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    options = S3Options(region="us-east-1", endpoint_url="http://127.0.0.1:1")
    with caplog.at_level(logging.DEBUG), contextlib.closing(open_s3("s3://b", options)) as backend:
        with pytest.raises(AccessError, match=r"token=\*\*\*") as caught:
            backend.stat("k")
    assert TOKEN not in shown(caught.value, caplog.text)


def test_a_path_of_the_endpoint_is_doubted_before_rights_are() -> None:
    refusal = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"

    def reply(_: bytes) -> bytes:
        return answer(refusal, "403 Forbidden")

    with opened(reply, endpoint_url="/minio/api") as backend:
        for use in (lambda b: b.stat("k"), USES["delete"], lambda b: list(b.list(""))):
            with pytest.raises(AccessError, match="endpoint_url should have the path /minio/api"):
                use(backend)
    with opened(reply) as backend, pytest.raises(AccessError) as caught:
        backend.stat("k")
    assert "endpoint_url" not in caught.value.hint


@pytest.mark.parametrize("given", ["http://me:hunter2@127.0.0.1:1", "http://me:hunter2@[bad"])
@pytest.mark.parametrize("by", ["option", "variable"])
def test_an_endpoint_with_a_password_is_refused(
    given: str, by: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if by == "variable":
        monkeypatch.setenv("AWS_ENDPOINT_URL", given)
    options = S3Options(anonymous=True, endpoint_url=given if by == "option" else None)
    with caplog.at_level(logging.DEBUG), contextlib.closing(open_s3("s3://b", options)) as backend:
        with pytest.raises(ConfigError) as caught:
            backend.stat("k")
    assert "hunter2" not in shown(caught.value, caplog.text)


@pytest.mark.parametrize(
    ("bucket", "kind"),
    [
        ("fast--usw2-az1--x-s3", "directory bucket"),
        ("point--usw2-az1--xa-s3", "access point of a directory bucket"),
        ("arn:aws:s3::123456789012:accesspoint:abc.mrap", "multi-region access point"),
    ],
)
def test_addresses_that_are_signed_otherwise_are_refused_when_opened(
    bucket: str, kind: str
) -> None:
    with pytest.raises(ConfigError, match=f"is an? {kind}, which is not supported") as caught:
        open_s3(f"s3://{bucket}/p")
    assert "an access point of one region" in caught.value.hint


def test_an_arn_is_written_with_colons() -> None:
    with pytest.raises(ConfigError, match="ends at a slash") as caught:
        open_s3("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/p")
    assert "colons" in caught.value.hint
