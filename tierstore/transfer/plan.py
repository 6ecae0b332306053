"""Which requests fetch the wanted bytes: only blocks that hold some, neighbours in one request.

A block that lies whole inside one destination is received there directly. Any other block is
received in a bounce buffer and its wanted pieces are copied out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from tierstore.blocks import BLOCK_SIZE, block_range, blocks_covering
from tierstore.checkpoint.fragment import FileEntry
from tierstore.errors import FormatError


@dataclass(frozen=True, slots=True)
class Want:
    """Bytes of one file and where they shall go.

    Attributes:
        file: the file's name in the manifest.
        offset: where they start in the file.
        length: bytes.
        into: filled in place; writable, contiguous, `length` bytes. Or:
        sink: called once, from a worker thread, with a view of the verified bytes, whose memory
            is the sink's to keep. Sinks of different wants may run at once.
    """

    file: str
    offset: int
    length: int
    into: memoryview | None = None
    sink: Callable[[memoryview], None] | None = None

    def __post_init__(self) -> None:
        if (self.into is None) == (self.sink is None):
            raise ValueError("a want has either `into` or `sink`")
        into = self.into
        if into is not None and (into.readonly or into.nbytes != self.length):
            kind = "read-only" if into.readonly else "writable"
            raise ValueError(f"`into` has {into.nbytes} {kind} bytes for {self.length} wanted")


class Destination:
    """Where one want's bytes are put together; memory for a sink exists only while it fills."""

    __slots__ = ("_array", "_left", "_lock", "end", "offset", "want")

    def __init__(self, want: Want) -> None:
        self.want = want
        self.offset = want.offset
        self.end = want.offset + want.length
        self._left = want.length
        self._lock = threading.Lock()
        self._array: npt.NDArray[np.uint8] | None = None
        if want.into is not None:
            self._array = np.frombuffer(want.into, np.uint8)

    def array(self) -> npt.NDArray[np.uint8]:
        """The memory that the bytes go to."""
        if self._array is None:
            with self._lock:
                if self._array is None:
                    self._array = np.empty(self.want.length, np.uint8)
        return self._array

    def copy(self, start: int, source: npt.NDArray[np.uint8]) -> None:
        """Take what is wanted of verified bytes that start at `start` in the file."""
        low, high = max(start, self.offset), min(start + len(source), self.end)
        np.copyto(  # releases the GIL
            self.array()[low - self.offset : high - self.offset],
            source[low - start : high - start],
        )
        self.filled(high - low)

    def filled(self, length: int) -> None:
        """Count verified bytes that have arrived; the last ones call the sink."""
        if self.want.sink is None:
            return
        with self._lock:
            self._left -= length
            complete = not self._left
        if complete:
            array, self._array = self.array(), None
            self.want.sink(array.data)


@dataclass(frozen=True, slots=True)
class Request:
    """Neighbouring blocks of one file to be read at once.

    Attributes:
        file: the file.
        first: index of the first block.
        count: how many blocks.
        direct: the one destination that all of them lie in, or None for a bounce buffer.
        pieces: for each block the destinations that want something of it.
    """

    file: FileEntry
    first: int
    count: int
    direct: Destination | None
    pieces: Sequence[Sequence[Destination]]

    @property
    def offset(self) -> int:
        """Where the blocks start in the file."""
        return self.first * BLOCK_SIZE

    @property
    def length(self) -> int:
        """Bytes of all the blocks."""
        return min(self.count * BLOCK_SIZE, self.file.size - self.offset)

    def block(self, index: int) -> Request:
        """Return one of the blocks, counted from the first, as a request of its own."""
        pieces = self.pieces[index : index + 1]
        return Request(self.file, self.first + index, 1, self.direct, pieces)


def plan_requests(
    wants: Iterable[Want], files: Mapping[str, FileEntry], read_size: int
) -> Iterator[Request]:
    """Yield the requests, file by file and in order of offset.

    Args:
        wants: what to read, in any order; they may overlap.
        files: the files they name.
        read_size: bytes of the largest request; at least one block.

    Raises:
        FormatError: a want names an unknown file or reaches beyond the file's end.
    """
    by_file: dict[str, list[Destination]] = {}
    for want in wants:
        if want.length:
            by_file.setdefault(want.file, []).append(Destination(want))
        elif want.sink is not None:
            want.sink(memoryview(b""))
    most = max(1, read_size // BLOCK_SIZE)
    for name in sorted(by_file):
        if name not in files:
            raise FormatError(f"{name}: the manifest does not have this file")
        destinations = sorted(by_file[name], key=attrgetter("offset"))
        yield from _plan_file(files[name], destinations, most)


def _plan_file(
    file: FileEntry, destinations: Sequence[Destination], most: int
) -> Iterator[Request]:
    blocks: dict[int, list[Destination]] = {}
    for destination in destinations:
        if destination.offset < 0 or destination.end > file.size:
            raise FormatError(
                f"{file.name}: bytes {destination.offset} to {destination.end} are wanted "
                f"of a file of {file.size} bytes"
            )
        for block in blocks_covering(destination.offset, destination.want.length):
            blocks.setdefault(block, []).append(destination)
    run: list[list[Destination]] = []
    first, direct = 0, None
    for block in sorted(blocks):
        whole = _whole(file, block, blocks[block])
        if run and (block != first + len(run) or whole is not direct or len(run) == most):
            yield Request(file, first, len(run), direct, run)
            run = []
        if not run:
            first, direct = block, whole
        run.append(blocks[block])
    if run:
        yield Request(file, first, len(run), direct, run)


def _whole(file: FileEntry, block: int, pieces: Sequence[Destination]) -> Destination | None:
    """Return the only destination of a block, if the whole block lies inside it."""
    offset, length = block_range(block, file.size)
    only = pieces[0]
    inside = only.offset <= offset and offset + length <= only.end
    return only if inside and len(pieces) == 1 else None
