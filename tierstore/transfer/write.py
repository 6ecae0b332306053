"""Write files to a tier: in parts, with several threads, checked on the way.

How a part is moved says `tierstore.transfer.part`. The parts of all files go through one queue, so
the speed does not depend on the number of files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field

from tierstore.backend import Backend, Upload
from tierstore.blocks import BLOCK_SIZE, block_count, combine_blocks, parts
from tierstore.errors import CheckpointError, IntegrityError, TierstoreError
from tierstore.transfer.part import Crcs, Wrong, move, reads_back, wrong_at
from tierstore.transfer.source import AlignedBuffers, BlockSource
from tierstore.transfer.threads import run_all


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class FileWrite:
    """One file to write.

    Attributes:
        key: where to.
        size: bytes.
        source: the bytes.
        crcs: the CRC32C of every block if they are known; the source is then held against them.
    """

    key: str
    size: int
    source: BlockSource
    crcs: Crcs | None = None


def write_files(
    backend: Backend,
    files: Sequence[FileWrite],
    *,
    pool: Executor,
    cancelled: Callable[[], bool] = _never,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Write files and make each visible once it is whole, checked and durable.

    Where the store needs it, the files are read back once all are there.
    On any failure the unfinished uploads are aborted.

    Args:
        backend: the tier.
        files: what to write; keys differ.
        pool: threads; `capabilities.concurrency` of them are used at most.
        cancelled: asked before every part; True ends the transfer with CheckpointError.
        progress: told the bytes of every part that was sent, from several threads.

    Returns:
        The CRC32C of every block, for each file in the order given.

    Raises:
        IntegrityError: the source, or what was read back, is not what `crcs` says.
        StorageError: the tier refused.
    """
    job = _Job(backend, [_File(backend, file) for file in files], cancelled, progress)
    width = backend.capabilities.concurrency
    try:
        run_all(job.tasks(), job.send, pool=pool, width=width)
        if reads_back(backend.capabilities, verify=False):
            job.check_stored(pool, width)
    except BaseException:
        job.abort()
        raise
    return [file.crcs for file in job.files]


@dataclass(slots=True)
class _File:
    """A file on its way: opened by whoever sends its first part, committed after its last."""

    backend: Backend
    plan: FileWrite
    crcs: list[int] = field(init=False)
    upload: Upload | None = None
    finished: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.crcs = [0] * block_count(self.plan.size)
        self.left = self.plan.size

    def parts(self) -> list[tuple[int, int]]:
        return list(parts(self.plan.size, self.backend.capabilities.part_size_for(self.plan.size)))

    def send(self, offset: int, length: int) -> None:
        moved = move(
            self._open(),
            self.plan.source,
            offset,
            length,
            known=self.plan.crcs,
            blame=lambda wrong: self._bad(wrong, "the source"),
        )
        first = offset // BLOCK_SIZE
        self.crcs[first : first + len(moved.crcs)] = moved.crcs
        with self.lock:
            self.left -= length
            last = not self.left
        if last:
            self.finish()

    def finish(self) -> None:
        """Make the file visible."""
        self._open().commit(crc32c=combine_blocks(self.crcs, self.plan.size))
        self.finished = True

    def check(self, offset: int, back: memoryview) -> None:
        """Hold what the store has of a block against what was sent."""
        for wrong in wrong_at(self.backend, self.plan.key, offset, back, self.crcs):
            raise self._bad(wrong, self.backend.url)

    def _open(self) -> Upload:
        with self.lock:  # one thread opens, the others wait for it
            if self.upload is None:
                self.upload = self.backend.upload(self.plan.key, self.plan.size)
            return self.upload

    def _bad(self, wrong: Wrong, where: str) -> IntegrityError:
        return IntegrityError(
            f"{self.plan.key}: block {wrong.block} has CRC32C {wrong.found:08x} in {where} "
            f"instead of {wrong.expected:08x}",
            hint="nothing was passed on; run `tierstore verify` on the tiers above",
        )


@dataclass(slots=True)
class _Job:
    backend: Backend
    files: list[_File]
    cancelled: Callable[[], bool]
    progress: Callable[[int], None] | None

    def tasks(self) -> Iterator[tuple[_File, list[tuple[int, int]]]]:
        """Yield what one thread does at once: a part, or a whole file where parts have an order."""
        for file in self.files:
            ranges = file.parts()
            if self.backend.capabilities.parallel_parts and ranges:
                yield from ((file, [part]) for part in ranges)
            else:
                yield file, ranges

    def send(self, task: tuple[_File, list[tuple[int, int]]]) -> None:
        file, ranges = task
        for offset, length in ranges:
            if self.cancelled():
                raise CheckpointError(f"{file.plan.key}: the transfer was stopped before its end")
            file.send(offset, length)
            if self.progress is not None:
                self.progress(length)
        if not ranges:
            file.finish()

    def check_stored(self, pool: Executor, width: int) -> None:
        buffers = AlignedBuffers(BLOCK_SIZE, width)

        def check(task: tuple[_File, int, int]) -> None:
            file, offset, length = task
            with buffers.take(length) as back:
                file.check(offset, back)

        run_all(
            (
                (file, offset, length)
                for file in self.files
                for offset, length in parts(file.plan.size, BLOCK_SIZE)
            ),
            check,
            pool=pool,
            width=width,
        )

    def abort(self) -> None:
        for file in self.files:
            if file.upload is not None and not file.finished:
                with suppress(TierstoreError):  # the first error is the one to report
                    file.upload.abort()
