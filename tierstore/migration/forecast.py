"""How long a migration will take at least: some of what it would read is read."""

from __future__ import annotations

import heapq
import random
import time
from concurrent.futures import ThreadPoolExecutor

from tierstore.backend import Backend
from tierstore.errors import TierstoreError
from tierstore.transfer.source import AlignedBuffers

_PIECES = 64
_SECONDS = 2.0


class ReadForecast:
    """Chooses parts of what is planned at random, each part as likely as any other.

    That is a weighted reservoir: Efraimidis and Spirakis, Weighted random sampling with a
    reservoir, 2006 (A-Res).

    Args:
        source: where it is read.
    """

    def __init__(self, source: Backend) -> None:
        self._source = source
        self._part = source.capabilities.part_size
        self._chance = random.Random()
        self._chosen: list[tuple[float, str, int, int]] = []
        self._total = 0

    def add(self, key: str, size: int) -> None:
        """Take an object that would be read."""
        count = max(1, -(-size // self._part))
        self._total += count
        offset = self._chance.randrange(count) * self._part
        weight = self._chance.random() ** (1 / count)
        piece = (weight, key, offset, min(self._part, size - offset))
        push = heapq.heappush if len(self._chosen) < _PIECES else heapq.heappushpop
        push(self._chosen, piece)

    def seconds(self) -> float | None:
        """Read for two seconds at most; return how long all of it takes, None if unknown."""
        if not self._chosen:
            return 0.0
        width = self._source.capabilities.concurrency
        buffers = AlignedBuffers(self._part, width)
        begun, done = time.monotonic(), 0

        def read(piece: tuple[float, str, int, int]) -> int:
            _, key, offset, length = piece
            if time.monotonic() - begun > _SECONDS:
                return 0
            with buffers.take(length) as memory:
                try:
                    if length:
                        self._source.read_into(key, offset, memory)
                except TierstoreError:
                    return 0
            return 1

        with ThreadPoolExecutor(width, "tierstore-forecast") as pool:
            done = sum(pool.map(read, self._chosen))
        return (time.monotonic() - begun) * self._total / done if done else None
