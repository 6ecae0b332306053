"""What the parts of the contract suite share: the hooks, and a few helpers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from tierstore.backend import Backend
from tierstore.blocks import BLOCK_SIZE

T = TypeVar("T")

ODD_KEYS = (
    "a!b",
    "a-b",
    "a/b c",
    "a/b/c",
    "a/é",
    "a0",
    "a%2Fb",
    "a+b",
    "a b/c d",
    "B",
    "b/~tilde",
    "b/'quote\"",
    "b/#?&=;:@$,",
    "ä/ö",
    "\u20ac",
    "\U0001f600/x",
    "z/.hidden",
    "z/" + "n" * 200,
)
"""Keys that are easily encoded or sorted wrongly. None is a folder of another: see local."""


class Hooks:
    """What a backend's test provides."""

    #: Without those that the store itself cannot hold, such as a colon on HDFS.
    odd_keys = ODD_KEYS

    def open(self) -> Backend:
        """Open a backend on the test's own place; may be called again for the same place."""
        raise NotImplementedError

    def raw_get(self, key: str) -> bytes:
        """Return an object's bytes without the code under test."""
        raise NotImplementedError

    def raw_put(self, key: str, data: bytes) -> None:
        """Store an object without the code under test."""
        raise NotImplementedError

    def raw_list(self) -> list[str]:
        """Return all keys, in any order, without the code under test."""
        raise NotImplementedError

    def raw_uploads(self) -> Sequence[object]:
        """Return what unfinished uploads there are, without the code under test."""
        raise NotImplementedError

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        """An open backend, closed after the test."""
        backend = self.open()
        yield backend
        backend.close()


def noise(size: int, seed: int = 0) -> bytes:
    """Return `size` bytes that are not compressible and differ by seed."""
    return random.Random(f"{seed}/{size}").randbytes(size)


def part_size(backend: Backend) -> int:
    """Return the smallest whole number of blocks that may be a part."""
    return -(-max(1, backend.capabilities.min_part) // BLOCK_SIZE) * BLOCK_SIZE


def read(backend: Backend, key: str, offset: int, length: int) -> bytes:
    """Return a range of an object."""
    buffer = bytearray(length)
    backend.read_into(key, offset, memoryview(buffer))
    return bytes(buffer)


def together(count: int, work: Callable[[int], T]) -> list[T | Exception]:
    """Run `work(0)` to `work(count - 1)` at the same time; return results or errors."""

    def caught(index: int) -> T | Exception:
        try:
            return work(index)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(caught, range(count)))
