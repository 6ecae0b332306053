"""The protocol of one kind of storage, small and synchronous.

A backend stores objects under keys below one root URL. Buffers belong to the caller: a backend
neither keeps nor copies them. Every method may be called from several threads. Policy (retries,
limits, metrics) is in `tierstore.wrappers`, each of which is a backend around a backend.

How a caller uses one::

    info = backend.create("runs/r/commits/1.json", b"{}", if_absent=True)   # small, atomic
    upload = backend.upload("runs/r/data/x", size)      # large, in parts; size None: not known yet
    upload.write(0, part, crc32c(part))                                     # any order if
    upload.write(len(part), rest, crc32c(rest))                             #   parallel_parts
    info = upload.commit(if_absent=True, crc32c=whole)                      # visible only now
    backend.read_into("runs/r/data/x", 4096, buffer)                        # exactly len(buffer)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from tierstore.blocks import BLOCK_SIZE, Buffer
from tierstore.errors import TruncatedFileError


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do. Each default is the weakest backend's.

    Attributes:
        atomic_create: `if_absent=True` has exactly one winner, also between hosts.
        clean_create: a `create` that is cut off by a kill leaves nothing behind for good.
        parallel_parts: `Upload.write` may be called from several threads and in any order.
        resumable_upload: `Upload.token` can be given to a later `upload(resume=...)`.
        server_checksum: the store itself refuses bytes whose CRC32C is not the given one.
        needs_read_back: the store neither checks nor vouches for what it was sent, so whoever
            writes reads it back.
        durable_on_commit: when `commit` or `create` returns, a crash of the host loses nothing. A
            folder does not ask its file system, which may be down: tmpfs loses all in any case.
        min_part: bytes the smallest part but the last may have.
        max_part: bytes the largest part may have.
        max_parts: how many parts one upload may have.
        part_size: bytes of a write request that serve this store well; whole blocks.
        read_size: bytes of a read request that serve this store well; whole blocks.
        concurrency: requests in flight that serve this store well.
        small_concurrency: the same of requests of a few KiB, which wait more than they move; 0
            where it is the same.
        keeps_alignment: reads and writes are fastest from memory aligned to 4096 bytes.
        seen_by: who is sure to find the same objects under the same URL: this process, all of one
            host, or all hosts. More may; a ladder finds that out by a probe of every process, or
            host, which "all" spares it.
        flushes: many objects that are created with `durable=False` and flushed together cost far
            less than each by itself.
    """

    atomic_create: bool = False
    clean_create: bool = False
    parallel_parts: bool = False
    resumable_upload: bool = False
    server_checksum: bool = False
    needs_read_back: bool = True
    durable_on_commit: bool = False
    min_part: int = 1
    max_part: int = 5 * 1024**3
    max_parts: int = 10_000
    part_size: int = 4 * BLOCK_SIZE
    read_size: int = BLOCK_SIZE
    concurrency: int = 4
    small_concurrency: int = 0
    keeps_alignment: bool = False
    flushes: bool = False
    seen_by: Literal["process", "host", "all"] = "process"

    def part_size_for(self, size: int | None) -> int:
        """Return the bytes of every part but the last of an upload of `size` bytes.

        It is `part_size`, or for a very large file the fewest whole blocks that keep the upload
        within `max_parts`. Where the size is not known (None) it is `part_size`, so the largest
        such object has `part_size * max_parts` bytes. Writer and backend both number parts by it.
        """
        fewest = -(-(size or 0) // self.max_parts)
        return max(self.part_size, -(-fewest // BLOCK_SIZE) * BLOCK_SIZE)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object, or with `delimiter=True` a common prefix (its key ends in "/").

    Attributes:
        key: the key below the root.
        size: bytes; 0 for a common prefix.
        mtime: seconds since 1970 by the store's own clock; 0.0 where there is none.
        crc32c: of the whole object, if the store knows it.
        tag: what the store changes with the content, such as S3's ETag, or the times to the
            nanosecond and the inode of a file; empty where it has none.
    """

    key: str
    size: int
    mtime: float
    crc32c: int | None = None
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding of a diagnosis.

    Attributes:
        name: what was looked at, such as "O_DIRECT".
        outcome: "ok"; "warning" works but slowly or with less safety; "failed".
        detail: what was found.
        advice: what to do about it; empty when "ok".
    """

    name: str
    outcome: Literal["ok", "warning", "failed"]
    detail: str
    advice: str = ""


@runtime_checkable
class Upload(Protocol):
    """One object being written in parts. Nothing is visible before `commit`."""

    @property
    def token(self) -> str:
        """What a later process gives to `Backend.upload(resume=...)`; empty if it cannot.

        As it cannot where the size was not given: nobody can say what is still missing.
        """
        ...

    @property
    def done(self) -> list[tuple[int, int]]:
        """(offset, length) of the parts the store already holds, in order of offset."""
        ...

    def write(self, offset: int, buffer: Buffer, crc32c: int) -> None:
        """Store one part. Writing the same part again replaces it.

        Args:
            offset: where the part starts; a multiple of the part size in use.
            buffer: the bytes; the caller keeps them unchanged until the call returns.
            crc32c: of `buffer`; the store checks it where it can.
        """
        ...

    def read_back(self, offset: int, buffer: memoryview) -> bool:
        """Fill the buffer with what the store holds of a part that was written.

        Returns:
            False where that cannot be read before the commit; the buffer is left alone.
        """
        ...

    def commit(self, *, if_absent: bool = False, crc32c: int | None = None) -> ObjectInfo:
        """Make the object visible, whole and durable.

        Raises:
            AlreadyExistsError: `if_absent` and the key exists with other size or CRC32C.
            TruncatedFileError: parts are missing.
            DamagedInTransitError: the whole does not have the given CRC32C.
        """
        ...

    def abort(self) -> None:
        """Forget the upload and free what it holds on the store. Idempotent."""
        ...


@runtime_checkable
class Backend(Protocol):
    """One kind of storage at one root URL."""

    @property
    def url(self) -> str:
        """The root, without credentials."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this backend can do; constant for its life."""
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Return what the store knows of one object.

        Raises:
            NotFoundError: there is none.
        """
        ...

    def list(
        self, prefix: str, *, after: str | None = None, delimiter: bool = False
    ) -> Iterator[ObjectInfo]:
        """Yield objects whose key starts with `prefix`, lazily, in the order of their UTF-8 bytes.

        Args:
            prefix: any string; not only whole folders.
            after: yield only keys that sort after this one.
            delimiter: stop at the next "/" and yield each common prefix once.
        """
        ...

    def read_into(self, key: str, offset: int, *buffers: memoryview) -> None:
        """Fill the buffers exactly, one behind the other, with the bytes from `offset`.

        One request, however many buffers: a range can be scattered over memory without a copy.

        Raises:
            NotFoundError: there is no such object.
            TruncatedFileError: the object ends before the buffers are full.
        """
        ...

    def fetch(self, key: str, buffer: memoryview) -> ObjectInfo:
        """Fill the buffer with a whole small object; return what the store knows of that very one.

        Raises:
            NotFoundError: there is no such object.
            TruncatedFileError: the object is not as long as the buffer.
        """
        ...

    def create(
        self, key: str, buffer: Buffer, *, if_absent: bool = False, durable: bool = True
    ) -> ObjectInfo:
        """Write a whole small object at once, atomically and durably.

        Args:
            key: of the object.
            buffer: its bytes.
            if_absent: only if there is none.
            durable: False where a crash of the host may lose it until `flush` has returned.

        Raises:
            AlreadyExistsError: `if_absent` and the key exists with other content. An object that
                already holds exactly `buffer` counts as created, so a request may be repeated
                when its answer was lost.
        """
        ...

    def flush(self) -> None:
        """Make all objects durable that were created so far with `durable=False`."""
        ...

    def upload(self, key: str, size: int | None = None, *, resume: str | None = None) -> Upload:
        """Begin, or with a token resume, an object of `size` bytes.

        Args:
            key: of the object.
            size: its bytes. None where the writer does not know them yet: every part but the last
                then has `capabilities.part_size_for(None)` bytes, the object ends with the part
                that is furthest behind, and there is no token. Only the CRC32C that `commit` is
                given tells of a last part that was never written.
            resume: the token of the upload to go on with.
        """
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; a missing one is no error."""
        ...

    def close(self) -> None:
        """Release connections, threads and file descriptors. Idempotent."""
        ...


def check_whole(url: str, info: ObjectInfo, buffer: memoryview) -> ObjectInfo:
    """Return `info` of an object that fills the buffer exactly, as every `Backend.fetch` has to.

    Raises:
        TruncatedFileError: it is longer or shorter.
    """
    if info.size != buffer.nbytes:
        raise TruncatedFileError(
            f"{url}/{info.key}: has {info.size} bytes, {buffer.nbytes} are wanted"
        )
    return info


# What only some backends have. Each is a protocol with a function beside it, which asks for it and
# knows what is so of a backend without; wrappers have all of them and ask their own backend.


@runtime_checkable
class AbortsUploads(Protocol):
    """A backend on which unfinished uploads stay when their writer is killed."""

    def abort_uploads(self, key: str) -> None:
        """Free every unfinished upload of one key, and what `create` has left."""
        ...


@runtime_checkable
class Diagnoses(Protocol):
    """A backend that knows more about itself than the protocol shows."""

    def diagnose(self) -> Iterator[Check]:
        """Yield what `tierstore doctor` shall add to its own findings."""
        ...


@runtime_checkable
class KeepsFiles(Protocol):
    """A backend that keeps an object as a file on this machine."""

    def local_path(self, key: str) -> str | None:
        """Return where the file of `key` is or would be; None if it is none after all."""
        ...


@runtime_checkable
class Adopts(Protocol):
    """A backend that can take a file that is there already, without a copy of its bytes."""

    def adopt(self, key: str, path: str, size: int) -> ObjectInfo | None:
        """Make a whole file an object; see `adopt`."""
        ...


def adopt(backend: Backend, key: str, path: str, size: int) -> ObjectInfo | None:
    """Make a whole file of this machine an object, without a copy of its bytes.

    Args:
        backend: the tier.
        key: of the object, which is not there yet.
        path: the file, of this user; nobody writes into it any more.
        size: bytes that it has.

    Returns:
        None where that cannot be: write the bytes instead.
    """
    return backend.adopt(key, path, size) if isinstance(backend, Adopts) else None


def abort_uploads(backend: Backend, key: str) -> None:
    """Free every unfinished upload of one key, and what `create` has left, whoever began it.

    For whoever was killed between beginning an upload and noting its token.
    """
    if isinstance(backend, AbortsUploads):
        backend.abort_uploads(key)


def diagnose(backend: Backend) -> Iterator[Check]:
    """Yield what a backend finds out about itself; nothing where it has nothing to say."""
    return backend.diagnose() if isinstance(backend, Diagnoses) else iter(())


def local_path(backend: Backend, key: str) -> str | None:
    """Return the path of an object's file, or None where the backend keeps none here.

    Raises:
        InvalidKeyError: no file can have this name.
    """
    return backend.local_path(key) if isinstance(backend, KeepsFiles) else None
