"""Pages of an S3 listing, as a tier yields their objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tierstore.http import Response
from tierstore_s3 import S3Options, open_s3

_HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
_SPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_LAST = f"{_HEAD}<ListBucketResult{_SPACE}></ListBucketResult>".encode()
_DATES = ("2026-01-02T03:04:05.678Z", "Fri, 02 Jan 2026 03:04:05 GMT", "1767323045")


def _page(inside: str) -> bytes:
    objects = "".join(
        f"<Contents><Key>p/{key}</Key><LastModified>{date}</LastModified>"
        f"<ETag>&quot;x&quot;</ETag><Size>{number}</Size></Contents>"
        for number, (key, date) in enumerate(zip("abc", _DATES, strict=True))
    )
    folders = "<CommonPrefixes><Prefix>p/d%20e/</Prefix></CommonPrefixes>"
    whole = inside + objects + folders
    return f"{_HEAD}<ListBucketResult{_SPACE}>{whole}</ListBucketResult>".encode()


def SEEDS() -> list[bytes]:
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
    url = "<EncodingType>url</EncodingType>"
    return [_page(""), _page(url), _page(url + more), _LAST]


def _backend() -> Any:
    options = S3Options(anonymous=True, region="us-east-1", endpoint_url="http://127.0.0.1:1")
    backend = open_s3("s3://bucket/p", options)
    backend.capabilities  # noqa: B018 - whole before a child is forked
    backend._objects._client._current()
    return backend


_BACKEND = _backend()


def parse(data: bytes) -> None:
    answers: Iterator[bytes] = iter([data])

    def request(*_: Any, **__: Any) -> Response:
        return Response(200, {}, next(answers, _LAST))

    _BACKEND._objects._client.request = request
    last = ""
    for info in _BACKEND.list(""):
        assert info.key > last
        assert 0 <= info.size < 1 << 63
        assert 0 <= info.mtime < 1e12
        last = info.key
