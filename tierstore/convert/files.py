"""The files of a conversion, each put together from pieces while it is written.

Every conversion is this. An import writes segments whose tensors lie in foreign files; an export
writes foreign files whose tensors lie in segments. Only the part that is being sent is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic

from tierstore.backend import Backend
from tierstore.transfer.part import Crcs
from tierstore.transfer.pieces import Fill, PiecedSource, T, sizes_of
from tierstore.transfer.source import AlignedBuffers
from tierstore.transfer.write import FileWrite, write_files

MEMORY = 128 * 1024**2
"""Bytes of all parts that are in memory at a time, unless one part alone is larger."""


@dataclass(frozen=True, slots=True, eq=False)
class FilePlan(Generic[T]):
    """One file to write: its name below the target, and what it consists of."""

    name: str
    pieces: Sequence[bytes | T]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(sizes_of(self.pieces))


def write_plans(
    backend: Backend,
    plans: Sequence[FilePlan[T]],
    fill: Fill[T],
    *,
    crcs: Sequence[Crcs | None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Write files, reading each part right before it is sent; see `write_files`.

    Args:
        backend: where to.
        plans: the files; their names are keys.
        fill: gets at the tensors' bytes.
        crcs: for each file the CRC32C of its blocks, where they are known.
        progress: told the bytes of every part that was sent, from several threads.

    Returns:
        The CRC32C of every block, for each file.
    """
    capabilities = backend.capabilities
    width = capabilities.concurrency
    largest = max((capabilities.part_size_for(plan.size) for plan in plans), default=1)
    buffers = AlignedBuffers(capabilities.part_size, max(1, min(width, MEMORY // largest)))
    known = crcs or [None] * len(plans)
    writes = [
        FileWrite(plan.name, plan.size, PiecedSource(plan.pieces, buffers, fill), crc)
        for plan, crc in zip(plans, known, strict=True)
    ]
    with ThreadPoolExecutor(width, thread_name_prefix="tierstore-convert") as pool:
        return write_files(backend, writes, pool=pool, progress=progress)
