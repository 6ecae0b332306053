"""A tensor of a checkpoint, of which only what is asked for is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tierstore.door.element import Element, bits, element_of, raw_of
from tierstore.door.grid import Index, select
from tierstore.door.strided import strided_wants
from tierstore.errors import NotFoundError, PlanError
from tierstore.image.dtypes import item_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tierstore.checkpoint.manifest import Tensor
    from tierstore.door.grid import Grid
    from tierstore.door.ladder import OpenLadder
    from tierstore.ladder.find import Found


class Array:
    """A stored tensor. Indexing it reads and checks the blocks that hold what is selected.

    It takes numpy's basic indices: integers, slices with any step, `...` and None. The result is a
    new array. `np.asarray(array)` and `array[...]` read all of it, in parallel, into the result. A
    block that is damaged on one tier is read from the next one.
    """

    def __init__(
        self, ladder: OpenLadder, found: Found, tensor: Tensor, element: Element | None = None
    ) -> None:
        self._ladder, self._found, self._tensor = ladder, found, tensor
        self._element = element_of(tensor) if element is None else element

    @property
    def name(self) -> str:
        """Its name in the checkpoint."""
        return self._tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its global shape, whatever ranks it was spread over."""
        return self._element.shape

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self._tensor.shape) * item_size(self._tensor.dtype)

    @property
    def stored_dtype(self) -> str:
        """What torch calls the dtype, without "torch.": "bfloat16"."""
        return self._tensor.dtype

    @property
    def dtype(self) -> np.dtype[Any]:
        """What numpy calls the dtype; bfloat16, float8 and kin are those of ml_dtypes.

        Raises:
            PlanError: neither has it, as of several numbers packed into one byte; see `raw`.
        """
        if self._element.dtype is None:
            raise PlanError(
                f"{self.name} is of {self.stored_dtype}, a dtype that neither numpy nor ml_dtypes "
                "has",
                hint=f"`.raw` gives its bytes, as uint8 of shape {self.raw.shape}; "
                "Checkpointer.load gives torch's tensor",
            )
        return self._element.dtype

    @property
    def raw(self) -> Array:
        """Its bytes as they are stored, little endian: of uint8.

        Elements of several bytes have one more, last dimension for them.
        """
        return Array(self._ladder, self._found, self._tensor, raw_of(self._tensor))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Any:
        """Read what an index selects.

        Returns:
            A new array, C-contiguous and writable; a numpy scalar if all indices are integers.

        Raises:
            IndexError: as numpy's.
            PlanError: see `dtype`.
            CheckpointError: the store is closed.
            CorruptBlockError: no tier has a good copy of a block; it names file, block and tiers.
            AttemptDeletedError: the checkpoint was deleted meanwhile.
            StorageError: no tier could be read.
        """
        self._ladder.check_open()
        dtype = self.dtype
        grid = select(index, self.shape)
        result = self._read(grid, dtype)
        return result[()] if grid.scalar else result

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        """Read all of it, for numpy."""
        if copy is False:
            raise ValueError("a stored array is read into a new one: it cannot be had uncopied")
        whole: NDArray[Any] = self[...]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"<tierstore.Array {self.name!r}: {self.stored_dtype}, shape {self.shape}>"

    def _read(self, grid: Grid, dtype: np.dtype[Any]) -> NDArray[Any]:
        starts, steps, counts = grid.starts, grid.steps, grid.counts
        reverse = grid.reverse
        if self._element.as_bytes:
            starts, steps, counts = (*starts, 0), (*steps, 1), (*counts, dtype.itemsize)
            reverse = (*reverse, False)
        memory = np.empty(counts, bits(1 if self._element.as_bytes else dtype.itemsize))
        turn: tuple[Any, ...] = (*(slice(None, None, -1 if back else 1) for back in reverse), ...)
        self._fill(starts, steps, memory[turn])
        return memory.view(dtype).reshape(grid.shape)

    def _fill(self, starts: tuple[int, ...], steps: tuple[int, ...], into: NDArray[Any]) -> None:
        from tierstore.transfer.read import fetch

        entries = self._found.manifest.files
        files = {index: entries[index] for index in set(self._tensor.files.tolist())}
        wants = list(strided_wants(self._tensor, files, starts, steps, into))
        try:
            fetch(wants, {file.name: file for file in files.values()}, self._found.replicas)
        except NotFoundError:
            self._found.check_deleted()
            raise
