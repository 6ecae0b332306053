"""The calibrated model: the law of scalability, rooflines, stages and the slowest rank."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import ModelError
from tierstore.model.curve import Curve, Usl, pipelined, roofline, serial
from tierstore.model.tail import slowest, spread

SHARE = st.floats(0, 1)
TIME = st.floats(1e-6, 10)


@given(st.floats(0.1, 1e6), SHARE, SHARE, st.integers(1, 1000))
def test_the_law_as_it_is_written(g: float, a: float, b: float, c: int) -> None:
    wanted = g * c / (1 + a * (c - 1) + b * c * (c - 1))
    assert Usl(g, a, b).throughput(c) == pytest.approx(wanted)


def test_its_peak() -> None:
    law = Usl(10, 0.1, 0.001)
    assert law.peak == pytest.approx(30)
    assert law.throughput(30) > max(law.throughput(29), law.throughput(31))
    assert Usl(10, 0.1, 0).peak == math.inf
    assert Usl(10, 1, 0).peak == 1


@given(TIME, st.floats(0, 1e-6), SHARE, SHARE, st.integers(1, 64), st.integers(0, 1 << 30))
def test_a_request_of_one_size_follows_the_law(
    t0: float, per_byte: float, a: float, b: float, c: int, size: int
) -> None:
    curve = Curve(t0, per_byte, a / 2, b / 2, a, b)
    law = curve.at_size(size)
    assert c / curve.seconds(size, c) == pytest.approx(law.throughput(c))
    assert curve.seconds(size) == pytest.approx(t0 + size * per_byte)
    assert curve.seconds(size, c + 1) >= curve.seconds(size, c)
    assert curve.seconds(size + 1, c) >= curve.seconds(size, c)


def test_a_device_that_one_request_keeps_busy_moves_no_more_with_many() -> None:
    curve = Curve(1e-9, 1 / 500e6, contention=1)
    assert curve.bandwidth == pytest.approx(500e6)
    for c in (1, 4, 64):
        assert curve.rate(1 << 30, c) == pytest.approx(500e6, rel=1e-6)
    assert Curve(1, 0).bandwidth == math.inf


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Curve(0, 1),
        lambda: Curve(1, -1),
        lambda: Curve(1, 1, contention=math.nan),
        lambda: Curve(1, 1).seconds(-1),
        lambda: Curve(1, 1).seconds(1, 0),
        lambda: Curve(1, 1).seconds(1, 0.5),
        lambda: Usl(-1, 0, 0),
        lambda: Usl(1, -0.1, 0),
        lambda: roofline(network=0),
        lambda: pipelined([1, -1]),
        lambda: serial([math.nan]),
        lambda: slowest(0, 0.1),
        lambda: slowest(1, -0.1),
        lambda: slowest(1, 0.1, 1.0),
        lambda: spread([1]),
        lambda: spread([1, 0]),
    ],
)
def test_wrong_numbers(wrong) -> None:
    with pytest.raises(ModelError):
        wrong()


def test_the_lowest_ceiling_and_its_name() -> None:
    assert roofline(device=3e9, network=1e9, cpu=None) == (1e9, "network")
    assert roofline(device=None) == (math.inf, "nothing")


@given(st.lists(st.floats(0, 1e6), max_size=8))
def test_stages(stages: list[float]) -> None:
    assert pipelined(stages) <= serial(stages) <= len(stages) * pipelined(stages) + 1e-6
    assert pipelined(stages) == max(stages, default=0)


def test_the_slowest_of_many_is_as_drawn() -> None:
    chance = random.Random(1)
    drawn = [max(chance.lognormvariate(0, 0.3) for _ in range(200)) for _ in range(2000)]
    assert slowest(200, 0.3) == pytest.approx(median(drawn), rel=0.02)
    within = sum(each <= slowest(200, 0.3, 0.9) for each in drawn) / len(drawn)
    assert within == pytest.approx(0.9, abs=0.02)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_more_ranks_are_never_faster(n: int, sigma: float) -> None:
    assert slowest(n + 1, sigma) >= slowest(n, sigma) >= 1 - 1e-9
    assert slowest(1, sigma) == pytest.approx(1)


def test_the_spread_ignores_outliers() -> None:
    chance = random.Random(2)
    times = [chance.lognormvariate(1, 0.2) for _ in range(500)]
    assert spread(times) == pytest.approx(0.2, rel=0.15)
    assert spread([*times, *[1000.0] * 20]) == pytest.approx(0.2, rel=0.2)
