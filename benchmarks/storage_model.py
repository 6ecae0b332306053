"""Fit the storage-time model to some points of real tiers and predict the others.

Beside it stand the source's two formulas, given what it asks for: the rate of one request at a
time, the capacity of the storage, the number of its nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.options import Disk, chosen
from benchmarks.storage_stores import CLOSES_FAST
from tierstore.config import load_config
from tierstore.model.bench import Limits, copy_rate, describe_machine, measure
from tierstore.model.fit import Sample, fit
from tierstore.model.formulas import storage_derived, storage_printed
from tierstore.model.points import Measured, TierPoints, load_points
from tierstore.testing.servers import hdfs, minio

KIB, MIB = 1 << 10, 1 << 20
SIZES = {
    "local": (64 * KIB, 256 * KIB, MIB, 4 * MIB, 8 * MIB),
    "minio": (64 * KIB, 512 * KIB, 4 * MIB, 16 * MIB, 32 * MIB),
    "hdfs": (256 * KIB, MIB, 4 * MIB, 8 * MIB, 16 * MIB),
}
CONCURRENCY = (1, 2, 3, 4, 6, 8)
FITTED = (1, 2, 4, 8)
NODES = {"local": 1, "minio": 1, "hdfs": 2}
OPERATIONS = ("put", "get")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Median absolute relative errors on points that were left out; 0.15 is 15 %.

    Attributes:
        tier: which.
        operation: "put" or "get".
        fitted: points that were used.
        left_out: points whose size or concurrency is not among those.
        calibrated: the error of `tierstore.model.curve`.
        noise: the median standard error of the points that were left out, as measured.
        both: the same as `calibrated` on those where neither is; None if there are none.
        printed: of D/r + C/N.
        derived: of (D + C)/r.
        transfer: of D/r, the source's formula without its term of capacity.
    """

    tier: str
    operation: str
    fitted: int
    left_out: int
    calibrated: float
    noise: float
    both: float | None
    printed: float
    derived: float
    transfer: float


def judge(tier: TierPoints, operation: str, capacity: float) -> Verdict:
    """Fit every other size and the concurrencies 1, 2, 4 and 8, and predict the rest."""
    samples = tier.samples(operation)
    sizes = sorted({s.nbytes for s in samples})[::2]
    used = [s for s in samples if s.nbytes in sizes and s.concurrency in FITTED]
    rest = [s for s in samples if s not in used]
    new = [s for s in rest if s.nbytes not in sizes and s.concurrency not in FITTED]
    curve = fit(used).curve
    alone = max((s for s in used if s.concurrency == 1), key=lambda s: s.nbytes)
    rate, nodes = alone.nbytes / alone.seconds, NODES[tier.name]

    def error(points: list[Sample], predicted: Callable[[Sample], float]) -> float:
        return median(abs(predicted(s) / s.seconds - 1) for s in points)

    def calibrated(s: Sample) -> float:
        return curve.seconds(s.nbytes, s.concurrency)

    def moved(s: Sample) -> float:
        return s.nbytes * s.concurrency

    return Verdict(
        tier.name,
        operation,
        len(used),
        len(rest),
        error(rest, calibrated),
        median(s.uncertainty for s in rest),
        error(new, calibrated) if new else None,
        error(rest, lambda s: storage_printed(moved(s), rate, capacity, nodes)),
        error(rest, lambda s: storage_derived(moved(s), rate, capacity)),
        error(rest, lambda s: moved(s) / rate),
    )


@contextlib.contextmanager
def _place(name: str, at: Path) -> Iterator[str]:
    """Yield the URL of a fresh tier."""
    with contextlib.ExitStack() as stack:
        if name == "local":
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=at, prefix="tierstore-"))
            yield Path(folder).as_uri()
        elif name == "minio":
            server = stack.enter_context(minio())
            os.environ.update(server.environment())
            yield f"s3://{server.new_bucket()}/bench"
        else:
            cluster = stack.enter_context(hdfs(settings=CLOSES_FAST))
            os.environ.update(cluster.environment())
            yield cluster.url("/bench")


def _measure(name: str, at: Path, seconds: float) -> TierPoints:
    limits = Limits(seconds, 1 << 40, SIZES[name], CONCURRENCY, OPERATIONS)
    with _place(name, at) as url:
        (tier,) = load_config(url).tiers
        return replace(measure(tier, limits), name=name)


def markdown(verdicts: list[Verdict]) -> str:
    """Return the table."""
    lines = [
        "| tier | operation | fitted, left out | calibrated | neither size nor concurrency in the "
        "fit | the points' own standard error | D/r + C/N | (D + C)/r | D/r alone |",
        "|" + "---|" * 9,
    ]
    for v in verdicts:
        both = "" if v.both is None else f"{v.both:.1%}"
        lines.append(
            f"| {v.tier} | {v.operation} | {v.fitted}, {v.left_out} | {v.calibrated:.1%} | {both} "
            f"| {v.noise:.1%} | {v.printed:.1e} | {v.derived:.1e} | {v.transfer:.1%} |"
        )
    return "\n".join(lines)


def run(
    *,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write points and verdicts here.")
    ] = None,
    points: Annotated[
        Path | None, typer.Option(help="Judge points of an earlier run instead of measuring.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of measuring each tier.")] = 150.0,
    only: Annotated[list[str] | None, typer.Option(help="local, minio or hdfs.")] = None,
    place: Disk = Path(),
) -> None:
    """The calibrated model, and the source's two formulas, on points left out of the fit."""
    names = chosen(only, SIZES)
    if points is not None:
        measured = load_points(points)
    else:
        tiers = [_measure(name, place, seconds) for name in names]
        measured = Measured(describe_machine(), copy_rate(), tuple(tiers))
    capacity = float(shutil.disk_usage(place).total)
    verdicts = [judge(tier, each, capacity) for tier in measured.tiers for each in OPERATIONS]
    if json_file is not None:
        document = {**measured.to_json(), "verdicts": [asdict(v) for v in verdicts]}
        json_file.write_text(json.dumps(document, indent=1))
    print(markdown(verdicts))
