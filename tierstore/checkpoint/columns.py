"""The one Arrow schema of fragments and manifests, and its columns as numpy arrays.

Both are one row: `info` (one struct), and three lists: `tensors` (sorted by name), `files` and
`values`. All integers of a list lie side by side, whatever their tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tierstore.blocks import Buffer
from tierstore.checkpoint.commit import FORMAT
from tierstore.image.header import MAX_DIMS
from tierstore.keys import Attempt, AttemptId

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

FORMAT_KEY = b"tierstore.format"
"""The key of the format's version in the schema's metadata."""


@dataclass(frozen=True, slots=True)
class Info:
    """What a fragment or manifest belongs to.

    Attributes:
        attempt: the try it is part of.
        nonce: the 16 hexadecimal digits of the attempt's launch.
        world_size: ranks in the job.
        ranks: the ranks whose fragments make this tier's commit, ascending.
        declared: how many chunks and values all `ranks` together must write; -1 if unknown.
        started: when its launch began; see `tierstore.checkpoint.timeline.Launch`.
        parent: the attempt that its launch restored; None if it began anew.
        rank: whose fragment it is; -1 in a manifest.
        format: the version of the stored layout; 1 does not tell `started` and `parent`.
    """

    attempt: Attempt
    nonce: str
    world_size: int
    ranks: tuple[int, ...]
    declared: int
    started: float = 0.0
    parent: AttemptId | None = None
    rank: int = -1
    format: int = FORMAT


class Table(NamedTuple):
    """A fragment or manifest: its info and three Arrow struct arrays."""

    info: Info
    tensors: Any
    files: Any
    values: Any


class Ragged(NamedTuple):
    """Rows of numbers of different length: row i is `values[starts[i]:starts[i + 1]]`."""

    starts: Ints
    values: NDArray[Any]

    @classmethod
    def of(cls, lists: Any) -> Ragged:
        """View an Arrow list array without copying."""
        starts = lists.offsets.to_numpy()
        if len(starts) == 0:
            return cls(np.zeros(1, np.int64), lists.flatten().to_numpy())
        return cls(starts - starts[0] if starts[0] else starts, lists.flatten().to_numpy())

    @classmethod
    def build(cls, lengths: Ints, values: Ints) -> Ragged:
        """Cut `values` into rows of these lengths."""
        return cls(starts_of(lengths), values)

    def row(self, index: int) -> NDArray[Any]:
        """One row, a view."""
        return self.values[self.starts[index] : self.starts[index + 1]]

    @property
    def lengths(self) -> Ints:
        """How long each row is."""
        return np.diff(self.starts).astype(np.int64)

    def take(self, order: Ints) -> Ragged:
        """The rows of these indices, in this order."""
        lengths = self.lengths[order]
        starts = starts_of(lengths)
        shift = np.repeat(self.starts[:-1].astype(np.int64)[order] - starts[:-1], lengths)
        return Ragged(starts, self.values[shift + np.arange(starts[-1])])

    def arrow(self) -> Any:
        """As an Arrow list array, without copying the values."""
        return arrow_list(self.starts, self.values)


class Columns(NamedTuple):
    """The tensors of a fragment or manifest, one row per tensor.

    Attributes:
        name, dtype, path: Arrow strings, one per tensor.
        shape: the global shape, one row per tensor.
        offsets, sizes: of all chunks of a tensor one after the other, ndim numbers each.
        chunks: where a tensor's chunks start in the three columns below.
        file, offset, nbytes: per chunk: index of its file, first byte in the file, bytes.
    """

    name: Any
    dtype: Any
    path: Any
    shape: Ragged
    offsets: Ragged
    sizes: Ragged
    chunks: Ints
    file: NDArray[np.int32]
    offset: Ints
    nbytes: Ints

    @classmethod
    def of(cls, tensors: Any) -> Columns:
        """View the `tensors` of a table without copying."""
        name, dtype, shape, path, offsets, sizes, chunks = tensors.flatten()
        starts, places = chunks.offsets.to_numpy(), chunks.flatten()
        return cls(
            name,
            dtype,
            path,
            Ragged.of(shape),
            Ragged.of(offsets),
            Ragged.of(sizes),
            starts - starts[0] if len(starts) else np.zeros(1, np.int64),
            *(column.to_numpy() for column in places.flatten()),
        )

    def first_misfit(self) -> int | None:
        """Return the first row without chunks, or with a chunk whose box is not of its shape."""
        ndim, counts = self.shape.lengths, np.diff(self.chunks)
        numbers = ndim * counts
        bad = (self.offsets.lengths != numbers) | (self.sizes.lengths != numbers)
        bad |= (counts < 1) | (ndim > MAX_DIMS)
        return int(bad.argmax()) if bad.any() else None

    def arrow(self) -> Any:
        """As the `tensors` of a table."""
        import pyarrow as pa

        places = pa.StructArray.from_arrays(
            [arrow_numbers(self.file), arrow_numbers(self.offset), arrow_numbers(self.nbytes)],
            fields=list(types()["place"]),
        )
        columns = [
            self.name,
            self.dtype,
            self.shape.arrow(),
            self.path,
            self.offsets.arrow(),
            self.sizes.arrow(),
            arrow_list(self.chunks, places),
        ]
        return pa.StructArray.from_arrays(columns, fields=list(types()["tensor"]))


def starts_of(lengths: Ints | Sequence[int]) -> Ints:
    """Where rows of these lengths start when they lie side by side, and where the last ends."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def arrow_list(starts: Ints | Sequence[int], values: Any) -> Any:
    """An Arrow list array over `values`, which is not copied."""
    import pyarrow as pa

    small = arrow_numbers(np.asarray(starts, np.int64)).cast(pa.int32(), memory_pool=pool())
    values = arrow_numbers(values) if isinstance(values, np.ndarray) else values
    return pa.ListArray.from_arrays(small, values)


def arrow_numbers(values: NDArray[Any]) -> Any:
    """An Arrow array over numpy's numbers, which are not copied.

    `pyarrow.array` would import `numpy.ma` for it: 7 MiB.
    """
    import pyarrow as pa

    whole = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(whole.dtype)
    return pa.Array.from_buffers(kind, len(whole), [None, pa.py_buffer(whole)])


def arrow_array(values: Sequence[Any], kind: Any) -> Any:
    """An Arrow array of Python's values; for numpy's there is `arrow_numbers`."""
    import pyarrow as pa

    return pa.array(values, kind, memory_pool=pool())


def take(column: Any, rows: Ints) -> Any:
    """Some rows of an Arrow array, in this order."""
    import pyarrow.compute as pc

    return pc.take(column, arrow_numbers(rows), memory_pool=pool())


def ascend(names: Any) -> bool:
    """Whether each text of an Arrow array is above the one before it."""
    import pyarrow.compute as pc

    above = pc.all(pc.less(names[:-1], names[1:], memory_pool=pool()), memory_pool=pool())
    return above.as_py() is not False


def first_shared(names: Any, others: Any) -> str | None:
    """Return the first of `names` that is in another Arrow array, too."""
    import pyarrow.compute as pc

    found = pc.index(pc.is_in(names, others, memory_pool=pool()), True, memory_pool=pool()).as_py()
    return None if found < 0 else str(names[found].as_py())


@cache
def pool() -> Any:
    """What Arrow allocates from here: malloc. Its own pool keeps 20 MiB after one small save."""
    import pyarrow as pa

    return pa.system_memory_pool()


@cache
def types() -> dict[str, Any]:
    """The Arrow types of a row of each kind."""
    import pyarrow as pa

    def record(**fields: Any) -> Any:
        return pa.struct([pa.field(name, kind, nullable=False) for name, kind in fields.items()])

    def rows(kind: Any) -> Any:
        return pa.list_(pa.field("item", kind, nullable=True))

    place = record(file=pa.int32(), offset=pa.int64(), nbytes=pa.int64())
    info = {
        "attempt": pa.string(),
        "nonce": pa.string(),
        "world_size": pa.int32(),
        "ranks": rows(pa.int32()),
        "declared": pa.int64(),
        "rank": pa.int32(),
    }
    return {
        "info 1": record(**info),
        "info": record(**info, started=pa.float64(), parent=pa.string()),
        "place": place,
        "tensor": record(
            name=pa.large_string(),
            dtype=pa.string(),
            shape=rows(pa.int64()),
            path=pa.large_string(),
            offsets=rows(pa.int64()),
            sizes=rows(pa.int64()),
            chunks=rows(place),
        ),
        "file": record(name=pa.string(), size=pa.int64(), crcs=rows(pa.uint32())),
        "value": record(
            name=pa.large_string(), path=pa.large_string(), kind=pa.string(), data=pa.large_binary()
        ),
    }


@cache
def schema(version: int = FORMAT) -> Any:
    """The Arrow schema of a version of the format, which its metadata holds."""
    import pyarrow as pa

    kinds = types()
    lists = [("tensors", "tensor"), ("files", "file"), ("values", "value")]
    return pa.schema(
        [
            pa.field("info", kinds[info_kind(version)], nullable=False),
            *(pa.field(name, pa.list_(kinds[kind]), nullable=False) for name, kind in lists),
        ],
        metadata={FORMAT_KEY: str(version).encode()},
    )


def info_kind(version: int) -> str:
    """The name of the type of `info` in a version of the format."""
    return "info 1" if version == 1 else "info"


def file_rows(names: Sequence[str], sizes: Sequence[int], crcs: Sequence[Any]) -> Any:
    """The `files` of a table from columns; `crcs` has the block CRC32Cs of each file."""
    import pyarrow as pa

    rows = [np.asarray(row, np.uint32) for row in crcs]
    columns = [
        arrow_array(names, pa.string()),
        arrow_numbers(np.asarray(sizes, np.int64)),
        arrow_list(
            starts_of([len(row) for row in rows]), np.concatenate([np.zeros(0, np.uint32), *rows])
        ),
    ]
    return pa.StructArray.from_arrays(columns, fields=list(types()["file"]))


def value_rows(rows: Sequence[tuple[str, str, str, Buffer]]) -> Any:
    """The `values` of a table from (name, path, kind, data) rows."""
    import pyarrow as pa

    fields = list(types()["value"])
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    arrays = [
        arrow_array(column, field.type) for column, field in zip(columns, fields, strict=True)
    ]
    return pa.StructArray.from_arrays(arrays, fields=fields)
