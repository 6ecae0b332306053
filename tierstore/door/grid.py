"""What an index of an array means: numpy's basic indexing, with numpy's errors."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from types import EllipsisType
from typing import SupportsIndex

Index = SupportsIndex | slice | EllipsisType | None
"""One part of an index."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Evenly spaced elements of an array.

    Attributes:
        starts: per axis, the lowest index that is selected.
        steps: per axis, from one index to the next; 1 or more.
        counts: per axis, how many.
        reverse: per axis, whether they are wanted from the highest index down.
        shape: of the result; axes that an integer selects from are gone, those of None added.
        scalar: whether the result is a number rather than an array of no dimensions.
    """

    starts: tuple[int, ...]
    steps: tuple[int, ...]
    counts: tuple[int, ...]
    reverse: tuple[bool, ...]
    shape: tuple[int, ...]
    scalar: bool


def select(index: Index | tuple[Index, ...], shape: tuple[int, ...]) -> Grid:
    """Return what an index selects from an array of a shape.

    Raises:
        IndexError: an integer is out of range, there are more indices than axes, or one is of
            another kind, such as a list or a boolean array.
        ValueError: the step of a slice is 0.
    """
    parts = index if isinstance(index, tuple) else (index,)
    whole = all(_is_integer(part) for part in parts) and len(parts) == len(shape)
    ranges: list[range] = []
    result: list[int] = []
    for part in _expanded(parts, len(shape)):
        if part is None:
            result.append(1)
            continue
        length = shape[len(ranges)]
        if isinstance(part, slice):
            found = range(length)[part]
            result.append(len(found))
        else:
            found = _one(operator.index(part), length, len(ranges))
        ranges.append(found)
    ascending = [each if each.step > 0 else each[::-1] for each in ranges]
    return Grid(
        starts=tuple(each.start if each else 0 for each in ascending),
        steps=tuple(each.step if len(each) > 1 else 1 for each in ascending),
        counts=tuple(map(len, ranges)),
        reverse=tuple(each.step < 0 for each in ranges),
        shape=tuple(result),
        scalar=whole,
    )


def _expanded(parts: tuple[Index, ...], ndim: int) -> list[SupportsIndex | slice | None]:
    """Return the parts with as many full slices in place of the ellipsis as there are axes left."""
    for part in parts:
        if not (part is None or part is Ellipsis or isinstance(part, slice) or _is_integer(part)):
            raise IndexError(
                "only integers, slices (`:`), ellipsis (`...`) and numpy.newaxis (`None`) are "
                f"valid indices, not {type(part).__name__}; for others index what `[...]` returns"
            )
    used = sum(part is not None and part is not Ellipsis for part in parts)
    if used > ndim:
        raise IndexError(
            f"too many indices for array: array is {ndim}-dimensional, but {used} were indexed"
        )
    gaps = [at for at, part in enumerate(parts) if part is Ellipsis]
    if len(gaps) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    gap = gaps[0] if gaps else len(parts)
    rest = [slice(None)] * (ndim - used)
    return [*parts[:gap], *rest, *parts[gap + 1 :]]  # type: ignore[list-item]


def _is_integer(part: object) -> bool:
    return hasattr(type(part), "__index__") and not isinstance(part, bool) and _counts(part)


def _counts(part: object) -> bool:
    """Whether it is a number; arrays have `__index__` too, and most of them refuse."""
    try:
        operator.index(part)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _one(index: int, length: int, axis: int) -> range:
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of bounds for axis {axis} with size {length}")
    index %= length
    return range(index, index + 1)
