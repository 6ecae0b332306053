"""An S3 bucket, or a prefix in one, as a backend."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice

from tierstore.backend import Capabilities, Check, ObjectInfo
from tierstore.blocks import Buffer
from tierstore.errors import StorageError, TruncatedFileError
from tierstore.registry import declares
from tierstore.scan import in_order
from tierstore.uploads import EmptyUpload, OpenUpload
from tierstore_s3.errors import failure
from tierstore_s3.multipart import PartsUpload
from tierstore_s3.objects import Objects
from tierstore_s3.options import MIB, SMALL, S3Options
from tierstore_s3.uploads import Uploads
from tierstore_s3.xml import NO_S3

_DELETE_BATCH = 1000
_BARREN_PAGES = 1000  # without an object, one behind the other: a server may pass over deleted ones
_FORGOTTEN = 86_400.0  # seconds
_LOOKED_AT = 10_000


@declares(S3Options)
def open_s3(url: str, options: S3Options | None = None) -> S3Backend:
    """Open `s3://bucket/prefix`; no request is sent yet.

    Raises:
        ConfigError: the URL or an option is wrong.
    """
    return S3Backend(url, options or S3Options())


class S3Backend:
    """Objects below `s3://bucket/prefix`. See `tierstore.backend.Backend` for each method.

    A missing bucket is a plain `StorageError`, never a `NotFoundError`: nobody shall take it for
    a missing checkpoint.
    """

    def __init__(self, url: str, options: S3Options) -> None:
        self._objects = Objects(url, options)
        self._capabilities = Capabilities(
            atomic_create=True,
            clean_create=True,
            parallel_parts=True,
            resumable_upload=True,
            server_checksum=self._objects.checked,
            needs_read_back=not self._objects.checked,
            durable_on_commit=True,
            min_part=5 * MIB,
            seen_by="all",
            part_size=options.part_size,
            read_size=options.read_size,
            concurrency=options.concurrency,
            small_concurrency=SMALL * options.concurrency,
        )
        self._uploads = Uploads(self._objects, options, self._capabilities)

    def __repr__(self) -> str:
        return f"S3Backend({self.url!r})"

    @property
    def url(self) -> str:
        """The root, without credentials."""
        return self._objects.url

    @property
    def capabilities(self) -> Capabilities:
        """Of S3 as such; a server may do less, which `tierstore doctor` finds out."""
        return self._capabilities

    def stat(self, key: str) -> ObjectInfo:
        """Return size, mtime and, of objects written with one, the CRC32C of the whole."""
        return self._objects.stat(key)

    def list(
        self, prefix: str, *, after: str | None = None, delimiter: bool = False
    ) -> Iterator[ObjectInfo]:
        """Yield objects, 1,000 a request, in the order of their UTF-8 bytes."""
        return in_order(self._listed(prefix, after or "", delimiter=delimiter), self.url)

    def _listed(self, prefix: str, after: str, *, delimiter: bool) -> Iterator[ObjectInfo]:
        folders, token = "/" if delimiter else "", ""
        barren: set[str] = set()  # what pages without an object were asked for with
        while True:
            page = self._objects.page(prefix, after=after, delimiter=folders, token=token)
            for info in sorted(page.found, key=lambda info: info.key):
                # The root's own marker object, as consoles make it, has no key below the root.
                if info.key and info.key > after:
                    yield info
            if not page.token:
                return
            barren = set() if page.found else {*barren, token}
            token = page.token
            if token in barren or len(barren) > _BARREN_PAGES:
                raise StorageError("the listing goes on without end", url=self.url, hint=NO_S3)

    def read_into(self, key: str, offset: int, *buffers: memoryview) -> None:
        """Receive a range straight into the buffers."""
        if any(buffer.nbytes for buffer in buffers):
            self._objects.read_into(key, offset, *buffers)
        elif self.stat(key).size < offset:
            raise TruncatedFileError(f"{self.url}/{key}: it ends before byte {offset}")

    def fetch(self, key: str, buffer: memoryview) -> ObjectInfo:
        """Get a whole object and, of one written with it, its CRC32C, by one request."""
        return self._objects.fetch(key, buffer)

    def create(
        self,
        key: str,
        buffer: Buffer,
        *,
        if_absent: bool = False,
        durable: bool = True,  # noqa: ARG002 - always
    ) -> ObjectInfo:
        """Put a whole object; with `if_absent` by `If-None-Match: *`."""
        return self._objects.put(key, buffer, if_absent=if_absent)

    def check_key(self, key: str) -> None:
        """Raise InvalidKeyError of a key that no object here can have."""
        self._objects.path(key)

    def flush(self) -> None:
        """Do nothing: S3 answers when an object is durable."""

    def upload(
        self, key: str, size: int | None = None, *, resume: str | None = None
    ) -> PartsUpload | EmptyUpload:
        """Begin a multipart upload, or go on with the one whose token is given.

        S3 takes 10,000 parts: an object whose size is not given has so many times the option
        `part_size` at most (32 MiB by default, so 312 GiB), and its writer holds as much in memory
        for a part.

        Raises:
            NotFoundError: the upload to resume was completed, aborted, or has expired.
            StorageError: the token is of another upload.
        """
        self._objects.path(key)
        if size == 0:
            return EmptyUpload(self.url, key, self._objects.put)
        return self._uploads.resume(key, size, resume) if resume else self._uploads.begin(key, size)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, 1,000 a request."""
        rest = iter(keys)
        while batch := list(islice(rest, _DELETE_BATCH)):
            objects = [{"Key": self._objects.path(key)} for key in batch]
            answer = self._objects.call(
                "delete_objects", None, Delete={"Objects": objects, "Quiet": True}
            )
            for refused in answer.get("Errors", ()):
                code, said = str(refused.get("Code", "")), str(refused.get("Message", ""))
                if code != "NoSuchKey":
                    raise failure(0, code, said, {}, doing=f"deleting {refused.get('Key', '')}")

    def uploads(self, prefix: str = "") -> Iterator[OpenUpload]:
        """Yield the multipart uploads left open below `prefix`: hidden parts that cost money."""
        return self._uploads.list(prefix)

    def abort_upload(self, upload: OpenUpload) -> None:
        """Free what an open upload holds. Idempotent."""
        self._uploads.abort(upload.key, upload.upload_id)

    def abort_uploads(self, key: str) -> None:
        """Free every open upload of one key; see `tierstore.backend.abort_uploads`."""
        self._uploads.abort_all(key)

    def diagnose(self) -> Iterator[Check]:
        """Yield what `tierstore doctor` shall say about this bucket."""
        if not self._objects.checked:
            advice = 'reading back costs time: leave out checksum = "none" if the server can do it'
            yield Check("checksums", "warning", 'turned off by checksum = "none"', advice)
        before = time.time() - _FORGOTTEN
        old = [each for each in islice(self.uploads(), _LOOKED_AT) if each.begun < before]
        if old:
            advice = (
                "they cost money: let the bucket abort incomplete uploads after some days "
                "(a lifecycle rule), or call S3Backend.abort_upload for those of "
                "S3Backend.uploads() begun over a day ago; a younger one may be under way"
            )
            detail = f"{len(old)} were begun over a day ago, the first of {old[0].key!r}"
            yield Check("unfinished uploads", "warning", detail, advice)
        else:
            yield Check("unfinished uploads", "ok", "none over a day old")

    def close(self) -> None:
        """Release connections. Idempotent."""
        self._objects.close()
