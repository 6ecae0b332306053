"""Which requests fetch the wanted bytes: only blocks that hold some, neighbours in one request.

A request is scattered: every byte is received where it is wanted, and what nobody wants of a block
(it has to be checked as a whole) in spare memory. Only bytes that several receivers want are
received in spare memory and copied.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from tierstore.blocks import BLOCK_SIZE, blocks_covering, copy
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


class Receiver:
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

    def part(self, start: int, end: int) -> memoryview:
        """The memory of the bytes from `start` to `end` of the file."""
        return self.array().data[start - self.offset : end - self.offset]

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
        receivers: who wants some of the bytes, by offset.
        overlaps: whether several of them want the same bytes.
    """

    file: FileEntry
    first: int
    count: int
    receivers: Sequence[Receiver] = ()
    overlaps: bool = False

    @property
    def offset(self) -> int:
        """Where the blocks start in the file."""
        return self.first * BLOCK_SIZE

    @property
    def length(self) -> int:
        """Bytes of all the blocks."""
        return min(self.count * BLOCK_SIZE, self.file.size - self.offset)

    @property
    def spare(self) -> int:
        """Bytes of spare memory that `scatter` needs."""
        if self.overlaps:
            return self.length
        return self.length - sum(high - low for _, low, high in self._shares())

    def scatter(self, spare: memoryview) -> list[memoryview]:
        """Return where the bytes go, in order: receivers, and spare memory between them."""
        if self.overlaps:
            return [spare]
        parts: list[memoryview] = []
        at, used = self.offset, 0
        for receiver, low, high in self._shares():
            if low > at:
                parts.append(spare[used : used + low - at])
                used += low - at
            parts.append(receiver.part(low, high))
            at = high
        if used < len(spare):
            parts.append(spare[used:])
        return parts

    def deliver(self, spare: memoryview) -> None:
        """Tell the receivers that their bytes have arrived and are verified."""
        for receiver, low, high in self._shares():
            if self.overlaps:
                copy(receiver.part(low, high), spare[low - self.offset : high - self.offset])
            receiver.filled(high - low)

    def block(self, index: int) -> Request:
        """Return one of the blocks, counted from the first, as a request of its own."""
        return Request(self.file, self.first + index, 1)

    def _shares(self) -> Iterator[tuple[Receiver, int, int]]:
        """Yield who wants what: receiver, first byte in the file, the one behind the last."""
        end = self.offset + self.length
        for receiver in self.receivers:
            yield receiver, max(receiver.offset, self.offset), min(receiver.end, end)


def even_size(wanted: int, read_size: int, width: int) -> int:
    """Return bytes of a request, whole blocks and at most `read_size`, so that all workers end
    together.

    Args:
        wanted: bytes of all requests.
        read_size: bytes of the largest request; whole blocks.
        width: workers that make requests of one size, one after the other.
    """
    turns = max(1, -(-wanted // (read_size * width)))
    return min(read_size, BLOCK_SIZE * max(1, -(-wanted // (turns * width * BLOCK_SIZE))))


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
    by_file: dict[str, list[Receiver]] = {}
    for want in wants:
        if want.length:
            by_file.setdefault(want.file, []).append(Receiver(want))
        elif want.sink is not None:
            want.sink(memoryview(b""))
    most = max(1, read_size // BLOCK_SIZE)
    for name in sorted(by_file):
        if name not in files:
            raise FormatError(f"{name}: the manifest does not have this file")
        receivers = sorted(by_file[name], key=attrgetter("offset"))
        yield from _plan_file(files[name], receivers, most)


def _plan_file(file: FileEntry, receivers: Sequence[Receiver], most: int) -> Iterator[Request]:
    blocks: dict[int, list[Receiver]] = {}
    for receiver in receivers:
        if receiver.offset < 0 or receiver.end > file.size:
            raise FormatError(
                f"{file.name}: bytes {receiver.offset} to {receiver.end} are wanted "
                f"of a file of {file.size} bytes"
            )
        for block in blocks_covering(receiver.offset, receiver.want.length):
            blocks.setdefault(block, []).append(receiver)
    first = count = 0
    for block in sorted(blocks):
        if count and (block != first + count or count == most):
            yield _request(file, first, count, blocks)
            count = 0
        if not count:
            first = block
        count += 1
    if count:
        yield _request(file, first, count, blocks)


def _request(
    file: FileEntry, first: int, count: int, blocks: Mapping[int, Sequence[Receiver]]
) -> Request:
    mine = (each for block in range(first, first + count) for each in blocks[block])
    receivers = list(dict.fromkeys(mine))
    overlaps = any(later.offset < each.end for each, later in pairwise(receivers))
    return Request(file, first, count, receivers, overlaps)
