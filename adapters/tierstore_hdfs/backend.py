"""A folder of HDFS as a backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tierstore.backend import Capabilities, Check, ObjectInfo, check_whole
from tierstore.blocks import Buffer
from tierstore.errors import TruncatedFileError
from tierstore.registry import declares
from tierstore.scan import Found, Ways
from tierstore.uploads import EmptyUpload, OpenUpload
from tierstore_hdfs.diagnosis import diagnose
from tierstore_hdfs.errors import naming
from tierstore_hdfs.files import Files
from tierstore_hdfs.listing import listing, scanning
from tierstore_hdfs.multipart import PartsUpload
from tierstore_hdfs.options import SMALL, HdfsOptions
from tierstore_hdfs.uploads import Uploads


@declares(HdfsOptions)
def open_hdfs(url: str, options: HdfsOptions | None = None) -> HdfsBackend:
    """Open `hdfs://namenode:9870/path`, or `hdfs://nn1:9870,nn2:9870/path`; nothing is sent yet.

    Raises:
        ConfigError: the URL or an option is wrong.
    """
    return HdfsBackend(url, options or HdfsOptions())


class HdfsBackend:
    """Objects below a folder of HDFS. See `tierstore.backend.Backend` for each method.

    The protocol is WebHDFS (Apache Hadoop 3.4, "WebHDFS REST API"). A missing folder is made by
    the first write and is empty until then.
    """

    def __init__(self, url: str, options: HdfsOptions) -> None:
        self._files = Files(url, options)
        self._capabilities = Capabilities(
            atomic_create=True,
            parallel_parts=True,
            resumable_upload=True,
            # It checks no CRC32C of ours, and acknowledges bytes that no disk has yet.
            server_checksum=False,
            needs_read_back=True,
            durable_on_commit=False,
            seen_by="all",
            part_size=options.part_size,
            read_size=options.read_size,
            concurrency=options.concurrency,
            small_concurrency=SMALL * options.concurrency,
        )
        self._uploads = Uploads(self._files, self._capabilities)

    def __repr__(self) -> str:
        return f"HdfsBackend({self.url!r})"

    @property
    def url(self) -> str:
        """The root, without credentials."""
        return self._files.url

    @property
    def capabilities(self) -> Capabilities:
        """What HDFS can do."""
        return self._capabilities

    def stat(self, key: str) -> ObjectInfo:
        """Return size and mtime."""
        return self._files.stat(key)

    def list(
        self, prefix: str, *, after: str | None = None, delimiter: bool = False
    ) -> Iterator[ObjectInfo]:
        """Yield objects in the order of their UTF-8 bytes; a page of a folder is one request."""
        return listing(self._files, prefix, after or "", delimiter=delimiter)

    def read_into(self, key: str, offset: int, *buffers: memoryview) -> None:
        """Receive a range from a datanode straight into the buffers."""
        path = self._files.paths.of(key)
        if any(buffer.nbytes for buffer in buffers):
            with naming(self.url, key):
                self._files.read(path, offset, *buffers)
        elif self.stat(key).size < offset:
            raise TruncatedFileError(f"{self.url}/{key}: it ends before byte {offset}")

    def fetch(self, key: str, buffer: memoryview) -> ObjectInfo:
        """Receive a whole file, and then its status: a datanode does not tell it."""
        if buffer.nbytes:
            self.read_into(key, 0, buffer)
        return check_whole(self.url, self.stat(key), buffer)

    def create(
        self,
        key: str,
        buffer: Buffer,
        *,
        if_absent: bool = False,
        durable: bool = True,  # noqa: ARG002 - there is one way
    ) -> ObjectInfo:
        """Write a hidden file and rename it; with `if_absent` the rename refuses a target."""
        return self._files.create(key, buffer, if_absent=if_absent)

    def scan(self, ways: Ways, *, after: str | None = None) -> Iterator[Found]:
        """See `tierstore.scan.scan`."""
        return scanning(self._files, ways, after or "")

    def check_key(self, key: str) -> None:
        """Raise InvalidKeyError of a key that cannot be a file here."""
        self._files.paths.of(key)

    def flush(self) -> None:
        """Do nothing: nothing was put off."""

    def upload(
        self, key: str, size: int | None = None, *, resume: str | None = None
    ) -> PartsUpload | EmptyUpload:
        """Begin an upload in parts, or go on with the one whose token is given.

        An object whose size is not given has 10,000 times the option `part_size` at most (128 MiB
        by default, so 1.2 TiB), and its writer holds as much in memory for a part.

        Raises:
            NotFoundError: the upload to resume was committed or aborted.
            StorageError: the token is of another upload.
        """
        self._files.paths.of(key)
        if size == 0:
            return EmptyUpload(self.url, key, self._files.create)
        return self._uploads.resume(key, size, resume) if resume else self._uploads.begin(key, size)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, and the folders that are empty then."""
        folders: set[str] = set()
        for key in keys:
            self._files.remove_key(key)
            folders.add(key.rpartition("/")[0])
        self._files.prune(folders)

    def uploads(self, prefix: str = "") -> Iterator[OpenUpload]:
        """Yield what killed writers left below `prefix`: hidden folders of parts, hidden files."""
        return self._uploads.list(prefix)

    def abort_upload(self, upload: OpenUpload) -> None:
        """Remove what an open upload holds. Idempotent."""
        self._uploads.abort(upload)

    def abort_uploads(self, key: str) -> None:
        """Free every open upload of one key; see `tierstore.backend.abort_uploads`."""
        self._uploads.abort_all(key)

    def diagnose(self) -> Iterator[Check]:
        """Yield what `tierstore doctor` shall say about this HDFS. It looks at every folder."""
        return diagnose(self._files, self._uploads)

    def close(self) -> None:
        """Release connections. Idempotent."""
        self._files.close()
