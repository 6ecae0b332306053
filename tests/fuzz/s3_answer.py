"""What an S3 server answers to the control plane, which botocore reads, and its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.fuzz.s3_listing import _backend
from tierstore.http import Response
from tierstore_s3.errors import answered, error_code

_RESUME = json.dumps({"key": "k", "size": 9, "upload_id": "u", "part_size": 8 << 20})
_UPLOAD = "<Key>p/k</Key><UploadId>u</UploadId><Initiated>2026-01-02T03:04:05.678Z</Initiated>"
_CRC = "<ChecksumCRC32C>4waSgw==</ChecksumCRC32C>"
_PART = f'<PartNumber>1</PartNumber><ETag>"x"</ETag><Size>9</Size>{_CRC}'
_BACKEND = _backend()


def _xml(root: str, inside: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><{root}>{inside}</{root}>'.encode()


def SEEDS() -> list[bytes]:
    marks = "<NextKeyMarker>p/k</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>"
    more = "<IsTruncated>true</IsTruncated>"
    next_part = "<NextPartNumberMarker>1</NextPartNumberMarker>"
    algorithm = "<ChecksumAlgorithm>CRC32C</ChecksumAlgorithm>"
    return [
        _xml("ListMultipartUploadsResult", f"{more}{marks}<Upload>{_UPLOAD}</Upload>"),
        _xml("ListPartsResult", f"{more}{next_part}{algorithm}<Part>{_PART}</Part>"),
        _xml("InitiateMultipartUploadResult", "<Bucket>b</Bucket><UploadId>u</UploadId>"),
        _xml("DeleteResult", ""),
    ]


def _refusal(data: bytes) -> None:
    for status in (403, 503):
        response = Response(status, {"retry-after": "1", "x-amz-bucket-region": "x"}, data)
        error_code(response)
        error = answered(response, doing="GetObject")
        assert len(str(error)) < 5000


_USES: list[Callable[[], object]] = [
    lambda: list(_BACKEND.uploads()),
    lambda: _BACKEND.upload("k", 9, resume=_RESUME).done,
    lambda: _BACKEND.upload("k", 9).token,
    lambda: _BACKEND.delete(["k"]),
]
_AFTER = [_xml("ListMultipartUploadsResult", ""), _xml("ListPartsResult", ""), b"", b""]
_ROOTS = [b"ListMultipart", b"ListParts", b"Initiate", b"Delete"]


class _Said:
    """A transport that has one answer, and then the end of a listing."""

    def __init__(self, data: bytes, after: bytes, status: int) -> None:
        self._answers: Iterator[Response] = iter([Response(status, {}, data)])
        self._after = Response(200, {}, after)

    def request(self, *_: Any, **__: Any) -> Response:
        return next(self._answers, self._after)


def parse(data: bytes) -> None:
    _refusal(data)
    use = next((n for n, root in enumerate(_ROOTS) if root in data), len(data) % len(_USES))
    status = 200 if data.endswith(b">") else 400
    said = _Said(data, _AFTER[use], status)
    _BACKEND._objects._client._connected = lambda: said
    _USES[use]()
