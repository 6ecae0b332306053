"""Tiling: random cuts are accepted, and every change that matters is found, against painting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.checkpoint.tiling import MAX_POINTS, Boxes, TilingFault
from tierstore.errors import FormatError

Box = tuple[tuple[int, ...], tuple[int, ...]]
Tensor = tuple[tuple[int, ...], list[Box]]


def cut(draw: st.DrawFn, box: Box, depth: int) -> list[Box]:
    """Cut a box in two along some axis, again and again."""
    offsets, sizes = box
    axes = [axis for axis, size in enumerate(sizes) if size > 1]
    if not axes or depth == 0 or not draw(st.booleans()):
        return [box]
    axis = draw(st.sampled_from(axes))
    at = draw(st.integers(1, sizes[axis] - 1))
    low = (offsets, (*sizes[:axis], at, *sizes[axis + 1 :]))
    high = (
        (*offsets[:axis], offsets[axis] + at, *offsets[axis + 1 :]),
        (*sizes[:axis], sizes[axis] - at, *sizes[axis + 1 :]),
    )
    return cut(draw, low, depth - 1) + cut(draw, high, depth - 1)


@st.composite
def tilings(draw: st.DrawFn) -> list[Tensor]:
    dims = draw(st.integers(0, 4))
    tensors = []
    for _ in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(0, 5), min_size=dims, max_size=dims)))
        boxes = cut(draw, ((0,) * dims, shape), 4)
        tensors.append((shape, draw(st.permutations(boxes))))
    return tensors


def boxes_of(tensors: list[Tensor]) -> Boxes:
    dims = len(tensors[0][0])
    rows = [(t, *box) for t, (_, boxes) in enumerate(tensors) for box in boxes]
    return Boxes(
        np.array([shape for shape, _ in tensors], np.int64).reshape(len(tensors), dims),
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int64).reshape(len(rows), dims),
        np.array([row[2] for row in rows], np.int64).reshape(len(rows), dims),
    )


def painted(tensors: list[Tensor]) -> set[TilingFault]:
    """The first wrong element of each tensor, found by painting."""
    faults = set()
    for index, (shape, boxes) in enumerate(tensors):
        canvas = np.zeros(shape, int)
        for offsets, sizes in boxes:
            canvas[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))] += 1
        wrong = np.argwhere(canvas != 1)
        if len(wrong):
            element = tuple(wrong[0].tolist())
            faults.add(TilingFault(index, element, int(canvas[element])))
    return faults


@given(tilings())
def test_every_tiling_is_accepted(tensors: list[Tensor]) -> None:
    boxes = boxes_of(tensors)
    assert boxes.first_outside() is None
    assert boxes.first_fault() is None


@given(tilings(), st.data())
def test_any_change_is_judged_as_painting_judges_it(tensors: list[Tensor], data: st.DataObject):
    for _ in range(data.draw(st.integers(1, 3))):
        shape, boxes = data.draw(st.sampled_from(tensors))
        if not boxes or 0 in shape:
            continue
        at = data.draw(st.integers(0, len(boxes) - 1))
        change = data.draw(st.sampled_from(["drop", "twice", "move", "resize"]))
        if change == "drop":
            del boxes[at]
        elif change == "twice":
            boxes.append(boxes[at])
        elif shape:
            axis = data.draw(st.integers(0, len(shape) - 1))
            offsets, sizes = map(list, boxes[at])
            if change == "move":
                offsets[axis] = data.draw(st.integers(0, shape[axis] - sizes[axis]))
            else:
                sizes[axis] = data.draw(st.integers(0, shape[axis] - offsets[axis]))
            boxes[at] = (tuple(offsets), tuple(sizes))
    found, expected = boxes_of(tensors).first_fault(), painted(tensors)
    assert (found is None) == (not expected)
    assert found is None or found in expected


@given(tilings(), st.data())
def test_a_chunk_outside_is_found(tensors: list[Tensor], data: st.DataObject) -> None:
    tensor, axis = data.draw(st.integers(0, len(tensors) - 1)), 0
    shape, boxes = tensors[tensor]
    if not shape:
        return
    at = data.draw(st.integers(0, len(boxes) - 1))
    (first, *offsets), (size, *sizes) = boxes[at]
    kind = data.draw(st.sampled_from(["before", "after", "negative"]))
    if kind == "before":
        first = -data.draw(st.integers(1, 2**62))
    elif kind == "after":
        first = shape[axis] - size + data.draw(st.integers(1, 2**62))
    else:
        size = -data.draw(st.integers(1, 2**62))
    boxes[at] = ((first, *offsets), (size, *sizes))
    outside = boxes_of(tensors).first_outside()
    assert outside == sum(len(b) for _, b in tensors[:tensor]) + at


def test_the_chunks_that_hold_a_faulty_element() -> None:
    tensors: list[Tensor] = [((4,), [((0,), (3,)), ((2,), (2,)), ((3,), (1,))])]
    boxes = boxes_of(tensors)
    fault = boxes.first_fault()
    assert fault == TilingFault(0, (2,), 2)
    assert boxes.holding(fault).tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(2, 2), (0, 3), ()])
def test_a_tensor_without_chunks_is_a_hole(shape: tuple[int, ...]) -> None:
    assert boxes_of([(shape, [])]).first_fault() == TilingFault(0, (0,) * len(shape), 0)


@pytest.mark.parametrize("shape", [(2, 2), (0, 3), ()])
def test_a_whole_tensor_written_twice(shape: tuple[int, ...]) -> None:
    whole = ((0,) * len(shape), shape)
    assert boxes_of([(shape, [whole, whole])]).first_fault() == TilingFault(0, (0,) * len(shape), 2)


def test_a_pinwheel_which_no_grid_holds() -> None:
    wheel: list[Box] = [
        ((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1)),
    ]  # fmt: skip
    assert boxes_of([((3, 3), wheel)]).first_fault() is None
    assert boxes_of([((3, 3), wheel[:-1])]).first_fault() == TilingFault(0, (1, 1), 0)


def test_points_that_cannot_be_numbered_are_known_before_they_overflow() -> None:
    huge: list[Tensor] = [((2**40, 2**40), [((0, 0), (2**40, 2**40))])]
    assert boxes_of(huge).points > MAX_POINTS


def test_cut_along_too_many_dimensions() -> None:
    shape, half = (2,) * 13, (1,) * 13
    with pytest.raises(FormatError, match="12 dimensions"):
        boxes_of([(shape, [((0,) * 13, half)])]).first_fault()
