"""What is restored into: whether its memory can be written, and belongs to nobody else.

Tensors may share memory: weights that are tied, a buffer and a view of it. Two reads into it would
each find bytes that the other wrote, and a good file would be called damaged. So this is looked at
before anything is read. Two names of exactly the same elements are read once, if what was saved
for both is equal.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import as_strided

from tierstore.checkpoint.manifest import Tensor
from tierstore.errors import NotFoundError, PlanError
from tierstore.image.layout import Chunk
from tierstore.ladder.find import Found
from tierstore.transfer.read import ReadReport, Want, fetch
from tierstore_torch.state.items import byte_view
from tierstore_torch.state.overlap import wants

PIECE = 16 * 1024 * 1024
"""Bytes of a tensor that are compared at a time."""


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor to fill.

    Attributes:
        name: what it is called here.
        saved: where its numbers come from.
        chunk: which part of `saved` it is; None if it is the whole.
        tensor: the elements that are here.
        wants: the reads that fill it.
    """

    name: str
    saved: Tensor
    chunk: Chunk | None
    tensor: torch.Tensor
    wants: Sequence[Want]

    @property
    def span(self) -> int:
        """Bytes from its first element to the end of its last."""
        tensor = self.tensor
        if tensor.is_contiguous():
            return tensor.nbytes
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        return tensor.itemsize * (1 + sum((n - 1) * stride for n, stride in steps))


Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and size of a part of a target, in elements."""

Twins = tuple[Target, Target]
"""Two targets that are the same elements."""


def check_memory(targets: Sequence[Target]) -> tuple[list[Target], list[Twins]]:
    """Return the targets without those that another one is too, and each of these with that one.

    Raises:
        PlanError: memory cannot be written, or targets share some but not all of it.
    """
    places = sorted(
        ("" if (tensor := target.tensor).is_cpu else str(tensor.device), tensor.data_ptr(), index)
        for index, target in enumerate(targets)
        if target.tensor.numel()
    )
    writable = _writable()
    twins: list[Twins] = []
    dropped: set[int] = set()
    near: list[Target] = []  # the last one, and those before whose ranges reach into each other's
    device, end = "", 0
    for where, start, index in places:
        target = targets[index]
        reach = start + target.span
        if not where:
            _check_writable(target, start, reach, writable)
        if where != device or start >= end:
            _check_apart(near)
            device, end, near = where, reach, [target]
            continue
        end = max(end, reach)
        twin = next((one for one in near if _is_same(one.tensor, target.tensor)), None)
        if twin is None:
            near.append(target)
        else:
            twins.append((twin, target))
            dropped.add(index)
    _check_apart(near)
    return [t for index, t in enumerate(targets) if index not in dropped], twins


def read_wants(wanted: Sequence[Want], found: Found) -> ReadReport:
    """Carry reads out, of a checkpoint that may have been deleted meanwhile.

    Raises:
        AttemptDeletedError: it has been.
        TierstoreError: see `fetch`.
    """
    names = {want.file for want in wanted}
    files = {file.name: file for file in found.manifest.files if file.name in names}
    try:
        return fetch(wanted, files, found.replicas)
    except NotFoundError:
        found.check_deleted()
        raise


def check_twins(twins: Sequence[Twins], found: Found) -> None:
    """Check that what was saved for the two of each pair is equal.

    Args:
        twins: the pairs.
        found: the checkpoint.

    Raises:
        PlanError: it is not.
        TierstoreError: it cannot be read.
    """
    files = [file.name for file in found.manifest.files] if twins else []
    pieces = (_Piece.of(*pair, box, files) for pair in twins for box in _boxes(pair[0]))
    while some := list(islice(pieces, 4)):
        read_wants([want for piece in some for want in piece.wants], found)
        for piece in some:
            if not np.array_equal(_bytes(piece.left), _bytes(piece.right)):
                raise PlanError(
                    f"{piece.one} and {piece.other} are the same memory here, but different "
                    "numbers were saved for them",
                    hint="restore into a state where they are apart, or leave one of them out",
                )


@dataclass(frozen=True, slots=True)
class _Piece:
    """The same part of two targets, to be read apart from each other."""

    one: str
    other: str
    left: torch.Tensor
    right: torch.Tensor
    wants: Sequence[Want]

    @classmethod
    def of(cls, one: Target, other: Target, box: Box, files: Sequence[str]) -> _Piece:
        left, reads = _scratch(one, box, files)
        right, more = _scratch(other, box, files)
        return cls(one.name, other.name, left, right, reads + more)


def _bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    return np.frombuffer(byte_view(tensor), np.uint8)


def _boxes(target: Target) -> Iterator[Box]:
    """Cut a target into boxes of at most PIECE bytes."""
    todo = [((0,) * target.tensor.ndim, tuple(target.tensor.shape))]
    while todo:
        low, sizes = todo.pop()
        if math.prod(sizes) * target.tensor.itemsize <= PIECE:
            yield low, sizes
            continue
        axis = max(range(len(sizes)), key=sizes.__getitem__)
        half = sizes[axis] // 2
        for at, length in ((0, half), (half, sizes[axis] - half)):
            offset = (*low[:axis], low[axis] + at, *low[axis + 1 :])
            todo.append((offset, (*sizes[:axis], length, *sizes[axis + 1 :])))


def _scratch(target: Target, box: Box, files: Sequence[str]) -> tuple[torch.Tensor, list[Want]]:
    """Return new memory for a box of what was saved, and the reads that fill it."""
    saved = target.saved
    origin = target.chunk.offsets if target.chunk else (0,) * len(saved.shape)
    offsets = tuple(a + b for a, b in zip(origin, box[0], strict=True))
    part = Chunk(saved.name, saved.dtype, saved.shape, offsets, box[1])
    scratch = torch.empty(box[1], dtype=target.tensor.dtype, device="cpu")
    return scratch, list(wants(saved, files, part, scratch))


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two are the same elements in the same order."""
    kinds = [(t.data_ptr(), t.shape, t.dtype, t.is_conj(), t.is_neg()) for t in (one, other)]
    return kinds[0] == kinds[1] and (
        one.stride() == other.stride() or (one.is_contiguous() and other.is_contiguous())
    )


def _check_apart(near: Sequence[Target]) -> None:
    """Check that targets whose ranges of memory overlap have no byte in common.

    Raises:
        PlanError: some have, or one has an element twice.
    """
    if not near or (len(near) == 1 and near[0].tensor.is_contiguous()):
        return  # nearly always
    if not any(_may_repeat(target.tensor) for target in near):
        if len(near) == 1:
            return
        if all(target.tensor.is_contiguous() for target in near[:2]):
            raise _shared(*near[:2])
    memory = _Memory(near)
    held = 0
    for index, target in enumerate(near):
        mine = memory.of(target.tensor)
        if mine.any():
            raise _shared(next(o for o in near[:index] if memory.common(o, target)), target)
        mine[...] = True
        held += mine.size
        if _may_repeat(target.tensor) and memory.taken.sum() != held:
            raise PlanError(
                f"{target.name}: several of its elements are the same memory",
                hint="restore into a copy, such as its clone() or contiguous()",
            )


class _Memory:
    """A map of the memory that targets lie in; its unit is what all of them are multiples of."""

    def __init__(self, near: Sequence[Target]) -> None:
        starts = [target.tensor.data_ptr() for target in near]
        self._base = min(starts)
        sizes = [target.tensor.itemsize for target in near]
        self._unit = math.gcd(*sizes, *(start - self._base for start in starts))
        ends = [start + target.span for start, target in zip(starts, near, strict=True)]
        self.taken = np.zeros((max(ends) - self._base) // self._unit, np.bool_)

    def of(self, tensor: torch.Tensor) -> Any:
        """Return the view of what a tensor has."""
        width = tensor.itemsize // self._unit
        start = (tensor.data_ptr() - self._base) // self._unit
        strides = (*(stride * width for stride in tensor.stride()), 1)
        return as_strided(self.taken[start:], (*tensor.shape, width), strides)

    def common(self, one: Target, other: Target) -> bool:
        """Whether two have a byte in common."""
        self.taken[...] = False
        self.of(one.tensor)[...] = True
        return bool(self.of(other.tensor).any())


def _may_repeat(tensor: torch.Tensor) -> bool:
    """Whether a tensor may have the same memory at several places, as an expanded one has."""
    if tensor.is_contiguous():
        return False
    reach = 0
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1 and stride <= reach:
            return True
        reach += (length - 1) * stride
    return False


def _shared(one: Target, other: Target) -> PlanError:
    return PlanError(
        f"{one.name} and {other.name} share memory here, though they are not the same elements",
        hint="restore into a copy of one of them, or leave it out",
    )


Ranges = tuple[list[int], list[int]]
"""The starts and the ends of ranges of memory, ascending."""


def _writable() -> Ranges | None:
    """Return the memory of this process that can be written; None if the system does not tell."""
    starts: list[int] = []
    ends: list[int] = []
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        span, rights = line.split(None, 2)[:2]
        low, high = (int(number, 16) for number in span.split("-"))
        if "w" not in rights:
            continue
        if ends and ends[-1] == low:
            ends[-1] = high
        else:
            starts.append(low)
            ends.append(high)
    return starts, ends


def _check_writable(target: Target, start: int, end: int, writable: Ranges | None) -> None:
    if not start:
        raise PlanError(
            f"{target.name}: its memory has been freed",
            hint="restore while the tensor has its numbers, such as outside of a forward pass",
        )
    if writable is None:
        return
    starts, ends = writable
    at = bisect_right(starts, start) - 1
    if at < 0 or end > ends[at]:
        raise PlanError(
            f"{target.name}: its memory is read-only, such as that of a mapped file",
            hint="restore into a copy, its clone()",
        )
