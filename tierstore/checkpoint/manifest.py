"""The manifest: every chunk of a checkpoint and where its bytes are, searched where it lies."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from tierstore.blocks import BLOCK_SIZE, Buffer
from tierstore.checkpoint.arrow_file import read_table
from tierstore.checkpoint.columns import Columns, Ragged, Table, ascend, first_shared, take
from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.fragment import FileEntry, ValueEntry
from tierstore.checkpoint.rows import TensorRows
from tierstore.errors import FormatError, IncompleteError, InvalidKeyError
from tierstore.keys import Attempt, check_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

_AT_ONCE = 4096  # rows: not all of a million


@dataclass(frozen=True, slots=True)
class TensorChunk:
    """One chunk: a box of its tensor, and its bytes.

    Attributes:
        offsets: the box's first element in each dimension.
        sizes: the box's length in each dimension.
        file: index into `Manifest.files`.
        offset: its first byte in that file.
        nbytes: its bytes.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One tensor of a checkpoint, with n chunks; its arrays are views of the manifest.

    Attributes:
        name: its name in the state dict.
        dtype: torch's name of the dtype, without "torch.".
        shape: the global shape.
        path: JSON text of the typed path in the state dict, or "".
        only_place: of a tensor with one chunk its file, an index into `Manifest.files`, and the
            first byte there; None if it has several.
    """

    name: str
    dtype: str
    path: str
    shape: tuple[int, ...]
    only_place: tuple[int, int] | None
    _columns: Columns
    _row: int

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(n, ndim), where each chunk starts; sorted in row-major order."""
        return self._boxes(self._columns.offsets)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n, ndim), how long each chunk is."""
        return self._boxes(self._columns.sizes)

    @property
    def files(self) -> NDArray[np.int32]:
        """(n,), index of each chunk's file in `Manifest.files`."""
        return self._columns.file[self._chunks]

    @property
    def byte_offsets(self) -> NDArray[np.int64]:
        """(n,), each chunk's first byte in its file."""
        return self._columns.offset[self._chunks]

    @property
    def nbytes(self) -> NDArray[np.int64]:
        """(n,), each chunk's bytes."""
        return self._columns.nbytes[self._chunks]

    @property
    def _chunks(self) -> slice:
        return slice(*self._columns.chunks[self._row : self._row + 2].tolist())

    def _boxes(self, column: Ragged) -> NDArray[np.int64]:
        chunks = self._chunks
        return column.row(self._row).reshape(chunks.stop - chunks.start, len(self.shape))

    @property
    def chunks(self) -> list[TensorChunk]:
        """The chunks as objects, for those who want few of them."""
        columns = (self.offsets, self.sizes, self.files, self.byte_offsets, self.nbytes)
        return [
            TensorChunk(tuple(offsets), tuple(sizes), file, offset, nbytes)
            for offsets, sizes, file, offset, nbytes in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]


class Manifest:
    """A manifest over a buffer, of which little is made into objects before it is asked for.

    Made by `Manifest.open`. `len` is the number of tensors.
    """

    def __init__(self, table: Table, name: str = "a manifest") -> None:
        self._info, self._key = table.info, name
        self._files = table.files
        self._tensors = Columns.of(table.tensors)
        self._names = _Strings(self._tensors.name)
        self._values = table.values
        self._value_names = _Strings(table.values.field("name"))
        self.files: Sequence[FileEntry] = _Files(table.files)
        """The stored files; each entry is made when it is asked for."""
        self._check_rows()

    @classmethod
    def open(cls, buffer: Buffer, name: str = "a manifest") -> Manifest:
        """View a stored manifest. Its CRC32C is for the caller to check: the commit holds it.

        Its rows are whole and its names ascend, so that looking things up is safe. Whether what
        it says can be true is for `checked`.

        Args:
            buffer: the whole file, which must not change; the manifest keeps it alive.
            name: its key, for errors.

        Raises:
            NewerFormatError: a newer tierstore wrote it.
            FormatError: it is something else.
        """
        return cls(read_table(buffer, name), name)

    def checked(self, commit: Commit) -> Manifest:
        """Return this manifest, having checked all that a restore relies on.

        It is what the commit says, each tensor is tiled by its chunks, and each chunk lies inside
        of a file of a legal name, where no other does. A million chunks take half a second.

        Raises:
            FormatError: it is not.
            IncompleteError: an element of a tensor is in no chunk.
        """
        info, columns = self._info, self._tensors
        said = commit.ranks, commit.world_size, commit.tensors, commit.chunks, commit.files
        if said != (info.ranks, info.world_size, len(self), len(columns.file), len(self.files)):
            raise self._wrong("is not what its commit says")
        self._check_files()
        if (both := first_shared(self._values.field("name"), columns.name)) is not None:
            raise self._wrong(f"has both a tensor and a value called {both!r}")
        rows = TensorRows.of_manifest(columns, len(self.files), whole=commit.whole)
        try:
            rows.check(self._files.field("size").to_numpy())
        except (FormatError, IncompleteError) as error:
            raise type(error)(f"{self._key}: {error.message}", hint=error.hint) from error
        return self

    def _check_rows(self) -> None:
        columns, values = self._tensors, self._values
        if (row := columns.first_misfit()) is not None:
            raise self._wrong(f"has chunks of {self._names[row]!r} that are not of its shape")
        if not (ascend(columns.name) and ascend(values.field("name"))):
            raise self._wrong("is not sorted by name")
        sizes, counts = self._files.field("size").to_numpy(), Ragged.of(self._files.field("crcs"))
        if (sizes < 0).any() or (-(-sizes // BLOCK_SIZE) != counts.lengths).any():
            raise self._wrong("has another number of block CRCs than a file has blocks")

    def _check_files(self) -> None:
        names = self._files.field("name").to_pylist()
        try:
            legal = all("/" not in check_key(name) for name in names)
        except InvalidKeyError as error:
            raise self._wrong(f"names a file that cannot be: {error}") from error
        if not legal or len(set(names)) < len(names):
            raise self._wrong("names a file twice, or one in another folder")

    def _wrong(self, what: str) -> FormatError:
        return FormatError(f"{self._key} {what}")

    @property
    def attempt(self) -> Attempt:
        """The try it is of."""
        return self._info.attempt

    @property
    def nonce(self) -> str:
        """The nonce of the attempt's launch."""
        return self._info.nonce

    @property
    def world_size(self) -> int:
        """Ranks in the job that saved."""
        return self._info.world_size

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks whose parts it covers, ascending."""
        return self._info.ranks

    def __len__(self) -> int:
        return len(self._names)

    def names(self) -> Iterator[str]:
        """Yield the tensors' names, sorted."""
        return iter(self._names)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the tensors, sorted by name."""
        for start in range(0, len(self), _AT_ONCE):
            yield from self.tensors(range(start, min(start + _AT_ONCE, len(self))))

    def find(self, name: str) -> Tensor | None:
        """Return the tensor of this name, or None, by bisection."""
        index = self._names.find(name)
        return None if index is None else self.tensor(index)

    def tensor(self, index: int) -> Tensor:
        """Return a tensor by its place among the sorted names."""
        columns = self._tensors
        first, end = columns.chunks[index : index + 2].tolist()
        spot = int(columns.file[first]), int(columns.offset[first])
        return Tensor(
            self._names[index],
            columns.dtype[index].as_py(),
            columns.path[index].as_py(),
            tuple(columns.shape.row(index).tolist()),
            spot if end - first == 1 else None,
            columns,
            index,
        )

    def tensors(self, rows: Sequence[int]) -> list[Tensor]:
        """Return tensors by their places, four times faster than one by one."""
        columns = self._tensors
        places = np.asarray(rows, np.int64)
        texts = (take(column, places).to_pylist() for column in columns[:3])
        shapes = columns.shape.take(places)
        numbers = shapes.values.tolist()
        first = columns.chunks[places]
        alone = (columns.chunks[places + 1] - first == 1).tolist()
        spots = zip(columns.file[first].tolist(), columns.offset[first].tolist(), strict=True)
        return [
            Tensor(name, dtype, path, tuple(numbers[low:high]), spot if one else None, columns, row)
            for name, dtype, path, (low, high), spot, one, row in zip(
                *texts, pairwise(shapes.starts.tolist()), spots, alone, places.tolist(), strict=True
            )
        ]

    def values(self) -> Iterator[ValueEntry]:
        """Yield the values, sorted by name."""
        return (self._value(index) for index in range(len(self._values)))

    def find_value(self, name: str) -> ValueEntry | None:
        """Return the value of this name, or None, by bisection."""
        index = self._value_names.find(name)
        return None if index is None else self._value(index)

    def _value(self, index: int) -> ValueEntry:
        return ValueEntry(**self._values[index].as_py())


class _Strings(Sequence[str]):
    """Sorted Arrow large strings. Arrow's order, that of UTF-8 bytes, is also Python's."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return _Strings(self._column[index])
        return str(self._column[index].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self._column[start : start + _AT_ONCE].to_pylist()

    def find(self, name: str) -> int | None:
        """The index of a name, or None."""
        index = bisect_left(self, name)
        return index if index < len(self) and self[index] == name else None


class _Files(Sequence[FileEntry]):
    """The `files` of a table as entries."""

    def __init__(self, files: Any) -> None:
        self._names, self._sizes, crcs = files.flatten()
        self._crcs = Ragged.of(crcs)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> FileEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[FileEntry]: ...
    def __getitem__(self, index: int | slice) -> FileEntry | Sequence[FileEntry]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return FileEntry(
            self._names[index].as_py(), self._sizes[index].as_py(), self._crcs.row(index)
        )
