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

    def who(self, row: int) -> str:
        """Name a row in an error."""
        name = self.columns.name[int(row)].as_py()
        return f"tensor {name!r} of rank {self.ranks[self.rank[row]]}"

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
        ndim = columns.shape.lengths
        numbers = self.counts * ndim
        bad = (columns.offsets.lengths != numbers) | (columns.sizes.lengths != numbers)
        bad |= self.counts < 1
        if bad.any():
            raise FormatError(f"{self.who(int(bad.argmax()))}: a chunk's box is not of its shape")
        if len(self.first) == len(self.group):
            return
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
            IncompleteError: an element of a tensor was written by no rank.
            FormatError: one was written twice; a chunk's box or bytes are not where they can be.
        """
        columns, shape = self.columns, self.columns.shape.take(self.first)
        ndim = shape.lengths[self.owner]
        offsets = Ragged.build(ndim, columns.offsets.values)
        sizes = Ragged.build(ndim, columns.sizes.values)
        key, volume = self._check_boxes(shape, offsets, sizes)
        fragment = np.repeat(self.rank, self.counts)
        first_file = starts_of(self.files)[fragment]
        self._check_places(fragment, first_file, files.field("size").to_numpy(), volume)
        order = np.argsort(key, kind="stable")
        counts = np.bincount(self.owner, minlength=len(self.first))
        per_tensor = counts * shape.lengths
        return Columns(
            name=self.name,
            dtype=take(columns.dtype, self.first),
            path=take(columns.path, self.first),
            shape=shape,
            offsets=Ragged.build(per_tensor, offsets.take(order).values),
            sizes=Ragged.build(per_tensor, sizes.take(order).values),
            chunks=starts_of(counts),
            file=(columns.file + first_file)[order].astype(np.int32),
            offset=columns.offset[order],
            nbytes=columns.nbytes[order],
        )

    def _check_boxes(self, shape: Ragged, offsets: Ragged, sizes: Ragged) -> tuple[Ints, Ints]:
        """Check that chunks tile; return each chunk's sort key and its number of elements."""
        ndim = shape.lengths
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
        self, fault: tiling.Fault, name: str, shape: tuple[int, ...], chunks: Ints
    ) -> NoReturn:
        what = f"tensor {name!r}: element {fault.element} of shape {shape}"
        if fault.times == 0:
            raise IncompleteError(f"{what} was written by no rank")
        rows = np.searchsorted(self.columns.chunks, chunks, "right") - 1
        ranks = ", ".join(str(rank) for rank in self.ranks[self.rank[rows]][:10].tolist())
        raise FormatError(f"{what} was written {fault.times} times, by the ranks {ranks}")

    def _check_places(
        self, fragment: Ints, first_file: Ints, file_sizes: Ints, volume: Ints
    ) -> None:
        """Every chunk has as many bytes as its box needs, inside a file of its own rank."""
        columns = self.columns
        dtypes = _encoded(columns.dtype)
        try:
            item = [item_size(name) for name in dtypes.dictionary.to_pylist()]
        except PlanError as error:
            raise FormatError(str(error)) from error
        row_item = np.array(item, np.int64)[dtypes.indices.to_numpy()]
        wrong = columns.nbytes != volume * np.repeat(row_item, self.counts)
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
