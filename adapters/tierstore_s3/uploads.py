"""The multipart uploads of a tier: begun, resumed, found and aborted."""

from __future__ import annotations

from collections.abc import Iterator

from tierstore.backend import Capabilities
from tierstore.errors import DeadlineError, StorageError, UnreachableError
from tierstore.uploads import OpenUpload, PartSizes, ResumeToken
from tierstore_s3.multipart import MOST_PARTS, PartsUpload, abort_upload
from tierstore_s3.objects import Objects
from tierstore_s3.options import S3Options
from tierstore_s3.xml import NO_S3

_BARREN_PAGES = 100


class Uploads:
    """The multipart uploads of one tier: begins, resumes, finds and aborts them."""

    def __init__(self, objects: Objects, options: S3Options, capabilities: Capabilities) -> None:
        self._objects = objects
        self._options = options
        self._capabilities = capabilities
        self._unclear: set[str] = set()

    def begin(self, key: str, size: int | None) -> PartsUpload:
        """Begin an upload of `size` bytes, which is not 0, or of a size that is not known yet."""
        upload_id = self._create(key)
        if key in self._unclear:
            # An earlier request may have begun one whose name never reached us.
            self.abort_all(key, but=upload_id)
            self._unclear.discard(key)
        can = self._capabilities
        sizes = PartSizes(size, can.part_size_for(size), can.max_parts)
        resumable = size is not None
        return PartsUpload(self._objects, key, upload_id, sizes, resumable=resumable)

    def resume(self, key: str, size: int | None, token: str) -> PartsUpload:
        """Go on with the upload that `token` names."""
        known = ResumeToken.parse(token, key, size, most=MOST_PARTS)
        sizes = PartSizes(known.size, known.part_size, MOST_PARTS)
        upload = PartsUpload(self._objects, key, known.upload_id, sizes)
        upload.recall()
        return upload

    def list(self, prefix: str) -> Iterator[OpenUpload]:
        """Yield the open uploads below `prefix`.

        MinIO lists uploads only of one exact key or of a whole bucket; so where nothing is found
        under a prefix, the bucket is searched.
        """
        wanted, found = self._objects.prefix + prefix, False
        for upload in self._list(wanted):
            found = True
            yield upload
        if wanted and not found:
            yield from (each for each in self._list("") if each.key.startswith(prefix))

    def abort(self, key: str, upload_id: str) -> None:
        """Free what an upload holds; one that is gone is no error."""
        abort_upload(self._objects, key, upload_id)

    def abort_all(self, key: str, *, but: str = "") -> None:
        """Free every upload of one key `but` that one."""
        for other in list(self._list(self._objects.path(key))):
            if other.key == key and other.upload_id != but:
                self.abort(key, other.upload_id)

    def _create(self, key: str) -> str:
        wanted: dict[str, object] = {
            "StorageClass": self._options.storage_class,
            "ServerSideEncryption": self._options.sse,
            "SSEKMSKeyId": self._options.kms_key,
        }
        if self._objects.checked:
            wanted |= {"ChecksumAlgorithm": "CRC32C", "ChecksumType": "FULL_OBJECT"}
        given = {name: value for name, value in wanted.items() if value}
        try:
            upload_id = self._objects.call("create_multipart_upload", key, **given).get("UploadId")
        except (UnreachableError, DeadlineError):
            self._unclear.add(key)
            raise
        if not upload_id:
            text = "CreateMultipartUpload: the answer names no upload"
            raise StorageError(text, url=self._objects.url, key=key, hint=NO_S3)
        return str(upload_id)

    def _list(self, prefix: str) -> Iterator[OpenUpload]:
        root = self._objects.prefix
        wanted: dict[str, object] = {"Prefix": prefix} if prefix else {}
        seen: set[tuple[str, str]] = set()  # how far pages went that ended within the last key
        barren = 0  # pages without an upload, one behind the other
        while True:
            page = self._objects.call("list_multipart_uploads", None, **wanted)
            try:
                found = [
                    (each["Key"], each["UploadId"], each["Initiated"].timestamp())
                    for each in page.get("Uploads", ())
                ]
                more = page.get("IsTruncated") and (
                    page["NextKeyMarker"],
                    page["NextUploadIdMarker"],
                )
            except (KeyError, AttributeError, ValueError, OverflowError):
                raise self._unreadable() from None
            for key, upload_id, begun in found:
                if key.startswith(root):
                    yield OpenUpload(key[len(root) :], upload_id, begun)
            if not more:
                return
            last = max(seen)[0] if seen else ""
            barren = 0 if found else barren + 1
            if more in seen or more[0] < last or barren > _BARREN_PAGES:
                raise self._unreadable()
            seen = {*seen, more} if more[0] == last else {more}
            wanted["KeyMarker"], wanted["UploadIdMarker"] = more

    def _unreadable(self) -> StorageError:
        text = "ListMultipartUploads: the answer does not say which there are, or goes on for ever"
        return StorageError(text, url=self._objects.url, hint=NO_S3)
