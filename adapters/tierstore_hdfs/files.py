"""Whole files below a folder of HDFS, with every error named in this project's words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from urllib.parse import urlsplit

from tierstore.backend import ObjectInfo
from tierstore.blocks import BLOCK_SIZE, Buffer, crc32c
from tierstore.errors import (
    AlreadyExistsError,
    NotFoundError,
    StorageError,
    TransientError,
)
from tierstore.registry import parse_url
from tierstore_hdfs.answers import FileStatus, at, file_status
from tierstore_hdfs.client import HdfsClient
from tierstore_hdfs.datanodes import address_of, somewhere
from tierstore_hdfs.errors import naming
from tierstore_hdfs.options import HdfsOptions
from tierstore_hdfs.paths import Paths


class Files:
    """The files below `hdfs://namenode:9870/path`.

    Attributes:
        url: the root, without credentials.
        paths: where keys lie.
        client: the namenodes and datanodes.
        options: of the tier.
    """

    def __init__(self, url: str, options: HdfsOptions) -> None:
        address = parse_url(url)
        self.url = address.url
        self.paths = Paths(address.path)
        self.options = options
        self.client = HdfsClient(address.scheme, address.host, options)

    def stat(self, key: str) -> ObjectInfo:
        """Return size and mtime of an object; HDFS knows no CRC32C."""
        with naming(self.url, key):
            return self.info(key, self.status(self.paths.of(key)))

    def info(self, key: str, status: FileStatus) -> ObjectInfo:
        """Return what a status says of an object."""
        if status.kind != "FILE":
            raise NotFoundError("it is a folder")
        return ObjectInfo(key, status.length, status.changed / 1000, tag=tag_of(status))

    def status(self, path: str) -> FileStatus:
        """Return the namenode's FileStatus of a file or folder."""
        op = "GETFILESTATUS"
        return file_status(at(self.client.call("GET", path, op), op, "FileStatus"), op)

    def read(self, path: str, offset: int, *buffers: memoryview) -> None:
        """Fill the buffers; a datanode that fails is left out when another is asked."""
        length = sum(buffer.nbytes for buffer in buffers)

        def place(**excluded: str) -> str:
            return self.client.place("GET", path, "OPEN", offset=offset, length=length, **excluded)

        def move(url: str) -> None:
            self.client.receive(url, buffers)

        def address(url: str) -> str:
            return self._replica(path, offset, url)

        somewhere(place, move, address, (TransientError, NotFoundError))

    def _replica(self, path: str, offset: int, url: str) -> str:
        """Return what `excludedatanodes` wants to be told of a datanode that has a replica."""
        place, op = urlsplit(url), "GET_BLOCK_LOCATIONS"
        # What does not say where the block is, or in other words, is of no use; no more than that.
        with suppress(StorageError, KeyError, TypeError, AttributeError):
            found = self.client.call("GET", path, op, offset=offset, length=1)
            for block in at(found, op, "LocatedBlocks", "locatedBlocks"):
                for node in block["locations"]:
                    ports = node["infoPort"], node.get("infoSecurePort")
                    if place.port in ports and place.hostname in (node["hostName"], node["ipAddr"]):
                        return f"{node['ipAddr']}:{node['xferPort']}"
        return address_of(url)

    def write(
        self,
        fresh: Callable[[], str],
        body: Buffer | Callable[[], Iterable[memoryview]],
        size: int,
        *,
        parents: bool,
    ) -> str:
        """Write a new file and return its path; it is whole, for HDFS keeps one cut short too.

        Args:
            fresh: gives a path, never used before, for each try at another datanode.
            body: the bytes, or what yields them for each try.
            size: how many.
            parents: whether to make the folders.
        """
        query: dict[str, object] = {
            "overwrite": "false",
            "createparent": str(parents).lower(),
            "replication": self.options.replication,
            "blocksize": self.options.block_size,
        }
        given = {name: value for name, value in query.items() if value is not None}
        path = ""

        def place(**excluded: str) -> str:
            nonlocal path
            path = fresh()
            return self.client.place("PUT", path, "CREATE", **given, **excluded)

        def move(url: str) -> None:
            try:
                if callable(body):
                    self.client.stream(url, body(), size)
                else:
                    self.client.send(url, body)
            except Exception:
                with suppress(StorageError):
                    self.remove(path)
                raise

        somewhere(place, move, address_of)
        return path

    def create(self, key: str, buffer: Buffer, *, if_absent: bool) -> ObjectInfo:
        """Write a hidden file and rename it."""
        size, crc = memoryview(buffer).nbytes, crc32c(buffer)
        with naming(self.url, key):
            hidden = self.write(lambda: self.paths.temporary(key), buffer, size, parents=True)
            try:
                return self.publish(hidden, key, size, crc, if_absent=if_absent)
            except Exception:
                with suppress(StorageError):
                    self.remove(hidden)
                raise

    def publish(
        self, path: str, key: str, size: int, crc: int | None, *, if_absent: bool
    ) -> ObjectInfo:
        """Check a hidden file's length and give it its name.

        Raises:
            AlreadyExistsError: `if_absent` and the key exists with other content.
            TransientError: the file is shorter than what was sent.
        """
        status = self.status(path)
        if status.length != size:
            raise TransientError(f"HDFS holds {status.length} of {size} bytes that were sent")
        if self.options.storage_policy:
            policy = self.options.storage_policy
            self.client.call("PUT", path, "SETSTORAGEPOLICY", storagepolicy=policy)
        target = self.paths.of(key)
        how = "NONE" if if_absent else "OVERWRITE"
        try:
            self.client.call("PUT", path, "RENAME", destination=target, renameoptions=how)
        except AlreadyExistsError:
            same = self.winner(key, size, crc)
            with suppress(StorageError):
                self.remove(path)
            return same
        except StorageError as unclear:
            # The answer to an earlier try may be the one that was lost.
            info = None if self.exists(path) else self.same_or_none(key, size, crc)
            if info is None:
                raise unclear from None
            return info
        return ObjectInfo(key, size, status.changed / 1000, crc, tag_of(status))

    def winner(self, key: str, size: int, crc: int | None) -> ObjectInfo:
        """Return the object that made an if-absent rename fail, if it is the very same."""
        try:
            info = self.same(key, size, crc)
        except NotFoundError as error:
            raise TransientError("it existed and is gone") from error
        if info is None:
            raise AlreadyExistsError("exists with other content", url=self.url, key=key)
        return info

    def same_or_none(self, key: str, size: int, crc: int | None) -> ObjectInfo | None:
        """As `same`, but None if there is no object."""
        try:
            return self.same(key, size, crc)
        except NotFoundError:
            return None

    def same(self, key: str, size: int, crc: int | None) -> ObjectInfo | None:
        """Return the object at `key` if it has this size and CRC32C (None: any), else None."""
        path = self.paths.of(key)
        info = self.info(key, self.status(path))
        if info.size != size:
            return None
        held = self.read_crc(path, size)
        return replace(info, crc32c=held) if crc in (None, held) else None

    def read_crc(self, path: str, size: int) -> int:
        """Return the CRC32C of a file of `size` bytes, read block by block."""
        crc = 0
        for view in self.blocks(path, size):
            crc = crc32c(view, crc)
        return crc

    def blocks(self, path: str, size: int) -> Iterable[memoryview]:
        """Yield a file's bytes; each view is overwritten by the next."""
        buffer = memoryview(bytearray(min(size, BLOCK_SIZE)))
        for offset in range(0, size, BLOCK_SIZE):
            view = buffer[: size - offset]
            self.read(path, offset, view)
            yield view

    def exists(self, path: str) -> bool:
        """Return whether there is a file or folder."""
        try:
            self.status(path)
        except NotFoundError:
            return False
        return True

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or folder; a missing one is no error."""
        with suppress(NotFoundError):
            self.client.call("DELETE", path, "DELETE", recursive=str(recursive).lower())

    def remove_key(self, key: str) -> None:
        """Remove an object, never a folder with anything in it."""
        with naming(self.url, key):
            path = self.paths.of(key)
            try:
                self.remove(path)
            except StorageError:
                if self.status(path).kind == "FILE":
                    raise

    def prune(self, folders: Iterable[str]) -> None:
        """Remove folders of these keys' prefixes ("a/b") that are empty, and those above them."""
        for folder in sorted(set(folders), key=len, reverse=True):
            above = folder
            while above:
                path = self.paths.folder(above)
                try:
                    # DELETE would take a file of this name, too.
                    if not self.status(path).is_folder:
                        break
                    self.client.call("DELETE", path, "DELETE", recursive="false")
                except NotFoundError:
                    pass
                except StorageError:  # not empty, or not ours: it may stay
                    break
                above = above.rpartition("/")[0]

    def close(self) -> None:
        """Release connections. Idempotent."""
        self.client.close()


def tag_of(status: FileStatus) -> str:
    """Return what changes with a file: its time can be set, but another file has another id.

    Empty where a gateway does not tell ids.
    """
    return f"{status.changed}-{status.file_id}" if status.file_id else ""
