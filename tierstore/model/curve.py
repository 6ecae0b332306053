"""The calibrated model of one operation on one tier: size and concurrency give a time.

A request is two services one after the other: a latency that every request has, and the moving of
its bytes. Each slows down with the number of requests in flight by the universal scalability law
(N. J. Gunther, *Guerrilla Capacity Planning*, Springer 2007, chapter 4; a gain g, contention a and
coherence b)::

    X(c) = g c / (1 + a (c - 1) + b c (c - 1))      so   time(c) = (1 + a (c - 1) + b c (c - 1)) / g

and therefore, for a request of s bytes of which c are in flight::

    t(s, c) = t0 (1 + a0 (c - 1) + b0 c (c - 1)) + s/B (1 + a (c - 1) + b c (c - 1))

which for one size is again the law above, with g = 1 / (t0 + s/B). a = 1 and b = 0 is a device that
one request keeps busy: more in flight move no more bytes. b > 0 is one that gets slower.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tierstore.model.checks import not_negative, positive

Amount = TypeVar("Amount", float, npt.NDArray[np.float64])
"""A number, or an array of them."""


def slowdown(concurrency: Amount, contention: float, coherence: float) -> Amount:
    """Return by how much a request is slower among `concurrency` than alone."""
    more = concurrency - 1
    return 1 + contention * more + coherence * concurrency * more


@dataclass(frozen=True, slots=True)
class Usl:
    """The universal scalability law of one service.

    Attributes:
        gain: requests per second of one in flight.
        contention: the share that is served one at a time, from 0 up.
        coherence: what every pair costs, from 0 up.

    Raises:
        ModelError: a number is outside of its domain.
    """

    gain: float
    contention: float
    coherence: float

    def __post_init__(self) -> None:
        positive("gain g", self.gain, "per second")
        not_negative("contention a", self.contention)
        not_negative("coherence b", self.coherence)

    def throughput(self, concurrency: float) -> float:
        """Return X(c) in requests per second.

        Raises:
            ModelError: fewer than one request is in flight.
        """
        many = _in_flight(concurrency)
        return self.gain * many / slowdown(many, self.contention, self.coherence)

    @property
    def peak(self) -> float:
        """The concurrency of the highest throughput, sqrt((1 - a)/b); infinite without b."""
        if not self.coherence:
            return math.inf if self.contention < 1 else 1.0
        return max(1.0, math.sqrt(max(0.0, 1 - self.contention) / self.coherence))


@dataclass(frozen=True, slots=True)
class Curve:
    """One operation of one tier; the module says what the numbers mean.

    Attributes:
        latency: t0 in seconds, above 0.
        per_byte: 1/B in seconds per byte (per key of a listing), from 0 up.
        latency_contention: a0.
        latency_coherence: b0.
        contention: a.
        coherence: b.

    Raises:
        ModelError: a number is outside of its domain.
    """

    latency: float
    per_byte: float
    latency_contention: float = 0.0
    latency_coherence: float = 0.0
    contention: float = 0.0
    coherence: float = 0.0

    def __post_init__(self) -> None:
        positive("request latency t0", self.latency, "s")
        not_negative("time per byte 1/B", self.per_byte, "s")
        not_negative("contention a0 of the latency", self.latency_contention)
        not_negative("coherence b0 of the latency", self.latency_coherence)
        not_negative("contention a", self.contention)
        not_negative("coherence b", self.coherence)

    @property
    def bandwidth(self) -> float:
        """B in bytes/s of one request in flight; infinite where bytes cost nothing."""
        return 1 / self.per_byte if self.per_byte else math.inf

    def times(self, nbytes: Amount, concurrency: Amount) -> Amount:
        """Return seconds of one request; unchecked, for arrays."""
        waits = slowdown(concurrency, self.latency_contention, self.latency_coherence)
        moves = slowdown(concurrency, self.contention, self.coherence)
        return self.latency * waits + self.per_byte * nbytes * moves

    def seconds(self, nbytes: float, concurrency: float = 1) -> float:
        """Return how long one request of `nbytes` takes while `concurrency` are in flight.

        Raises:
            ModelError: a negative size, or fewer than one in flight.
        """
        size = not_negative("request size", nbytes, "bytes")
        return self.times(size, _in_flight(concurrency))

    def rate(self, nbytes: float, concurrency: float = 1) -> float:
        """Return the bytes/s that all requests in flight move together."""
        return nbytes * concurrency / self.seconds(nbytes, concurrency)

    def at_size(self, nbytes: float) -> Usl:
        """Return the law that requests of one size follow."""
        alone = self.seconds(nbytes)
        moving = self.per_byte * nbytes
        return Usl(
            1 / alone,
            (self.latency * self.latency_contention + moving * self.contention) / alone,
            (self.latency * self.latency_coherence + moving * self.coherence) / alone,
        )


def _in_flight(concurrency: float) -> float:
    many = positive("concurrency", concurrency)
    return many if many >= 1 else positive("concurrency less one", many - 1)


def roofline(**ceilings: float | None) -> tuple[float, str]:
    """Return the lowest ceiling in bytes/s and its name: device, network, CPU, the store itself.

    S. Williams, A. Waterman, D. Patterson, "Roofline", CACM 52(4), 2009: work runs at the lowest
    of what its resources allow. None is a ceiling that nobody knows.

    Raises:
        ModelError: there is none, or one is not above 0.
    """
    known = {
        name: positive(f"ceiling of the {name}", value, "bytes/s")
        for name, value in ceilings.items()
        if value is not None and value != math.inf
    }
    if not known:
        return math.inf, "nothing"
    lowest = min(known, key=lambda name: known[name])
    return known[lowest], lowest


def pipelined(stages: Iterable[float]) -> float:
    """Return seconds of stages that work on different pieces at once: the slowest one's."""
    return max((not_negative("a stage", stage, "s") for stage in stages), default=0.0)


def serial(stages: Iterable[float]) -> float:
    """Return seconds of stages that wait for each other: their sum."""
    return math.fsum(not_negative("a stage", stage, "s") for stage in stages)
