"""Where each tensor chunk of a shard lies: which segment, which byte.

A shard is laid out once per plan and staged many times. The image is its segments one after the
other, each starting on a 4 KiB boundary, so that any of them can be written by direct I/O from
where it lies, and be a file of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from tierstore.blocks import ALIGNMENT
from tierstore.errors import InvalidKeyError, PlanError
from tierstore.image.dtypes import StoredType, stored_type
from tierstore.image.header import (
    MAX_HEADER,
    OPENING,
    entry_text,
    header_bytes,
    padded_size,
    stored_name,
)
from tierstore.keys import segment_name

SEGMENT_BYTES = 512 * 1024**2
"""Bytes a segment file may have, unless one chunk alone is larger."""

MAX_ENTRIES = 50_000
"""Entries a segment may have: opening one with the safetensors library stays under 0.1 s."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor that one rank saves; a whole tensor is the box that covers it.

    Attributes:
        name: the tensor's name.
        dtype: torch's name of its dtype, without "torch.".
        shape: the tensor's global shape.
        offsets: the box's first element in each dimension.
        sizes: the box's length in each dimension.
        path: JSON text of the typed path in the state dict; empty from DCP.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the box."""
        return prod(self.sizes) * stored_type(self.dtype).itemsize

    @property
    def whole(self) -> bool:
        """Whether the box covers the tensor."""
        return self.sizes == self.shape


class Placement(NamedTuple):
    """Where a chunk's bytes are: the segment's index, the byte offset in its file, the length."""

    segment: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One safetensors file of a shard.

    Attributes:
        name: its name in the attempt's folder and in the manifest.
        size: bytes of the file.
        image_offset: where it starts in the image; a multiple of 4096.
        header: its first bytes; their number is a multiple of 4096.
    """

    name: str
    size: int
    image_offset: int
    header: bytes


class FileSpan(NamedTuple):
    """One file of an image.

    Attributes:
        name: the file's.
        size: its bytes.
        offset: where it starts in the image, a multiple of 4096; it ends before the next.
    """

    name: str
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """A shard's segments and the place of each chunk.

    Attributes:
        segments: in the order of the image.
        placements: parallel to the chunks that were planned.
        size: bytes of the image, a multiple of 4096; 0 without chunks.
    """

    segments: tuple[Segment, ...]
    placements: tuple[Placement, ...]
    size: int

    @property
    def spans(self) -> tuple[FileSpan, ...]:
        """The files that an image of it is made of."""
        return tuple(FileSpan(each.name, each.size, each.image_offset) for each in self.segments)

    def image_offset(self, index: int) -> int:
        """Return where chunk `index` starts in the image."""
        place = self.placements[index]
        return self.segments[place.segment].image_offset + place.offset

    def write_headers(self, image: memoryview) -> None:
        """Write every segment's header; no other byte of the image is touched."""
        for segment in self.segments:
            start = segment.image_offset
            image[start : start + len(segment.header)] = segment.header


def plan_layout(
    chunks: Sequence[Chunk], *, rank: int, segment_bytes: int = SEGMENT_BYTES
) -> ImageLayout:
    """Lay out the chunks that one rank saves.

    Chunks are taken by item size, largest first, then by name and offsets. So each one is aligned
    to its element without gaps, and equal chunks give equal bytes in whatever order they come.

    Args:
        chunks: what the rank saves, in any order.
        rank: it names the segments.
        segment_bytes: the size at which a segment is closed.

    Raises:
        PlanError: a chunk is there twice or does not lie in its tensor, a name is not valid
            Unicode, a dtype cannot be stored, or there are more than 1,000 segments.
    """
    first = {chunk.dtype: chunk.name for chunk in reversed(chunks)}
    types = {dtype: stored_type(dtype, name) for dtype, name in first.items()}
    order = sorted(
        range(len(chunks)),
        key=lambda i: (-types[(c := chunks[i]).dtype].itemsize, c.name, c.offsets),
    )
    builder = _Builder(rank, segment_bytes, len(chunks))
    for index in order:
        chunk = chunks[index]
        builder.add(index, chunk, types[chunk.dtype])
    return builder.finish()


class _Builder:
    """Fills one segment after the other."""

    def __init__(self, rank: int, segment_bytes: int, count: int) -> None:
        self._rank = rank
        self._segment_bytes = segment_bytes
        self._names: set[str] = set()
        self._segments: list[Segment] = []
        self._placements: list[Placement] = [Placement(0, 0, 0)] * count
        self._image_size = 0
        self._open()

    def _open(self) -> None:
        self._entries: list[str] = []
        self._members: list[tuple[int, int, int]] = []  # chunk index, data offset, bytes
        self._text_size = len(OPENING) + 1
        self._data_size = 0

    def add(self, index: int, chunk: Chunk, stored: StoredType) -> None:
        """Place one chunk, in a new segment if this one has no room for it."""
        name = self._stored_name(chunk)
        shape = stored.shape(chunk.sizes)
        nbytes = prod(chunk.sizes) * stored.itemsize
        text, size = self._entry(name, stored.tag, shape, nbytes)
        if self._entries and not self._fits(size, nbytes):
            self._close()
            text, size = self._entry(name, stored.tag, shape, nbytes)
        if size > MAX_HEADER - len(OPENING) - ALIGNMENT:
            raise PlanError(f"the tensor name {name[:60]!r}... has {len(name)} characters")
        self._entries.append(text)
        self._members.append((index, self._data_size, nbytes))
        self._text_size += size
        self._data_size += nbytes

    def _stored_name(self, chunk: Chunk) -> str:
        whole = chunk.sizes == chunk.shape
        if not whole or any(chunk.offsets):
            _check_box(chunk)
        name = stored_name(chunk.name, chunk.offsets, whole=whole)
        if name in self._names:
            raise PlanError(
                f"tensor {chunk.name!r} has two chunks at offsets {chunk.offsets} on one rank",
                hint="give each tensor of the state dict its own name",
            )
        self._names.add(name)
        return name

    def _entry(self, name: str, tag: str, shape: tuple[int, ...], nbytes: int) -> tuple[str, int]:
        begin = self._data_size
        text = entry_text(name, tag, shape, begin, begin + nbytes)
        if text.isascii():
            return text, len(text)
        try:
            return text, len(text.encode())
        except UnicodeEncodeError:
            raise PlanError(
                f"the tensor name {name!r} is not valid Unicode", hint="rename the tensor"
            ) from None

    def _fits(self, entry_size: int, nbytes: int) -> bool:
        text_size = self._text_size + entry_size
        header_size = padded_size(text_size)
        return (
            header_size <= MAX_HEADER
            and len(self._entries) < MAX_ENTRIES
            and header_size + self._data_size + nbytes <= self._segment_bytes
        )

    def _close(self) -> None:
        header = header_bytes((OPENING + "".join(self._entries) + "}").encode())
        number = len(self._segments)
        try:
            name = segment_name(self._rank, number)
        except InvalidKeyError as error:
            raise PlanError(str(error), hint="raise segment_bytes") from error
        for index, offset, nbytes in self._members:
            self._placements[index] = Placement(number, len(header) + offset, nbytes)
        size = len(header) + self._data_size
        self._segments.append(Segment(name, size, self._image_size, header))
        self._image_size += -(-size // ALIGNMENT) * ALIGNMENT
        self._open()

    def finish(self) -> ImageLayout:
        """Close the last segment and return everything."""
        if self._entries:
            self._close()
        return ImageLayout(tuple(self._segments), tuple(self._placements), self._image_size)


def _check_box(chunk: Chunk) -> None:
    box = zip(chunk.offsets, chunk.sizes, chunk.shape, strict=False)
    if not len(chunk.shape) == len(chunk.sizes) == len(chunk.offsets) or any(
        offset < 0 or size < 0 or offset + size > length for offset, size, length in box
    ):
        raise PlanError(
            f"the chunk of {chunk.name!r} at {chunk.offsets} with sizes {chunk.sizes} "
            f"does not lie in a tensor of shape {chunk.shape}"
        )
