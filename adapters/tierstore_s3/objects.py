"""Whole objects below a prefix of a bucket, with every error named in this project's words."""

from __future__ import annotations

from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from typing import Any, NoReturn

from tierstore.backend import ObjectInfo
from tierstore.blocks import Buffer, crc32c, crc32c_read
from tierstore.errors import (
    AlreadyExistsError,
    ConfigError,
    InvalidKeyError,
    NotFoundError,
    StorageError,
    TransientError,
    TruncatedFileError,
)
from tierstore.http import Response
from tierstore.keys import LONGEST, check_key
from tierstore.logs import logger
from tierstore.registry import parse_url
from tierstore_s3.client import S3Client
from tierstore_s3.errors import NO_UPLOAD, answered, error_code, failure, naming
from tierstore_s3.listing import Page, parse_page, query_of
from tierstore_s3.options import S3Options
from tierstore_s3.signing import CRC_HEADER, decode_crc, encode_crc
from tierstore_s3.xml import NO_S3

_log = logger(__name__)
_DENIED_TRIES = 3


class Objects:
    """The objects below `s3://bucket/prefix`.

    Attributes:
        url: the root, without credentials.
        prefix: what every key of the bucket begins with; "" or ending in "/".
        checked: the server is given the CRC32C of everything it stores.
    """

    def __init__(self, url: str, options: S3Options) -> None:
        address = parse_url(url)
        if not address.host:
            raise ConfigError(f"{url!r} names no bucket", hint="write s3://bucket/prefix")
        self.url = address.url
        self.prefix = f"{address.path.strip('/')}/".lstrip("/")
        self.checked = options.checksum == "crc32c"
        self._options = options
        self._client = S3Client(address.host, options)
        self._bucket_seen = False
        self._warned = False

    def stat(self, key: str) -> ObjectInfo:
        """Return what the server knows; the CRC32C only if it is of the whole object."""
        with naming(self.url, key):
            answer = self._client.request(
                "HEAD", self.path(key), headers={"x-amz-checksum-mode": "ENABLED"}
            )
            if answer.status != 200:
                self._refuse(answer, "HeadObject")
            if answer.told is None:
                text = "HeadObject: the answer does not tell the object's length"
                raise StorageError(text, hint=NO_S3)
            return _told(key, answer, answer.told)

    def fetch(self, key: str, buffer: memoryview) -> ObjectInfo:
        """Receive a whole object; see `stat` for what is returned."""
        with naming(self.url, key):
            # Without a range: of a part of an object no server tells a checksum.
            answer = self._client.request(
                "GET", self.path(key), headers={"x-amz-checksum-mode": "ENABLED"}, into=(buffer,)
            )
            if answer.status != 200:
                self._refuse(answer, "GetObject")
            return _told(key, answer, buffer.nbytes)

    def page(self, prefix: str, *, after: str, delimiter: str, token: str) -> Page:
        """Return a page of the listing; see `tierstore_s3.listing`."""
        query = query_of(self.prefix + prefix, after and self.prefix + after, delimiter, token)
        with naming(self.url, ""):
            answer = self._client.request("GET", "", query=query, headers={})
            if answer.status != 200:
                self._refuse(answer, "ListObjectsV2")
            page = parse_page(answer.body, self.prefix)
            if page is None and error_code(answer):  # it failed after it had said that all is well
                raise answered(replace(answer, status=500), doing="ListObjectsV2")
            if page is None or not all(info.key.startswith(prefix) for info in page.found):
                text = "ListObjectsV2: the answer is no listing of what was asked for"
                raise self._client.advised(StorageError(text, hint=NO_S3))
            return page

    def read_into(self, key: str, offset: int, *buffers: memoryview) -> None:
        """Receive the bytes from `offset` straight into the buffers, at least one of them."""
        end = offset + sum(buffer.nbytes for buffer in buffers) - 1
        with naming(self.url, key):
            answer = self._client.request(
                "GET",
                self.path(key),
                headers={"range": f"bytes={offset}-{end}"},
                into=buffers,
                ok=(200, 206),
            )
            if answer.status not in (200, 206):
                self._refuse(answer, "GetObject")
            if answer.status == 200 and offset:
                raise StorageError("GetObject: the server ignores ranges", hint=NO_S3)
            sent = answer.headers.get("content-range", "")
            if answer.status == 206 and not sent.startswith(f"bytes {offset}-{end}/"):
                text = f"GetObject: the server sends {sent[:80]!r}, not bytes {offset}-{end}"
                raise StorageError(text, hint=NO_S3)

    def put(self, key: str, buffer: Buffer, *, if_absent: bool) -> ObjectInfo:
        """Put a whole object; with `if_absent`, an equal one that exists counts as put.

        Raises:
            AlreadyExistsError: `if_absent` and one with other content exists.
        """
        size, crc = memoryview(buffer).nbytes, crc32c(buffer)
        headers = {**self._object_headers(), **self._crc_header(crc)}
        if if_absent:
            headers["if-none-match"] = "*"
        with naming(self.url, key):
            # MinIO over a plain folder denies one in a thousand of the new objects that come just
            # as the deletion of their last neighbour removes the folder.
            for _ in range(_DENIED_TRIES):
                answer = self._client.request("PUT", self.path(key), headers=headers, body=buffer)
                if error_code(answer) != "AccessDenied":
                    break
            if answer.status == 412:
                return self.winner(key, size, crc)
            if answer.status != 200:
                self._refuse(answer, "PutObject")
            self._confirm(answer)
            written, tag = _seconds(answer.headers.get("date")), answer.headers.get("etag", "")
            return ObjectInfo(key, size, written or 0.0, crc, tag)

    def put_part(self, key: str, query: str, buffer: Buffer, crc: int) -> str:
        """Send one part of a multipart upload and return its ETag."""
        with naming(self.url, key):
            answer = self._client.request(
                "PUT", self.path(key), query=query, headers=self._crc_header(crc), body=buffer
            )
            if answer.status != 200:
                self._refuse(answer, "UploadPart")
            self._confirm(answer)
            return answer.headers.get("etag", "")

    def winner(self, key: str, size: int, crc: int | None) -> ObjectInfo:
        """Return the object that made an if-absent request fail, if it is the very same.

        Raises:
            AlreadyExistsError: it has other content.
            TransientError: it has gone meanwhile.
        """
        with naming(self.url, key):
            try:
                info = self.same(key, size, crc)
            except NotFoundError as error:
                raise TransientError("it existed and is gone") from error
            if info is None:
                raise AlreadyExistsError("exists with other content")
            return info

    def same(self, key: str, size: int, crc: int | None) -> ObjectInfo | None:
        """Return the object at `key` if it has this size and CRC32C (None: any), else None."""
        info = self.stat(key)
        if info.size != size:
            return None
        held = self._read_crc(info) if info.crc32c is None else info.crc32c
        return replace(info, crc32c=held) if crc in (None, held) else None

    def call(self, operation: str, key: str | None, /, **parameters: object) -> dict[str, Any]:
        """Carry out an operation of the control plane, on `key` or on the bucket."""
        with naming(self.url, key or ""):
            if key is not None:
                parameters["Key"] = self.path(key)
            return self._client.call(operation, **parameters)

    def path(self, key: str) -> str:
        """Return the bucket's own key of `key`.

        Raises:
            InvalidKeyError: it is none, or too long with the prefix of the tier.
        """
        path = self.prefix + check_key(key)
        if len(path) > LONGEST // 4 and len(path.encode()) > LONGEST:  # a sign takes four at most
            raise InvalidKeyError(
                f"key {key[:60]!r}... is too long below {self.url}",
                hint=f"{LONGEST:,} bytes at most, with the prefix",
            )
        return path

    def close(self) -> None:
        """Release connections. Idempotent."""
        self._client.close()

    def _crc_header(self, crc: int) -> dict[str, str]:
        return {CRC_HEADER: encode_crc(crc)} if self.checked else {}

    def _confirm(self, answer: Response) -> None:
        """Warn once of a server that stores bytes without checking them."""
        if self.checked and CRC_HEADER not in answer.headers and not self._warned:
            self._warned = True
            _log.warning(
                "%s: the server does not check CRC32C; set checksum = 'none', so that what is "
                "written is read back and checked",
                self.url,
            )

    def _object_headers(self) -> dict[str, str]:
        wanted = {
            "x-amz-storage-class": self._options.storage_class,
            "x-amz-server-side-encryption": self._options.sse,
            "x-amz-server-side-encryption-aws-kms-key-id": self._options.kms_key,
        }
        return {name: value for name, value in wanted.items() if value}

    def _read_crc(self, info: ObjectInfo) -> int:
        return crc32c_read(partial(self.read_into, info.key), info.size)

    def _refuse(self, answer: Response, doing: str) -> NoReturn:
        if answer.status == 416:
            raise TruncatedFileError(f"{doing}: the object ends before the bytes asked for")
        if answer.status == 404 and error_code(answer) not in ("NoSuchKey", NO_UPLOAD):
            # An answer to HEAD has no body that tells a missing key from a missing bucket.
            self._look_for_bucket()
        raise self._client.advised(answered(answer, doing=doing))

    def _look_for_bucket(self) -> None:
        if self._bucket_seen:
            return
        try:
            self._client.call("head_bucket")
        except NotFoundError as error:
            said = "the bucket does not exist"
            missing = failure(404, "NoSuchBucket", said, {}, doing="HeadBucket")
            raise self._client.advised(missing) from error
        self._bucket_seen = True


def _told(key: str, answer: Response, size: int) -> ObjectInfo:
    changed = _seconds(answer.headers.get("last-modified"))
    if changed is None:  # an object of no age would be taken for an old one
        raise StorageError("the answer's Last-Modified is no date", hint=NO_S3)
    return ObjectInfo(
        key,
        size,
        changed,
        decode_crc(answer.headers.get(CRC_HEADER)),
        answer.headers.get("etag", ""),
    )


@lru_cache(maxsize=64)
def _seconds(date: str | None) -> float | None:
    """Return a header's time, 0 where there is none; None where it is no time."""
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp()) if date else 0.0
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
