"""Multipart uploads: many parts at once, checked by the server, resumable by a token."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tierstore.backend import ObjectInfo
from tierstore.blocks import Buffer, combine
from tierstore.errors import (
    AlreadyExistsError,
    DamagedInTransitError,
    NotFoundError,
    StorageError,
    TruncatedFileError,
)
from tierstore.uploads import EmptyUpload, PartSizes, ResumeToken
from tierstore_s3.objects import Objects
from tierstore_s3.signing import decode_crc, encode_crc
from tierstore_s3.xml import NO_S3

MOST_PARTS = 10_000
"""Parts of an upload that S3 takes."""


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    size: int
    etag: str
    crc32c: int | None

    def named(self, checked: bool) -> dict[str, object]:
        """Itself, in the words of CompleteMultipartUpload."""
        named: dict[str, object] = {"PartNumber": self.number, "ETag": self.etag}
        if checked and self.crc32c is not None:
            named["ChecksumCRC32C"] = encode_crc(self.crc32c)
        return named


class PartsUpload:
    """An upload of one object in parts of equal size, numbered by their offset.

    Args:
        objects: of the tier.
        key: of the object.
        upload_id: the server's name for the upload.
        sizes: of its parts.
        resumable: there is a token.
    """

    def __init__(
        self,
        objects: Objects,
        key: str,
        upload_id: str,
        sizes: PartSizes,
        *,
        resumable: bool = True,
    ) -> None:
        self._objects = objects
        self._key, self._upload_id, self._sizes = key, upload_id, sizes
        self._resumable = resumable
        self._parts: dict[int, _Part] = {}
        self._lock = threading.Lock()
        self._over = False
        self._info: ObjectInfo | None = None

    @property
    def token(self) -> str:
        """For `S3Backend.upload(resume=...)`; empty where the size is not known."""
        sizes = self._sizes
        token = ResumeToken(self._key, sizes.size, self._upload_id, sizes.part_size)
        return str(token) if self._resumable else ""

    @property
    def done(self) -> list[tuple[int, int]]:
        """(offset, length) of the parts the server holds."""
        with self._lock:
            parts = sorted(self._parts.values(), key=lambda part: part.number)
        return [((part.number - 1) * self._sizes.part_size, part.size) for part in parts]

    def recall(self) -> None:
        """Ask the server which parts it holds.

        Raises:
            NotFoundError: the upload was completed, aborted, or has expired.
        """
        wanted: dict[str, object] = {"UploadId": self._upload_id}
        last = 0
        while True:
            page = self._objects.call("list_parts", self._key, **wanted)
            # A server that keeps no checksums is not asked for them; from one that does, a part
            # without its own is as good as missing.
            needed = self._objects.checked and "ChecksumAlgorithm" in page
            for each in page.get("Parts", ()):
                if not needed or each.get("ChecksumCRC32C"):
                    self._remember(each)
            if not page.get("IsTruncated"):
                return
            marker = page.get("NextPartNumberMarker")
            if not isinstance(marker, int) or not last < marker <= MOST_PARTS:
                text = "ListParts: the answer does not say how to go on"
                raise StorageError(text, url=self._objects.url, key=self._key, hint=NO_S3)
            wanted["PartNumberMarker"] = last = marker

    def write(self, offset: int, buffer: Buffer, crc32c: int) -> None:
        """Send one part; all but the last have the size that `Capabilities.part_size_for` gives.

        Raises:
            DamagedInTransitError: the server received other bytes.
            UnsupportedError: there are more parts than S3 takes.
            ValueError: it is not one of the upload's parts.
        """
        size = memoryview(buffer).nbytes
        index = self._sizes.take(offset, size)
        query = f"partNumber={index + 1}&uploadId={quote(self._upload_id, safe='')}"
        etag = self._objects.put_part(self._key, query, buffer, crc32c)
        with self._lock:
            self._parts[index + 1] = _Part(index + 1, size, etag, crc32c)

    def read_back(self, offset: int, buffer: memoryview) -> bool:  # noqa: ARG002 - the protocol's
        """Return False: parts cannot be read."""
        return False

    def commit(self, *, if_absent: bool = False, crc32c: int | None = None) -> ObjectInfo:
        """Complete the upload; the server checks the CRC32C of the whole.

        It may be repeated after an answer that did not tell: an object of this size and CRC32C is
        ours, or as good. The upload of a lost race is aborted.
        """
        if self._info is not None:
            return self._info
        key, size = self._key, self._sizes.size
        if not size:
            return self._commit_empty(if_absent=if_absent, crc=crc32c)
        parts = self._all_parts()
        whole = _whole(parts)
        if whole is not None and crc32c not in (None, whole):
            text = f"the parts have CRC32C {whole:08x}, the whole should have {crc32c:08x}"
            raise self._error(DamagedInTransitError, text)
        crc = crc32c if whole is None else whole
        try:
            self._complete(parts, crc, if_absent=if_absent)
        except AlreadyExistsError:
            try:
                self._info = self._objects.winner(key, size, crc)
            finally:
                self.abort()
        except NotFoundError as gone:
            self._info = self._earlier(crc, gone, if_absent=if_absent)
        else:
            self._info = self._objects.stat(key)
        self._over = True
        return self._info

    def abort(self) -> None:
        """Free the parts on the server. Idempotent; nothing happens after a commit."""
        if not self._over:
            abort_upload(self._objects, self._key, self._upload_id)
            self._over = True

    def _commit_empty(self, *, if_absent: bool, crc: int | None) -> ObjectInfo:
        """Create an object that turned out to have no bytes: S3 wants at least one part."""
        if self._over:
            raise StorageError("the upload is over", url=self._objects.url, key=self._key)
        empty = EmptyUpload(self._objects.url, self._key, self._objects.put)
        info = empty.commit_for(self.abort, if_absent=if_absent, crc32c=crc)
        self._info = info
        return info

    def _error(self, kind: type[StorageError], text: str) -> StorageError:
        return kind(text, url=self._objects.url, key=self._key)

    def _remember(self, each: dict[str, Any]) -> None:
        crc = decode_crc(each.get("ChecksumCRC32C"))
        part = _Part(each.get("PartNumber", 0), each.get("Size", -1), each.get("ETag", ""), crc)
        if part.number > 0 and 0 < part.size == self._sizes.length(part.number - 1):
            with self._lock:
                self._parts[part.number] = part

    def _all_parts(self) -> list[_Part]:
        needed = range(1, self._sizes.count + 1)
        with self._lock:
            missing = [number for number in needed if number not in self._parts]
            if not missing:
                return [self._parts[number] for number in needed]
        raise TruncatedFileError(
            f"{self._objects.url}/{self._key}: {len(missing)} of {len(needed)} parts are missing, "
            f"the first at byte {(missing[0] - 1) * self._sizes.part_size}"
        )

    def _complete(self, parts: list[_Part], crc: int | None, *, if_absent: bool) -> None:
        wanted: dict[str, object] = {
            "UploadId": self._upload_id,
            "MultipartUpload": {"Parts": [part.named(self._objects.checked) for part in parts]},
        }
        if self._objects.checked and crc is not None:
            wanted |= {"ChecksumCRC32C": encode_crc(crc), "ChecksumType": "FULL_OBJECT"}
        if if_absent:
            wanted["IfNoneMatch"] = "*"
        self._objects.call("complete_multipart_upload", self._key, **wanted)

    def _earlier(self, crc: int | None, gone: NotFoundError, *, if_absent: bool) -> ObjectInfo:
        """Return the object of an earlier commit of this upload, whose answer was lost."""
        try:
            info = self._objects.same(self._key, self._sizes.size, crc)
        except NotFoundError:
            raise gone from None
        if info is None and if_absent:
            raise self._error(AlreadyExistsError, "exists with other content") from gone
        if info is None:
            raise gone
        return info


def abort_upload(objects: Objects, key: str, upload_id: str) -> None:
    """Free what a multipart upload holds; one that is gone is no error."""
    with suppress(NotFoundError):
        objects.call("abort_multipart_upload", key, UploadId=upload_id)


def _whole(parts: list[_Part]) -> int | None:
    """Return the CRC32C of the parts joined, or None where one is unknown."""
    known = [(part.crc32c, part.size) for part in parts if part.crc32c is not None]
    return combine(known) if len(known) == len(parts) else None
