"""Read every block of a checkpoint on one tier again and hold it against its CRC32C.

Unlike a restore this does not stop at damage and looks at no other tier: it says what is wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tierstore.blocks import BLOCK_SIZE, block_count, block_range
from tierstore.checkpoint.fragment import FileEntry
from tierstore.errors import IntegrityError, NotFoundError
from tierstore.transfer.part import wrong_at
from tierstore.transfer.read import Damage, Replica
from tierstore.transfer.source import AlignedBuffers
from tierstore.transfer.threads import run_all

__all__ = ["FileCheck", "verify_files"]


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What was found in one file.

    Attributes:
        name: the file's name in the manifest.
        size: bytes it should have.
        damage: the bad blocks in order; empty when the file is good.
    """

    name: str
    size: int
    damage: tuple[Damage, ...]


def verify_files(
    replica: Replica,
    files: Iterable[FileEntry],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[FileCheck]:
    """Yield what was found in each file, in the order given.

    Args:
        replica: the tier's copy.
        files: the manifest's files.
        threads: reads in flight; by default what serves the tier well.
        progress: told the bytes of each block that was read, from several threads.

    Raises:
        StorageError: the tier cannot be read; a missing file is damage, not an error.
    """
    width = threads or replica.backend.capabilities.concurrency
    buffers = AlignedBuffers(BLOCK_SIZE, width)
    with ThreadPoolExecutor(width, thread_name_prefix="tierstore-verify") as pool:
        for file in files:
            check = _Check(replica, file, buffers, progress)
            run_all(check.blocks(), check.block, pool=pool, width=width)
            damage = sorted(check.damage, key=lambda found: found.block)
            yield FileCheck(file.name, file.size, tuple(damage))


class _Check:
    def __init__(
        self,
        replica: Replica,
        file: FileEntry,
        buffers: AlignedBuffers,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.damage: list[Damage] = []
        self._replica = replica
        self._file = file
        self._key = replica.keys.segment(file.name)
        self._buffers = buffers
        self._progress = progress
        self._lock = threading.Lock()

    def blocks(self) -> range:
        """Compare the size and return the blocks to read; none when the file is missing."""
        try:
            size = self._replica.backend.stat(self._key).size
        except NotFoundError as error:
            self._note(0, str(error))
            return range(0)
        if size > self._file.size:  # what a short file misses is noted when it is read
            self._note(block_count(self._file.size), f"{size - self._file.size} bytes too many")
        return range(block_count(self._file.size))

    def block(self, index: int) -> None:
        """Read one block and compare it."""
        offset, length = block_range(index, self._file.size)
        with self._buffers.take(length) as memory:
            try:
                bad = wrong_at(self._replica.backend, self._key, offset, memory, self._file.crcs)
            except (IntegrityError, NotFoundError) as error:
                self._note(index, str(error))
            else:
                for wrong in bad:
                    self._note(index, str(wrong))
        if self._progress is not None:
            self._progress(length)

    def _note(self, block: int, outcome: str) -> None:
        with self._lock:
            self.damage.append(Damage(self._replica.tier, self._key, block, outcome))
