"""Runs of a tensor's bytes, however it is sharded."""

from __future__ import annotations

import random
from itertools import pairwise, product
from math import prod
from types import SimpleNamespace

import numpy as np
import pytest

from tierstore.checkpoint.manifest import Tensor
from tierstore.convert.ranges import boxes, range_wants


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4), (1, 5, 1, 2)])
def test_boxes_are_the_elements_in_order(shape: tuple[int, ...]) -> None:
    numbers = np.arange(prod(shape)).reshape(shape)
    for begin, end in product(range(numbers.size + 1), repeat=2):
        found: list[int] = []
        for low, high in boxes(shape, begin, end):
            part = numbers[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            assert part.size
            found += part.ravel().tolist()
        assert found == list(range(begin, end))


def test_boxes_are_few() -> None:
    assert len(list(boxes((100, 100, 100), 1, 999_999))) == 5


def sharded(shape: tuple[int, ...], seed: int) -> tuple[Tensor, np.ndarray, dict[str, bytes]]:
    """A float16 tensor in chunks of a random grid, and the files that they are in."""
    chance = random.Random(seed)
    whole = np.random.default_rng(seed).integers(0, 2**16, shape, np.uint16)
    cuts = [sorted({0, n, *chance.choices(range(1, n + 1), k=2)}) for n in shape]
    offsets, sizes, files, places = [], [], [], []
    contents = {"a": bytearray(b"x" * 10), "b": bytearray()}
    for corner in product(*(pairwise(c) for c in cuts)):
        offsets.append([low for low, _ in corner])
        sizes.append([high - low for low, high in corner])
        files.append(chance.randrange(2))
        data = contents["ab"[files[-1]]]
        places.append(len(data))
        data += whole[tuple(slice(*edge) for edge in corner)].tobytes()
    lengths = [2 * prod(size) for size in sizes]
    arrays = [np.array(column, np.int64) for column in (offsets, sizes, files, places, lengths)]
    names = ("offsets", "sizes", "files", "byte_offsets", "nbytes")
    columns = dict(zip(names, arrays, strict=True))
    place = (files[0], places[0]) if len(files) == 1 else None
    tensor = SimpleNamespace(dtype="float16", shape=shape, only_place=place, **columns)
    return tensor, whole, dict(contents)  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(8))
def test_any_run_of_bytes_is_put_together(seed: int) -> None:
    chance = random.Random(seed)
    tensor, whole, files = sharded(chance.choice([(50,), (9, 14), (4, 5, 6)]), seed)
    flat = whole.tobytes()
    for _ in range(60):
        begin = chance.randrange(len(flat))
        length = chance.randrange(1, len(flat) - begin + 1)
        into = bytearray(length)
        for want in range_wants(tensor, ["a", "b"], begin, memoryview(into)):
            data = files[want.file][want.offset : want.offset + want.length]
            assert len(data) == want.length
            if want.into is not None:
                want.into[:] = data
            elif want.sink is not None:
                want.sink(memoryview(data))
        assert into == flat[begin : begin + length]
