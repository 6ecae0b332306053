"""Pages of a listing: what S3 servers say, and what is none."""

from __future__ import annotations

import contextlib
import socket
from urllib.parse import parse_qs

import pytest
from botocore.utils import parse_timestamp

from tests.loopback import answer, read_request, serving
from tierstore.backend import ObjectInfo
from tierstore.errors import StorageError, ThrottledError
from tierstore_s3 import S3Options, open_s3
from tierstore_s3.listing import parse_page, query_of

AMAZON = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
DATE = "2026-01-02T03:04:05.678Z"
SECONDS = parse_timestamp(DATE).timestamp()


def said(inside: str, space: str = AMAZON) -> bytes:
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    return f"{head}<ListBucketResult{space}>{inside}</ListBucketResult>".encode()


def one(key: str, size: str = "9", date: str = DATE) -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>{date}</LastModified><Owner><ID>Key</ID></Owner>"
        f"<ETag>&quot;x&quot;</ETag><Size>{size}</Size></Contents>"
    )


@pytest.mark.parametrize("space", [AMAZON, ' xmlns="http://doc.s3.amazonaws.com/2006-03-01"', ""])
def test_objects_and_folders_below_the_root(space: str) -> None:
    inside = one("a/b/k") + "<CommonPrefixes><Prefix>a/b/f/</Prefix></CommonPrefixes>" + one("a/b/")
    page = parse_page(said(inside, space), "a/b/")
    assert page is not None
    there = ObjectInfo("k", 9, SECONDS, tag='"x"')
    marker = ObjectInfo("", 9, SECONDS, tag='"x"')
    assert page == ([there, marker, ObjectInfo("f/", 0, 0.0)], "")


@pytest.mark.parametrize("key", ["a b+c", "é/\U0001f600", "\x01", "100%", "a&b<c>"])
def test_keys_that_xml_cannot_hold_come_encoded(key: str) -> None:
    encoded = key.encode().hex(" ").upper()
    text = "".join(f"%{byte}" for byte in encoded.split())
    page = parse_page(said(f"<EncodingType>url</EncodingType>{one(text)}"), "")
    assert page is not None
    assert [info.key for info in page.found] == [key]


def test_a_plus_is_a_space_only_where_keys_are_encoded() -> None:
    for more, key in (("<EncodingType>url</EncodingType>", "a b"), ("", "a+b")):
        page = parse_page(said(more + one("a+b")), "")
        assert page is not None
        assert page.found[0].key == key


def test_the_next_page_is_asked_for_by_its_token() -> None:
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>t/+=</NextContinuationToken>"
    page = parse_page(said(more), "")
    assert page == ([], "t/+=")
    asked = parse_qs(query_of("p/", "p/a b", "/", "t/+="), strict_parsing=True)
    assert asked == {
        "list-type": ["2"],
        "encoding-type": ["url"],
        "prefix": ["p/"],
        "start-after": ["p/a b"],
        "delimiter": ["/"],
        "continuation-token": ["t/+="],
    }
    assert query_of("", "", "", "") == "list-type=2&encoding-type=url&prefix="


@pytest.mark.parametrize(
    "date", [DATE, "2026-01-02T03:04:05+02:00", "Fri, 02 Jan 2026 03:04:05 GMT", "1767323045"]
)
def test_times_are_those_of_botocore(date: str) -> None:
    page = parse_page(said(one("k", date=date)), "")
    assert page is not None
    assert page.found[0].mtime == parse_timestamp(date).timestamp()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>Welcome</body></html>",
        b"<html>Wel<come>",
        said(one("k"))[:-20],
        said(one("k", size="many")),
        said(one("k", date="yesterday")),
        said(one("k", date="")),
        said("<IsTruncated>true</IsTruncated>"),  # and no word on how to go on
    ],
)
def test_what_is_no_listing_is_none(body: bytes) -> None:
    assert parse_page(body, "") is None


@pytest.mark.parametrize(
    ("body", "error", "match"),
    [
        (b"<html><body>Welcome</body></html>", StorageError, "no listing.*endpoint"),
        (b"<Error><Code>SlowDown</Code><Message>m</Message></Error>", ThrottledError, "SlowDown"),
    ],
)
def test_an_answer_that_is_no_listing_is_an_error(
    body: bytes, error: type[StorageError], match: str
) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(body))

    with serving(serve) as url:
        options = S3Options(endpoint_url=url, anonymous=True, region="us-east-1")
        with contextlib.closing(open_s3("s3://bucket/p", options)) as backend:
            with pytest.raises(error, match=match) as caught:
                next(backend.list(""))
            assert type(caught.value) is error
