"""One measured call inside a worker process: wall time, client CPU, memory, bytes read."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Sample:
    """What one call cost its process.

    Attributes:
        wall: seconds.
        cpu: user and system seconds of this process and of its children that ended.
        extra_memory: bytes of resident memory, shared memory included, above the start at the peak.
        read: bytes that read system calls returned.
        stall: seconds for which the caller was blocked; the wall time unless the call says less.
    """

    wall: float
    cpu: float
    extra_memory: int
    read: int
    stall: float


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


def _cpu() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(call: Callable[[], float | None]) -> Sample:
    """Run `call` once. What it returns, if anything, is the stall in seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak; proc(5)
    memory, read, cpu, started = _status("VmRSS"), _bytes_read(), _cpu(), time.perf_counter()
    stall = call()
    wall = time.perf_counter() - started
    return Sample(
        wall=wall,
        cpu=_cpu() - cpu,
        extra_memory=max(0, _status("VmHWM") - memory),
        read=_bytes_read() - read,
        stall=wall if stall is None else stall,
    )


def at_once(workers: int, call: Callable[..., object], arguments: Iterable[Sequence[Any]]) -> None:
    """Call `call` with each of the tuples, so many at a time, and raise its first error."""
    if workers == 1:
        for each in arguments:
            call(*each)
        return
    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(call, *each) for each in arguments]:
            future.result()


def join_ranks(samples: Sequence[Sample]) -> Sample:
    """Return what a call cost all ranks: the slowest one's times, everyone's CPU and bytes."""
    return Sample(
        wall=max(s.wall for s in samples),
        cpu=sum(s.cpu for s in samples),
        extra_memory=sum(s.extra_memory for s in samples),
        read=sum(s.read for s in samples),
        stall=max(s.stall for s in samples),
    )


def summary(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Return the statistics of every figure; see `describe`."""
    figures: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in asdict(sample).items():
            figures.setdefault(name, []).append(float(value))
    return {name: describe(values) for name, values in figures.items()}


def describe(values: Sequence[float]) -> dict[str, float]:
    """Return minimum, median and maximum, and "low" to "high": the median's 95 % interval.

    The interval is a percentile bootstrap, B. Efron, *Ann. Statist.* 7(1), 1979. Of up to five
    values it reaches from the least to the greatest; of one there is none, and both are its value.
    """
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    low, high = found["min"], found["max"]
    if len(values) > 1:
        from scipy.stats import bootstrap  # a second to import, which no worker needs

        resampled = bootstrap(
            (values,),
            np.median,
            method="percentile",
            n_resamples=9999,
            rng=np.random.default_rng(7),
        )
        low, high = map(float, resampled.confidence_interval)
    return {**found, "low": low, "high": high, "count": float(len(values))}
