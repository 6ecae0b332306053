"""What the storage-time comparison measures on one store: D, C and r varied, one at a time.

A transfer is c requests of s bytes, all at once: D = c s bytes, and it is over with the last of
them. Puts are durable and visible then; gets are held against what was written, and come from the
disk where the store is a folder.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import describe
from benchmarks.storage_stores import STORES, limited
from tierstore.backend import Backend
from tierstore.blocks import crc32c
from tierstore.config import TierConfig
from tierstore.model.probe import Cell, Probe
from tierstore.wrappers import open_tier

MIB = 1 << 20
FITTED = ((1 / 32, 1 / 4, 1), (1, 2, 4, 8))
"""Shares of the largest request, and requests at once, of the points the model is fitted to."""
HELD_OUT = ((1 / 8, 1 / 2), (3, 6))
"""Those of points that it is only held against; both are combined with the others too."""
OPERATIONS = ("put", "get")
_LARGEST = 32 * MIB  # of a request, or one part of the store where that is less
_BASE = (1 / 4, 4)  # size and requests at once where capacity or rate vary
_FILLS = (128 * MIB, 512 * MIB)
_RATES = (32 * MIB, 128 * MIB)  # a second
_STEADY = 16 * MIB  # in one round at least, as far as _MOST_EACH transfers suffice
_MOST_EACH = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """One point to measure.

    Attributes:
        cell: operation, bytes of a request, requests at once.
        fitted: the model is fitted to it.
        varied: "D", "C" or "r".
        fill: bytes that lie on the store besides.
        limit: bytes per second that the client allows itself; None for no limit.
    """

    cell: Cell
    fitted: bool = False
    varied: str = "D"
    fill: int = 0
    limit: int | None = None


@dataclass
class Store:
    """One store under test.

    Attributes:
        name: a key of `STORES`.
        tier: where it is.
        scale: share of all sizes, rates and fills.
        largest: bytes of the largest request at full scale.
        times: setting -> seconds of one transfer, one entry a round.
        capacity: setting -> bytes that the store held then.
    """

    name: str
    tier: TierConfig
    scale: float
    largest: int = _LARGEST
    times: dict[Setting, list[float]] = field(default_factory=dict)
    capacity: dict[Setting, int] = field(default_factory=dict)

    def measure(self, rounds: int, seconds: float) -> list[dict[str, Any]]:
        """Measure every setting once a round, in an order that changes; the first warms up.

        No round but the first that counts begins later than after `seconds`.
        """
        begun = time.monotonic()
        sizes = FITTED[0] + HELD_OUT[0]
        most = max(FITTED[1] + HELD_OUT[1])
        with (
            contextlib.closing(open_tier(self.tier)) as backend,
            self._probe(backend, sizes, most) as probe,
        ):
            settings, chance = list(self._sizes()), random.Random(1)
            for turn in range(rounds + 1):
                if turn > 1 and time.monotonic() - begun > seconds:
                    rounds = turn - 1
                    break
                chance.shuffle(settings)
                for setting in settings:
                    self._take(probe, setting, counts=turn > 0)
            for turn in range(rounds):
                self._capacities(backend, probe, first=turn % 2)
            for rate in _RATES:
                self._limited(round(rate * self.scale), rounds)
        return [self._point(setting) for setting in sorted(self.times, key=_order)]

    def _sizes(self) -> Iterator[Setting]:
        for operation in OPERATIONS:
            for size in sorted(FITTED[0] + HELD_OUT[0]):
                for many in sorted(FITTED[1] + HELD_OUT[1]):
                    fitted = size in FITTED[0] and many in FITTED[1]
                    yield Setting(Cell(operation, self._request(size), many), fitted=fitted)

    def _request(self, share: float) -> int:
        """Return the bytes of a request; what is written in one has to be one part at most."""
        return max(4096, round(share * self.largest * self.scale) // 4096 * 4096)

    @contextlib.contextmanager
    def _probe(self, backend: Backend, shares: tuple[float, ...], most: int) -> Iterator[Probe]:
        self.largest = min(_LARGEST, backend.capabilities.part_size)
        probe = Probe(backend, sorted({self._request(share) for share in shares}), most)
        with contextlib.closing(probe):
            probe.prepare()
            yield probe

    def _take(self, probe: Probe, setting: Setting, *, counts: bool = True) -> None:
        cell = setting.cell
        each = max(1, min(_MOST_EACH, round(_STEADY * self.scale) // cell.moved))
        seconds = max(probe.round(cell, each).ends) / each
        if counts:
            self.times.setdefault(setting, []).append(seconds)
            written = cell.moved if cell.operation == "put" else 0
            kept = probe.most * sum(probe.sizes)
            self.capacity[setting] = kept + setting.fill + written

    def _base(self, varied: str, fill: int = 0, limit: int | None = None) -> Iterator[Setting]:
        for operation in OPERATIONS:
            cell = Cell(operation, self._request(_BASE[0]), _BASE[1])
            yield Setting(cell, varied=varied, fill=fill, limit=limit)

    def _capacities(self, backend: Backend, probe: Probe, first: int) -> None:
        """Measure with more and more on the store, or with less and less."""
        for size in _FILLS[::-1] if first else _FILLS:
            fill = round(size * self.scale)
            keys = _fill(backend, fill)
            for setting in self._base("C", fill=fill):
                self._take(probe, setting)
            backend.delete(keys)

    def _limited(self, rate: int, rounds: int) -> None:
        """Measure behind the bandwidth limit, once what it saved up for a burst is gone."""
        with contextlib.closing(open_tier(limited(self.tier, rate))) as backend:
            with self._probe(backend, _BASE[:1], _BASE[1]) as probe:
                for setting in self._base("r", limit=rate):
                    begun = probe.moved
                    while probe.moved - begun < 2 * rate:
                        self._take(probe, setting, counts=False)
                    for _ in range(rounds):
                        self._take(probe, setting)

    def _point(self, setting: Setting) -> dict[str, Any]:
        cell = setting.cell
        return {
            "store": self.name,
            "nodes": STORES[self.name].nodes,
            "operation": cell.operation,
            "request": cell.nbytes,
            "concurrency": cell.concurrency,
            "bytes": cell.moved,
            "capacity": self.capacity[setting],
            "limit": setting.limit,
            "varied": setting.varied,
            "fitted": setting.fitted,
            "seconds": describe(self.times[setting]),
            "times": self.times[setting],
        }


def _order(setting: Setting) -> tuple[int, ...]:
    """As people read them, and not as chance had it."""
    cell = setting.cell
    first = OPERATIONS.index(cell.operation), "DCr".index(setting.varied)
    return *first, setting.fill, setting.limit or 0, cell.nbytes, cell.concurrency


def _fill(backend: Backend, nbytes: int) -> list[str]:
    """Write so many bytes that nobody reads; return the keys."""
    block = memoryview(os.urandom(min(nbytes, 8 * MIB)))
    keys = [f"fill/{number}" for number in range(max(1, nbytes // len(block)))]
    for key in keys:
        upload = backend.upload(key, len(block))
        upload.write(0, block, crc32c(block))
        upload.commit(crc32c=crc32c(block))
    return keys
