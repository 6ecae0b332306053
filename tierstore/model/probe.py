"""One round of requests on a tier, as a save or a restore makes them, each timed and verified.

What is written are windows of one buffer of random bytes (nothing compresses), and what is read is
held against the CRC32C of the window it has to be: as a restore does, in the time that is measured.
"""

from __future__ import annotations

import mmap
import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from tierstore.backend import Backend, local_path
from tierstore.blocks import ALIGNMENT, BLOCK_SIZE, block_crcs, combine_blocks, crc32c
from tierstore.errors import IntegrityError, TierstoreError
from tierstore.regular import open_regular
from tierstore.transfer.source import AlignedBuffers
from tierstore.transfer.threads import run_all

OPERATIONS = ("put", "get", "range", "first", "list")
LISTED = (1, 8, 32)
"""Keys of the listings that are measured."""
_WINDOWS = 64


@dataclass(frozen=True, slots=True)
class Cell:
    """What one round does: `concurrency` requests of `nbytes` (keys, of a listing) at a time."""

    operation: str
    nbytes: int
    concurrency: int

    @property
    def moved(self) -> int:
        """Bytes that all requests in flight move together."""
        return 0 if self.operation == "list" else self.nbytes * self.concurrency


@dataclass(slots=True)
class Round:
    """What one round took; seconds, from the common start where they are instants.

    Attributes:
        requests: of every request.
        commits: of every put, what made it visible and durable.
        ends: when each request ended.
        cpu: of this process in all.
    """

    requests: list[float] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    cpu: float = 0.0


class Probe:
    """A tier under test. Everything it writes lies below `prefix`.

    Args:
        backend: the tier.
        sizes: of the requests to come, ascending.
        most: requests in flight at most.
    """

    def __init__(self, backend: Backend, sizes: list[int], most: int) -> None:
        self.backend, self.sizes, self.most = backend, sizes, most
        self.prefix = f"bench/{secrets.token_hex(8)}/"
        self.moved = 0
        self._passing: list[str] = []  # keys of puts; written and deleted within a round
        self._numbers = iter(range(1 << 62))
        self._buffers = AlignedBuffers(sizes[-1], most)
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="tierstore-bench")
        self._random = secrets.SystemRandom()

    @cached_property
    def _source(self) -> memoryview:
        """Random bytes on a page boundary; window i begins i pages in."""
        length = self.sizes[-1] + _WINDOWS * ALIGNMENT
        memory = mmap.mmap(-1, length)
        for at in range(0, length, BLOCK_SIZE):
            memory[at : at + BLOCK_SIZE] = os.urandom(min(BLOCK_SIZE, length - at))
        return memoryview(memory)

    def prepare(self) -> None:
        """Write what rounds will read: `most` objects of each size, and prefixes to list."""
        objects = [(size, at) for size in self.sizes for at in range(self.most)]
        names = [f"list/{keys}/{at:06d}" for keys in LISTED for at in range(keys)]

        def write(task: tuple[int, int]) -> None:
            size, at = task
            self._put(f"get/{size}/{at}", size, at)

        def name(key: str) -> None:
            self.backend.create(self.prefix + key, b"x")

        run_all(objects, write, pool=self._pool, width=self.most)
        run_all(names, name, pool=self._pool, width=self.most)
        self.moved += self.most * sum(self.sizes)

    def round(self, cell: Cell, each: int) -> Round:
        """Carry out `each` requests after one another in every one of the cell's threads.

        Raises:
            StorageError: a request failed.
            IntegrityError: other bytes came back than were written.
        """
        names = [next(self._numbers) for _ in range(cell.concurrency * each)]
        keys = [f"put/{name}" for name in names] if cell.operation == "put" else []
        self._passing = [self.prefix + key for key in keys]
        found = Round()
        cpu, begun = time.process_time(), time.perf_counter()

        def work(worker: int) -> None:
            for turn in range(each):
                self._forget_cached(cell, worker)
                started = time.perf_counter()
                commit = self._request(cell, worker, keys[worker * each + turn] if keys else "")
                ended = time.perf_counter()
                found.requests.append(ended - started)  # appending is atomic
                found.commits.append(commit)
                found.ends.append(ended - begun)

        run_all(range(cell.concurrency), work, pool=self._pool, width=cell.concurrency)
        found.cpu = time.process_time() - cpu
        self.moved += cell.moved * each
        if keys:
            self.backend.delete(self._passing)
        return found

    def close(self) -> None:
        """Delete all that was written, and end the threads.

        Raises:
            StorageError: something could not be deleted.
        """
        self._pool.shutdown()
        found = [info.key for info in self.backend.list(self.prefix)]
        self.backend.delete([*found, *self._passing])  # their deletion may have been interrupted

    def _request(self, cell: Cell, worker: int, key: str) -> float:
        """Make one request; return what its commit took."""
        if cell.operation == "put":
            return self._put(key, cell.nbytes, worker)
        if cell.operation == "list":
            found = sum(1 for _ in self.backend.list(f"{self.prefix}list/{cell.nbytes}/"))
            if found != cell.nbytes:
                raise IntegrityError(f"{self.backend.url}: {found} keys of {cell.nbytes} listed")
        elif cell.operation == "get":
            self._read(cell.nbytes, worker, 0, cell.nbytes)
        else:
            whole = self.sizes[-1]
            step = BLOCK_SIZE if cell.nbytes >= BLOCK_SIZE else ALIGNMENT
            offset = self._random.randrange(0, whole - cell.nbytes + 1, step)
            self._read(whole, worker, offset, cell.nbytes)
        return 0.0

    def _put(self, key: str, size: int, window: int) -> float:
        """Write an object as a save writes a file of one part."""
        part = self._window(window)[:size]
        whole = combine_blocks(block_crcs(part), size)
        upload = self.backend.upload(self.prefix + key, size)
        try:
            upload.write(0, part, whole)
            written = time.perf_counter()
            upload.commit(crc32c=whole)
        except BaseException:
            with suppress(TierstoreError):  # the first error is the one to report
                upload.abort()
            raise
        return time.perf_counter() - written

    def _read(self, size: int, at: int, offset: int, length: int) -> None:
        key = f"{self.prefix}get/{size}/{at}"
        wanted = self._window(at)[offset : offset + length]
        with self._buffers.take(length) as buffer:
            self.backend.read_into(key, offset, buffer)
            if crc32c(buffer) != crc32c(wanted):
                raise IntegrityError(
                    f"{self.backend.url}/{key}: bytes {offset} to {offset + length} are not what "
                    "was written",
                    hint="save nothing here before the disks, and what is between, were checked",
                )

    def _window(self, at: int) -> memoryview:
        return self._source[at % _WINDOWS * ALIGNMENT :]

    def _forget_cached(self, cell: Cell, at: int) -> None:
        """Drop from the page cache what is read next: a restore reads it cold."""
        if cell.operation not in ("get", "range", "first"):
            return
        size = cell.nbytes if cell.operation == "get" else self.sizes[-1]
        name = local_path(self.backend, f"{self.prefix}get/{size}/{at}")
        if name is None:
            return
        fd = open_regular(name)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
