"""Do chunks tile tensors exactly: no hole, no overlap? Exact, and vectorised over all tensors.

A chunk is a box. Write f(p) for how many chunks of a tensor hold element p, less one. The chunks
tile the tensor exactly if f is zero everywhere. The mixed difference of a box (first difference
along each axis) is zero but at its corners, where it is +1 or -1 by the parity of the corner; and
only f = 0 has the mixed difference 0. So the corners of all chunks, with their signs, must cancel
to the corners of the tensor: two sorts and one comparison, whatever the pattern of the cut.

If they do not, the lexicographically first corner left over is the first element that is wrong,
since no earlier point has a difference to add up, and its sum is f there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tierstore.errors import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

MAX_SPLIT = 12
"""Along how many dimensions one tensor may be cut: a chunk has 2**MAX_SPLIT corners."""

_MAX_CORNERS = 2**22  # of chunks that have more than 16 each: 100 MB while they are sorted

MAX_POINTS = 2**62
"""How many points all tensors may have together, so that an int64 can number them."""


@dataclass(frozen=True, slots=True)
class TilingFault:
    """The first element, in row-major order, that is not held by exactly one chunk.

    Attributes:
        tensor: index of the tensor.
        element: its position.
        times: how many chunks hold it: 0, or 2 and more.
    """

    tensor: int
    element: tuple[int, ...]
    times: int


def grid(shapes: Ints) -> tuple[Ints, Ints]:
    """Number the corner points of all tensors: (base (t + 1,), strides (t, d)).

    Point p of tensor t, each coordinate from 0 to its size, has number `base[t] + p @ strides[t]`.
    Numbers grow with the tensor, then in row-major order.
    """
    extents = shapes + 1
    strides = np.ones_like(extents)
    np.cumprod(extents[:, :0:-1], axis=1, out=strides[:, -2::-1])
    points = np.prod(extents, axis=1, dtype=np.int64)
    return np.concatenate([[0], np.cumsum(points)]), strides


def distinct(numbers: Ints) -> list[int]:
    """The different ones among small numbers, sorted.

    `np.unique` would import `numpy.ma` for it: 7 MiB.
    """
    return np.flatnonzero(np.bincount(numbers)).tolist()


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """The chunks of tensors of equally many dimensions.

    Attributes:
        shapes: (t, d), of t tensors of d dimensions.
        owner: (n,), the tensor of each chunk.
        offsets: (n, d), where each chunk starts.
        sizes: (n, d), how long it is.
    """

    shapes: Ints
    owner: Ints
    offsets: Ints
    sizes: Ints

    @property
    def points(self) -> float:
        """How many points all tensors have together, as `grid` counts them."""
        return float(np.prod(self.shapes.astype(np.float64) + 1, axis=1).sum())

    def first_outside(self) -> int | None:
        """Return the index of the first chunk that reaches out of its tensor, or None."""
        # Compared without a sum, which could overflow.
        room = self.shapes[self.owner] - self.offsets
        wrong = (self.offsets < 0) | (self.sizes < 0) | (self.sizes > room)
        found = np.flatnonzero(wrong.any(axis=1))
        return int(found[0]) if len(found) else None

    def first_fault(self) -> TilingFault | None:
        """Return the first fault found in the tiling, or None.

        The chunks must be inside, and all points at most MAX_POINTS.

        Raises:
            FormatError: a tensor is cut along more than MAX_SPLIT dimensions.
        """
        # Dimensions that no chunk of a tensor cuts are left out: a whole tensor has one corner.
        count, dims = self.shapes.shape
        cut = np.zeros((count, dims), bool)
        for k in range(dims):
            cut[self.owner[self.sizes[:, k] != self.shapes[self.owner, k]], k] = True
        splits = cut.sum(axis=1)
        if splits.max(initial=0) > MAX_SPLIT:
            raise FormatError(f"a tensor is cut along more than {MAX_SPLIT} dimensions")
        local = np.zeros(count, np.int64)
        for split in distinct(splits):
            tensors = np.flatnonzero(splits == split)
            local[tensors] = np.arange(len(tensors))
            chunks = np.flatnonzero(splits[self.owner] == split)
            if split > 4 and len(chunks) << split > _MAX_CORNERS:
                raise FormatError(f"{len(chunks)} chunks are cut along {split} dimensions")
            owner = local[self.owner[chunks]]
            axes = np.argsort(~cut[tensors], axis=1, kind="stable")[:, :split]
            fault = _uncancelled(
                np.take_along_axis(self.shapes[tensors], axes, 1),
                owner,
                np.take_along_axis(self.offsets[chunks], axes[owner], 1),
                np.take_along_axis(self.sizes[chunks], axes[owner], 1),
            )
            if fault is not None:
                element = np.zeros(dims, np.int64)
                element[axes[fault.tensor]] = fault.element
                return TilingFault(int(tensors[fault.tensor]), tuple(element.tolist()), fault.times)
        return None

    def holding(self, fault: TilingFault) -> Ints:
        """Return the indices of the chunks that hold the faulty element."""
        element = np.array(fault.element, np.int64)
        inside = (self.offsets <= element) & (element < self.offsets + self.sizes)
        return np.flatnonzero(inside.all(axis=1) & (self.owner == fault.tensor))


def _uncancelled(shapes: Ints, owner: Ints, offsets: Ints, sizes: Ints) -> TilingFault | None:
    base, strides = grid(shapes)
    whole = np.arange(len(shapes))
    chunks = _corners(base[owner], strides[owner], offsets, sizes)
    tensors = _corners(base[whole], strides, np.zeros_like(shapes), shapes)
    plus = np.sort(np.concatenate([chunks[0], tensors[1]]))
    minus = np.sort(np.concatenate([chunks[1], tensors[0]]))
    if np.array_equal(plus, minus):
        return None
    shared = min(len(plus), len(minus))
    differs = np.flatnonzero(plus[:shared] != minus[:shared])
    at = int(differs[0]) if len(differs) else shared
    point = min(int(side[at]) for side in (plus, minus) if at < len(side))
    excess = [
        int(np.searchsorted(side, point, "right") - np.searchsorted(side, point))
        for side in (plus, minus)
    ]
    tensor = int(np.searchsorted(base, point, "right")) - 1
    element, rest = [], point - int(base[tensor])
    for stride in strides[tensor].tolist():
        element.append(rest // stride)
        rest %= stride
    return TilingFault(tensor, tuple(element), 1 + excess[0] - excess[1])


def _corners(base: Ints, strides: Ints, offsets: Ints, sizes: Ints) -> tuple[Ints, Ints]:
    """The numbers of the boxes' corners: those with sign +1, those with sign -1."""
    sides: tuple[list[Ints], list[Ints]] = ([base + (offsets * strides).sum(axis=1)], [])
    for k in range(strides.shape[1]):
        step = sizes[:, k] * strides[:, k]
        plus = [corner + step for corner in sides[1]]
        minus = [corner + step for corner in sides[0]]
        sides = (sides[0] + plus, sides[1] + minus)
    none = np.zeros(0, np.int64)
    return np.concatenate([*sides[0], none]), np.concatenate([*sides[1], none])
