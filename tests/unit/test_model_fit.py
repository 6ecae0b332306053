"""Fitting the calibrated model: what it finds, how sure it is, and which points are missing."""

from __future__ import annotations

import builtins
import math
from statistics import median
from typing import Any

import numpy as np
import pytest

from tierstore.errors import ModelError
from tierstore.model.curve import Curve
from tierstore.model.fit import Sample, fit, left_out, relative_errors

SIZES = (65_536, 1 << 20, 8 << 20, 32 << 20)
TOGETHER = (1, 2, 4, 8)
TRUE = Curve(2e-3, 1 / 500e6, 0.05, 0.001, 0.4, 0.01)


def measured(curve: Curve, noise: float = 0.0, seed: int = 0, sizes=SIZES, together=TOGETHER):
    chance = np.random.default_rng(seed)
    return [
        Sample(s, c, curve.seconds(s, c) * math.exp(chance.normal(0, noise)))
        for s in sizes
        for c in together
    ]


@pytest.mark.parametrize(
    "curve",
    [
        TRUE,
        Curve(1e-4, 1 / 3e9, 0.3, 0.0, 1.0, 0.0),
        Curve(0.05, 1 / 50e6),
        Curve(1e-5, 1e-12),
    ],
    ids=["typical", "saturated", "scales", "only latency"],
)
def test_without_noise_the_truth_is_found(curve: Curve) -> None:
    found = fit(measured(curve))
    others = measured(curve, sizes=(256_000, 16 << 20), together=(3, 6))
    assert max(map(abs, relative_errors(found.curve, others))) < 0.02
    assert found.points == 16


def test_points_left_out_are_predicted_from_the_others() -> None:
    error = left_out(measured(TRUE, 0.05, seed=3))
    assert error is not None
    assert 0.001 < error < 0.1
    assert left_out(measured(TRUE, sizes=SIZES[:2], together=(1, 2, 4))) is None


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = total = 0
    for seed in range(8):
        found = fit(measured(TRUE, 0.05, seed))
        for name in ("latency", "per_byte", "contention"):
            low, high = found.intervals[name]
            assert low <= getattr(found.curve, name) <= high
            held += low <= getattr(TRUE, name) <= high
            total += 1
    assert held / total >= 0.8


def test_one_wild_point_does_not_bend_it() -> None:
    points = measured(TRUE, 0.02)
    wild = points[5]
    points[5] = Sample(wild.nbytes, wild.concurrency, wild.seconds * 20)
    found = fit(points)
    assert found.curve.bandwidth == pytest.approx(TRUE.bandwidth, rel=0.15)
    assert found.error < 0.05


def test_uncertain_points_count_less() -> None:
    rest = measured(TRUE)[6:]
    wrong = [(s.nbytes, s.concurrency, 2 * s.seconds) for s in measured(TRUE)[:6]]
    errors = {}
    for uncertainty in (0.0, 1.0):
        found = fit([*(Sample(*each, uncertainty) for each in wrong), *rest])
        errors[uncertainty] = median(map(abs, relative_errors(found.curve, rest)))
    assert errors[1.0] < errors[0.0] / 2


def test_of_two_concurrencies_only_contention_is_fitted() -> None:
    found = fit(measured(TRUE, together=(1, 4)))
    assert set(found.intervals) == {"latency", "per_byte", "latency_contention", "contention"}
    assert found.curve.coherence == 0


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "no measured points: nothing can be fitted"),
        ([Sample(1, 1, 1)], "1 measured point: nothing can be fitted"),
        (measured(TRUE, sizes=(1000,)), "all 4 points have the size 1000"),
        (measured(TRUE, together=(8,)), "all 4 points have the concurrency 8"),
        (measured(TRUE, sizes=SIZES[:2], together=(1, 4)), "4 points do not determine 4 numbers"),
        (measured(TRUE, sizes=SIZES[:2], together=(1, 2, 4)), "6 points do not determine 6"),
        ([*measured(TRUE), Sample(-1, 1, 1)], "its size is -1"),
        ([*measured(TRUE), Sample(1, 0, 1)], "its concurrency is 0"),
        ([*measured(TRUE), Sample(1, 1, 0)], "its time is 0"),
        ([*measured(TRUE), Sample(1, 1, math.nan)], "its time is nan"),
        ([*measured(TRUE), Sample(math.inf, 1, 1)], "its size is inf"),
    ],
)
def test_points_that_do_not_do(points: list[Sample], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fit(points)


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return load(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError, match=r"pip install 'tierstore\[model\]'"):
        fit(measured(TRUE))
