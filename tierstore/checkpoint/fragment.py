"""A fragment: what one rank wrote of one attempt. All fragments together make the manifest."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tierstore.blocks import Buffer, crc32c
from tierstore.checkpoint.arrow_file import read_table, write_table
from tierstore.checkpoint.columns import (
    Columns,
    Info,
    Ragged,
    Table,
    arrow_array,
    file_rows,
    starts_of,
    value_rows,
)
from tierstore.checkpoint.timeline import Launch
from tierstore.errors import FormatError, IntegrityError
from tierstore.image.layout import Chunk, Placement
from tierstore.keys import Attempt

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A fragment is small and read before anything vouches for it, so it ends in its own CRC32C.
_TRAILER = struct.Struct("<4sI")
_MAGIC = b"TSF1"


@dataclass(frozen=True, slots=True, eq=False)
class FileEntry:
    """One stored file of an attempt.

    Attributes:
        name: below the attempt's folder.
        size: bytes.
        crcs: the CRC32C of each 4 MiB block.
    """

    name: str
    size: int
    crcs: Sequence[int] | NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class ValueEntry:
    """One value that is no tensor.

    Attributes:
        name: its name in the state dict; unique over all ranks.
        path: JSON text of its typed path in the state dict, or "".
        kind: "json" for the tagged encoding of `values`, "opaque" for bytes that may be a pickle.
        data: the encoded value.
    """

    name: str
    path: str
    kind: Literal["json", "opaque"]
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """What one rank wrote of one attempt.

    Attributes:
        attempt: the try it is part of.
        launch: the launch that saves.
        rank: whose fragment it is.
        ranks: every rank whose fragment this tier's commit needs, ascending: the whole world on a
            shared tier, the node's ranks on a node-local one.
        world_size: ranks in the job.
        declared: how many chunks and values all `ranks` together must write; every fragment says
            the same number and the merge checks the sum. -1 where no rank knows it (DCP with
            cached plans): then each rank has checked its own part.
        chunks: the chunks this rank wrote.
        placements: where each chunk is; `segment` is an index into `files`.
        files: the files this rank wrote.
        values: the values this rank wrote.
    """

    attempt: Attempt
    launch: Launch
    rank: int
    ranks: tuple[int, ...]
    world_size: int
    declared: int
    chunks: Sequence[Chunk]
    placements: Sequence[Placement]
    files: Sequence[FileEntry]
    values: Sequence[ValueEntry] = ()

    def __post_init__(self) -> None:
        if len(self.chunks) != len(self.placements):
            raise ValueError(f"{len(self.chunks)} chunks but {len(self.placements)} placements")
        if self.rank not in self.ranks:
            raise ValueError(f"rank {self.rank} is not among the ranks {self.ranks}")
        if any(a >= b for a, b in zip(self.ranks, self.ranks[1:], strict=False)):
            raise ValueError("ranks are not ascending")
        for chunk in self.chunks:
            if not len(chunk.shape) == len(chunk.offsets) == len(chunk.sizes):
                raise ValueError(f"tensor {chunk.name!r}: the chunk's box is not of its shape")

    @classmethod
    def of(cls, table: Table) -> Fragment:
        """Return the fragment that a table is of, whose numbers have been checked.

        Its chunks are in order of name and offset. Raises ValueError for numbers that cannot be.
        """
        info = table.info
        launch = Launch(
            info.attempt.launch, info.nonce, info.parent, info.world_size, info.started, info.format
        )
        chunks, placements = _chunks_of(Columns.of(table.tensors))
        names, sizes, crcs = table.files.flatten()
        rows = Ragged.of(crcs)
        return cls(
            attempt=info.attempt,
            launch=launch,
            rank=info.rank,
            ranks=info.ranks,
            world_size=info.world_size,
            declared=info.declared,
            chunks=chunks,
            placements=placements,
            files=[
                FileEntry(name, size, rows.row(index))
                for index, (name, size) in enumerate(
                    zip(names.to_pylist(), sizes.to_pylist(), strict=True)
                )
            ],
            values=[ValueEntry(**value) for value in table.values.to_pylist()],
        )

    def to_bytes(self) -> bytearray:
        """Return the fragment as it is stored: an Arrow IPC file, then its CRC32C."""
        info = Info(
            attempt=self.attempt,
            nonce=self.launch.nonce,
            world_size=self.world_size,
            ranks=self.ranks,
            declared=self.declared,
            started=self.launch.started,
            parent=self.launch.parent,
            rank=self.rank,
        )
        files = file_rows(
            [file.name for file in self.files],
            [file.size for file in self.files],
            [file.crcs for file in self.files],
        )
        rows = sorted((value.name, value.path, value.kind, value.data) for value in self.values)
        tensors = _tensor_rows(self.chunks, self.placements)
        return _sealed(Table(info, tensors, files, value_rows(rows)))


def for_all_ranks(buffer: Buffer, name: str = "a fragment") -> bytearray:
    """Return a stored fragment of a node-local tier as one of a tier that all ranks share.

    Nobody knows there how much all ranks wrote together; each node's commit vouched for its own.

    Args:
        buffer: the whole fragment.
        name: its key, for errors.

    Raises:
        IntegrityError: see `read_fragment`.
    """
    table = read_fragment(buffer, name)
    ranks = tuple(range(table.info.world_size))
    return _sealed(table._replace(info=replace(table.info, ranks=ranks, declared=-1)))


def _sealed(table: Table) -> bytearray:
    data = write_table(table, room=_TRAILER.size)
    size = len(data) - _TRAILER.size
    _TRAILER.pack_into(data, size, _MAGIC, crc32c(memoryview(data)[:size]))
    return data


def read_fragment(buffer: Buffer, name: str = "a fragment") -> Table:
    """View a stored fragment as a table, having checked its CRC32C.

    Args:
        buffer: the whole fragment; the table keeps it alive.
        name: its key, for errors.

    Raises:
        IntegrityError: its bytes are damaged or cut short.
        NewerFormatError: a newer tierstore wrote it.
        FormatError: it is something else.
    """
    view = memoryview(buffer)
    body = view[: -_TRAILER.size]
    damaged = len(view) < _TRAILER.size
    if not damaged:
        magic, crc = _TRAILER.unpack(view[-_TRAILER.size :])
        damaged = magic != _MAGIC or crc != crc32c(body)
    if damaged:
        raise IntegrityError(
            f"{name} is damaged: its CRC32C does not match its {len(view)} bytes",
            hint="this attempt cannot be committed; restore another step",
        )
    table = read_table(body, name)
    if table.info.rank < 0:
        raise FormatError(f"{name} is of no rank")
    return table


def _tensor_rows(chunks: Sequence[Chunk], placements: Sequence[Placement]) -> Any:
    """The `tensors` of a table: one row per tensor, sorted by name, its chunks by offset."""
    import pyarrow as pa

    pairs = sorted(
        zip(chunks, placements, strict=True),
        key=lambda pair: (*_tensor_key(pair[0]), pair[0].offsets, pair[0].sizes, pair[1].segment),
    )
    keys, counts = [], []
    for key, group in groupby(pairs, key=lambda pair: _tensor_key(pair[0])):
        keys.append(key)
        counts.append(sum(1 for _ in group))
    names, dtypes, shapes, paths = zip(*keys, strict=True) if keys else ((), (), (), ())
    ndim = _ints(len(shape) for shape in shapes)
    per_tensor = ndim * np.asarray(counts, np.int64)
    columns = Columns(
        name=arrow_array(names, pa.large_string()),
        dtype=arrow_array(dtypes, pa.string()),
        path=arrow_array(paths, pa.large_string()),
        shape=Ragged.build(ndim, _ints(n for shape in shapes for n in shape)),
        offsets=Ragged.build(per_tensor, _ints(n for chunk, _ in pairs for n in chunk.offsets)),
        sizes=Ragged.build(per_tensor, _ints(n for chunk, _ in pairs for n in chunk.sizes)),
        chunks=starts_of(counts),
        file=_ints(place.segment for _, place in pairs).astype(np.int32),
        offset=_ints(place.offset for _, place in pairs),
        nbytes=_ints(place.nbytes for _, place in pairs),
    )
    return columns.arrow()


def _chunks_of(columns: Columns) -> tuple[list[Chunk], list[Placement]]:
    """Return the chunks of all tensors, and where they are."""
    texts = (column.to_pylist() for column in (columns.name, columns.dtype, columns.path))
    chunks = []
    for index, (name, dtype, path) in enumerate(zip(*texts, strict=True)):
        shape = tuple(columns.shape.row(index).tolist())
        offsets, sizes = (c.row(index).tolist() for c in (columns.offsets, columns.sizes))
        count = int(columns.chunks[index + 1] - columns.chunks[index])
        for at in range(0, count * len(shape) or count, len(shape) or 1):
            box = slice(at, at + len(shape))
            chunks.append(Chunk(name, dtype, shape, tuple(offsets[box]), tuple(sizes[box]), path))
    places = (column.tolist() for column in (columns.file, columns.offset, columns.nbytes))
    return chunks, list(map(Placement, *places))


def _tensor_key(chunk: Chunk) -> tuple[str, str, tuple[int, ...], str]:
    return chunk.name, chunk.dtype, chunk.shape, chunk.path


def _ints(numbers: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(numbers, np.int64)
