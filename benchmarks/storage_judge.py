"""The calibrated model and the source's two formulas beside what was measured on a store."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from tierstore.errors import ModelError
from tierstore.model.curve import pipelined
from tierstore.model.fit import Sample, fit
from tierstore.model.formulas import storage_derived, storage_printed
from tierstore.model.tail import spread

FORMS = ("calibrated", "D/r", "derived", "printed")
"""Calibrated: ours. D/r: what both formulas share, alone. Derived and printed: the source's."""


def judge(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each point its predictions, in place; return a fit for each store and operation.

    r is the rate that was measured: the median of D/T over the points of the fit, or the client's
    own limit where that is lower. C is read kindly as what the store holds, not what it could hold.
    """
    found = []
    for store, operation in dict.fromkeys((p["store"], p["operation"]) for p in points):
        of = [p for p in points if (p["store"], p["operation"]) == (store, operation)]
        kept = [p for p in of if p["fitted"]]
        rate = median(p["bytes"] / p["seconds"]["median"] for p in kept)
        samples = [_sample(point) for point in kept]
        try:
            fitted = fit(samples)
        except ModelError as error:
            raise ModelError(f"{store}: {operation}: {error.message}", hint=error.hint) from None
        for point in of:
            calibrated = fitted.curve.seconds(point["request"], point["concurrency"])
            point["predicted"] = _predict(point, rate, calibrated)
        entry = {"store": store, "nodes": of[0]["nodes"], "operation": operation, "rate": rate}
        entry |= {"curve": asdict(fitted.curve), "intervals": fitted.intervals}
        found.append(entry | {"errors": errors(of)})
    return found


def _sample(point: dict[str, Any]) -> Sample:
    times = point["times"]
    error = 1.2533 * spread(times) / math.sqrt(len(times)) if len(times) > 1 else 0.0
    return Sample(point["request"], point["concurrency"], point["seconds"]["median"], error)


def _predict(point: dict[str, Any], rate: float, calibrated: float) -> dict[str, float]:
    data, capacity, limit = point["bytes"], point["capacity"], point["limit"]
    slower = min(rate, limit or rate)
    return {
        "calibrated": pipelined([calibrated, data / limit if limit else 0.0]),
        "D/r": data / slower,
        "derived": storage_derived(data, slower, capacity),
        "printed": storage_printed(data, slower, capacity, point["nodes"]),
    }


def errors(points: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the median absolute relative error of every form, over kinds of points.

    The kinds: "fitted", "held out" (other sizes or concurrencies), "C" and "r" (where these vary).
    """
    kinds: dict[str, list[dict[str, Any]]] = {"fitted": [], "held out": [], "C": [], "r": []}
    for point in points:
        kind = "fitted" if point["fitted"] else point["varied"].replace("D", "held out")
        kinds[kind].append(point)
    return {
        kind: {"points": len(of), **{form: median(_errors(of, form)) for form in FORMS}}
        for kind, of in kinds.items()
        if of
    }


def _errors(points: Sequence[dict[str, Any]], form: str) -> list[float]:
    return [abs(p["predicted"][form] / p["seconds"]["median"] - 1) for p in points]
