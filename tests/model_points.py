"""Points of tiers that follow a known curve exactly, as `tierstore bench` would have found them."""

from __future__ import annotations

import json
from pathlib import Path

from tierstore.model.curve import Curve
from tierstore.model.points import Measured, Point, TierPoints

K, M = 1 << 10, 1 << 20
SIZES = (64 * K, M, 8 * M, 32 * M)
TOGETHER = (1, 2, 4, 8)
NVME = Curve(1e-3, 1 / 1e9, 0.1, 0.0, 0.5, 0.0)
S3 = Curve(20e-3, 1 / 100e6, 0.0, 0.0, 0.01, 0.0)


def point(operation: str, size: int, many: int, curve: Curve, cpu: float = 1e-9) -> Point:
    seconds = curve.seconds(size, many)
    commit = curve.latency / 2 if operation == "put" else 0.0
    return Point(
        operation, size, many, 5, 5 * many, seconds, commit, seconds, seconds * 1.1, seconds * 1.3,
        seconds * 1.5, seconds, seconds * 1.2, many * size / seconds, cpu * size, stable=True,
    )  # fmt: skip


def tier(name: str, curve: Curve, *, local: bool, every: int = 1, **changed) -> TierPoints:
    points = [
        point(operation, size, many, curve)
        for operation, sizes in (("put", SIZES), ("get", SIZES), ("range", SIZES[:-1]))
        for size in sizes
        for many in TOGETHER
    ]
    keys = Curve(curve.latency, 1e-5)
    points += [point("list", n, many, keys) for n in (1, 8, 32) for many in TOGETHER]
    points += [point("first", 1, many, curve) for many in TOGETHER]
    url = f"file:///{name}/t" if local else f"s3://bucket/{name}"
    whole = {
        "concurrency": 8, "part_size": 32 * M, "read_size": 32 * M,
        "reads_back": False, "stopped": "stable", **changed,
    }  # fmt: skip
    return TierPoints(name=name, url=url, local=local, every=every, points=tuple(points), **whole)


def measured(*tiers: TierPoints) -> Measured:
    chosen = tiers or (tier("nvme", NVME, local=True), tier("s3", S3, local=False, every=10))
    return Measured({"cores": 64}, 8e9, chosen)


def write(path: Path, *tiers: TierPoints) -> str:
    path.write_text(json.dumps(measured(*tiers).to_json()))
    return str(path)
