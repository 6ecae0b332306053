"""The tensors of all fragments of an attempt: do they agree, tile and lie inside their files?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tierstore.checkpoint import tiling
from tierstore.checkpoint.columns import Columns, Ragged, Table, pool, starts_of, take
from tierstore.errors import FormatError, IncompleteError, PlanError
from tierstore.image.dtypes import item_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

_MAX_BYTES = 2**63 - 1  # of a chunk, so that an int64 can count them


@dataclass(frozen=True, slots=True, eq=False)
class TensorRows:
    """The tensor rows of all fragments, in order of rank, grouped by tensor name.

    Attributes:
        columns: the rows; one tensor has a row in each fragment that holds chunks of it.
        ranks: the rank of each fragment.
        rank: per row, the index in `ranks`.
        name: the distinct names, sorted.
        group: per row, the index of its tensor in `name`.
        first: per tensor, its first row.
        owner: per chunk, the index of its tensor.
        counts: per row, how many chunks it has.
        files: per fragment, how many files it has.
        whole: whether these are all ranks of the job; those of one node need not fill a tensor.
    """

    columns: Columns
    ranks: Ints
    rank: Ints
    name: Any
    group: Ints
    first: Ints
    owner: Ints
    counts: Ints
    files: Ints
    whole: bool

    @classmethod
    def of(cls, parsed: list[Table]) -> TensorRows:
        """Concatenate and group; checks that rows of one tensor agree."""
        import pyarrow as pa

        columns = Columns.of(pa.concat_arrays([table.tensors for table in parsed], pool()))
        name, group = _grouped(columns.name)
        first = np.empty(len(name), np.int64)
        first[group[::-1]] = np.arange(len(group))[::-1]  # the last assignment wins
        counts = np.diff(columns.chunks)
        rows = cls(
            columns=columns,
            ranks=np.array([table.info.rank for table in parsed]),
            rank=np.repeat(np.arange(len(parsed)), [len(table.tensors) for table in parsed]),
            name=name,
            group=group,
            first=first,
            owner=np.repeat(group, counts),
            counts=counts,
            files=np.array([len(table.files) for table in parsed]),
            whole=len(parsed) == parsed[0].info.world_size,
        )
        rows.check_rows()
        return rows

    @classmethod
    def of_manifest(cls, columns: Columns, files: int, *, whole: bool) -> TensorRows:
        """View the tensors of a manifest, whose names ascend, as if one rank had written all."""
        counts = np.diff(columns.chunks)
        rows = np.arange(len(counts))
        return cls(
            columns=columns,
            ranks=np.array([-1]),
            rank=np.zeros(len(counts), np.int64),
            name=columns.name,
            group=rows,
            first=rows,
            owner=np.repeat(rows, counts),
            counts=counts,
            files=np.array([files]),
            whole=whole,
        )

    def who(self, row: int) -> str:
        """Name a row in an error."""
        name = self.columns.name[int(row)].as_py()
        rank = self.ranks[self.rank[row]]
        return f"tensor {name!r}" + (f" of rank {rank}" if rank >= 0 else "")

    def who_chunk(self, chunk: int) -> str:
        """Name a chunk in an error."""
        row = int(np.searchsorted(self.columns.chunks, chunk, "right")) - 1
        ndim = int(self.columns.shape.lengths[row])
        at = (chunk - int(self.columns.chunks[row])) * ndim
        box = [
            tuple(column.row(row)[at : at + ndim].tolist())
            for column in (self.columns.offsets, self.columns.sizes)
        ]
        return f"{self.who(row)}: the chunk at {box[0]} of size {box[1]}"

    def check_rows(self) -> None:
        """Each row has whole chunks, and the rows of one tensor agree with its first row."""
        import pyarrow.compute as pc

        columns = self.columns
        if (row := columns.first_misfit()) is not None:
            raise FormatError(f"{self.who(row)}: a chunk's box is not of its shape")
        if len(self.first) == len(self.group):
            return
        ndim = columns.shape.lengths
        leader = self.first[self.group]
        for what, column in (("dtype", columns.dtype), ("path", columns.path)):
            differs = pc.not_equal(column, take(column, leader), memory_pool=pool())
            differs = differs.to_numpy(zero_copy_only=False)
            if differs.any():
                row = int(differs.argmax())
                self._disagree(row, what, [column[at].as_py() for at in (row, int(leader[row]))])
        differs = ndim != ndim[leader]
        if not differs.any():
            unlike = columns.shape.values != columns.shape.take(leader).values
            differs[np.repeat(np.arange(len(ndim)), ndim)[unlike]] = True
        if differs.any():
            row = int(differs.argmax())
            shapes = [tuple(columns.shape.row(at).tolist()) for at in (row, int(leader[row]))]
            self._disagree(row, "shape", shapes)

    def _disagree(self, row: int, what: str, said: Sequence[object]) -> NoReturn:
        other = self.ranks[self.rank[self.first[self.group[row]]]]
        raise FormatError(
            f"{self.who(row)} has {what} {said[0]!r}, but rank {other} says {said[1]!r}"
        )

    def merged(self, files: Any) -> Columns:
        """Return one row per tensor, its chunks sorted by offset; everything is checked.

        Args:
            files: the `files` of all fragments, in the same order.

        Raises:
            IncompleteError, FormatError: see `check`.
        """
        columns, shape = self.columns, self.columns.shape.take(self.first)
        order = np.argsort(self.check(files.field("size").to_numpy()), kind="stable")
        ndim = shape.lengths[self.owner]
        first_file = np.repeat(starts_of(self.files)[self.rank], self.counts)
        counts = np.bincount(self.owner, minlength=len(self.first))
        per_tensor = counts * shape.lengths
        offsets, sizes = (
            Ragged.build(per_tensor, Ragged.build(ndim, column.values).take(order).values)
            for column in (columns.offsets, columns.sizes)
        )
        return Columns(
            name=self.name,
            dtype=take(columns.dtype, self.first),
            path=take(columns.path, self.first),
            shape=shape,
            offsets=offsets,
            sizes=sizes,
            chunks=starts_of(counts),
            file=(columns.file + first_file)[order].astype(np.int32),
            offset=columns.offset[order],
            nbytes=columns.nbytes[order],
        )

    def check(self, file_sizes: Ints) -> Ints:
        """Check that chunks tile their tensors, and lie where they can.

        Args:
            file_sizes: bytes of the files of all fragments, in the same order.

        Returns:
            The sort key of each chunk: tensors by name, chunks in row-major order.

        Raises:
            IncompleteError: an element of a tensor was written by no rank.
            FormatError: one was written twice; a chunk's box or bytes are not where they can be.
        """
        key, volume = self._check_boxes()
        self._check_places(file_sizes, volume)
        return key

    def _check_boxes(self) -> tuple[Ints, Ints]:
        """Check that chunks tile; return each chunk's sort key and its number of elements."""
        shape = self.columns.shape.take(self.first)
        ndim = shape.lengths
        offsets = Ragged.build(ndim[self.owner], self.columns.offsets.values)
        sizes = Ragged.build(ndim[self.owner], self.columns.sizes.values)
        points = np.zeros(len(ndim), np.int64)
        start, volume = np.zeros(len(self.owner), np.int64), np.ones(len(self.owner), np.int64)
        total = 0.0
        for dims in tiling.distinct(ndim):
            tensors = np.flatnonzero(ndim == dims)
            chunks = np.flatnonzero(ndim[self.owner] == dims)
            owner = np.searchsorted(tensors, self.owner[chunks])
            shapes, low, long = (
                column.take(index).values.reshape(len(index), dims)
                for column, index in ((shape, tensors), (offsets, chunks), (sizes, chunks))
            )
            boxes = tiling.Boxes(shapes, owner, low, long)
            if (outside := boxes.first_outside()) is not None:
                raise FormatError(
                    f"{self.who_chunk(int(chunks[outside]))} reaches out of the tensor's shape "
                    f"{tuple(shapes[owner[outside]].tolist())}"
                )
            total += boxes.points
            if total > tiling.MAX_POINTS:
                raise FormatError("the tensors' shapes are too large to be true")
            if self.whole and (fault := boxes.first_fault()) is not None:
                self._bad_tiling(
                    fault,
                    self.name[int(tensors[fault.tensor])].as_py(),
                    tuple(shapes[fault.tensor].tolist()),
                    chunks[boxes.holding(fault)],
                )
            base, strides = tiling.grid(shapes)
            points[tensors] = np.diff(base)
            start[chunks] = (low * strides[owner]).sum(axis=1)
            volume[chunks] = long.prod(axis=1)
        return starts_of(points)[self.owner] + start, volume

    def _bad_tiling(
        self, fault: tiling.TilingFault, name: str, shape: tuple[int, ...], chunks: Ints
    ) -> NoReturn:
        what = f"tensor {name!r}: element {fault.element} of shape {shape}"
        if fault.times == 0:
            raise IncompleteError(f"{what} was written by no rank")
        rows = np.searchsorted(self.columns.chunks, chunks, "right") - 1
        ranks = ", ".join(str(rank) for rank in self.ranks[self.rank[rows]][:10].tolist())
        who = f", by the ranks {ranks}" if self.ranks[0] >= 0 else ""
        raise FormatError(f"{what} was written {fault.times} times{who}")

    def _check_places(self, file_sizes: Ints, volume: Ints) -> None:
        """Every chunk has as many bytes as its box needs, inside a file of its own rank."""
        columns = self.columns
        fragment = np.repeat(self.rank, self.counts)
        first_file = starts_of(self.files)[fragment]
        dtypes = _encoded(columns.dtype)
        try:
            item = [item_size(name) for name in dtypes.dictionary.to_pylist()]
        except PlanError as error:
            raise FormatError(str(error)) from error
        row_item = np.array(item, np.int64)[dtypes.indices.to_numpy()]
        items = np.repeat(row_item, self.counts)
        wrong = (volume > _MAX_BYTES // items) | (columns.nbytes != volume * items)
        if wrong.any():
            at = int(wrong.argmax())
            raise FormatError(f"{self.who_chunk(at)} cannot have {columns.nbytes[at]} bytes")
        known = (columns.file >= 0) & (columns.file < self.files[fragment])
        room = np.zeros(len(known), np.int64)
        room[known] = file_sizes[(first_file + columns.file)[known]]
        wrong = ~known | (columns.offset < 0) | (columns.offset > room - columns.nbytes)
        if wrong.any():
            at = int(wrong.argmax())
            raise FormatError(
                f"{self.who_chunk(at)} lies at byte {columns.offset[at]} of file "
                f"{columns.file[at]}, outside of the files of its rank"
            )
        self._check_apart(starts_of(file_sizes)[first_file + columns.file] + columns.offset)

    def _check_apart(self, low: Ints) -> None:
        """No two chunks share a byte; `low` is where each begins, all files one behind the other.

        The CRCs of all their blocks are there, so an int64 can count their bytes.
        """
        chunks = np.flatnonzero(self.columns.nbytes)
        order = chunks[np.argsort(low[chunks], kind="stable")]
        high = low[order] + self.columns.nbytes[order]
        shared = np.flatnonzero(high[:-1] > low[order[1:]])
        if len(shared):
            one, two = order[shared[0] : shared[0] + 2].tolist()
            raise FormatError(f"{self.who_chunk(two)} lies on bytes of {self.who_chunk(one)}")


def _grouped(names: Any) -> tuple[Any, Ints]:
    """The distinct names, sorted, and for each name its index among them."""
    import pyarrow.compute as pc

    encoded = _encoded(names)
    unique, group = encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)
    if pc.all(pc.less(unique[:-1], unique[1:], memory_pool=pool())).as_py() is not False:
        return unique, group
    order = pc.sort_indices(unique, memory_pool=pool()).to_numpy()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return take(unique, order), place[group]


def _encoded(column: Any) -> Any:
    import pyarrow.compute as pc

    return pc.dictionary_encode(column, memory_pool=pool())
