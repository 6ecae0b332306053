"""Young's and Daly's intervals against what they published, and the closed form of a ladder."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from tierstore.errors import ModelError
from tierstore.model.interval import best_interval, daly, efficiency, expected, young
from tierstore.model.job import Job, Rung

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
TIME = st.floats(1, 1e5)


@pytest.mark.parametrize(
    ("mtbf", "minutes", "digits"), [(24 * HOUR, 117, 0), (6 * HOUR, 57, 0), (15 * MINUTE, 9.1, 1)]
)
def test_the_intervals_that_daly_published(mtbf: float, minutes: float, digits: int) -> None:
    """Captions of figures 3 to 5: dumps of 5 minutes."""
    assert round(daly(5 * MINUTE, mtbf) / MINUTE, digits) == minutes


def test_the_interval_that_graphlab_published_by_young() -> None:
    """Low et al., "Distributed GraphLab", VLDB 2012: 64 machines, a year each, 2 minutes: 3 h."""
    assert young(2 * MINUTE, 365 * DAY / 64) / HOUR == pytest.approx(3, abs=0.05)


@given(st.floats(1, 1e4), st.floats(1, 1e6))
def test_dalys_interval_is_close_to_the_best_of_his_model(save: float, mtbf: float) -> None:
    found = minimize_scalar(
        lambda log: -efficiency(math.exp(log), save, mtbf),
        bounds=(math.log(mtbf / 1e4), math.log(mtbf * 3)),
        method="bounded",
    )
    best, ours = -found.fun, efficiency(daly(save, mtbf), save, mtbf)
    assert ours == pytest.approx(best, rel=0.01) or best < 0.1


@given(TIME, TIME, TIME)
def test_young_is_daly_where_saves_are_short(save: float, mtbf: float, factor: float) -> None:
    assert young(save, mtbf) == pytest.approx(math.sqrt(2 * save * mtbf))
    long = save * (1e6 + factor)
    assert daly(save, long) == pytest.approx(young(save, long), rel=0.01)
    assert daly(2 * mtbf, mtbf) == mtbf


def blocking(save: float, mtbf: float, restart: float, interval: float) -> Job:
    return Job(1, mtbf, interval, save, restart, (Rung("t", 0.0),))


@given(st.floats(1, 100), st.floats(1e5, 1e7), st.floats(0, 1000))
def test_of_blocking_saves_the_ladder_is_dalys_model(
    save: float, mtbf: float, restart: float
) -> None:
    at = young(save, mtbf)
    ladder = expected(blocking(save, mtbf, restart, at)).goodput
    assert ladder == pytest.approx(efficiency(at, save, mtbf, restart), abs=(at / mtbf) ** 2 + 1e-3)


def test_a_ladder_by_hand() -> None:
    """100 s of work, a stall of 1, nvme after 10, s3 every 4th after 10 + 50."""
    rungs = (Rung("nvme", 10, 5), Rung("s3", 50, 20, every=4, shared=True))
    job = Job(1000, 1000 * DAY, 100, 1, 60, rungs, node_loss=0.25)
    found = expected(job)
    assert (found.stall, found.behind, found.failures_per_day) == (1, (), 1)
    assert found.lost == pytest.approx((101 / 2 + 11) * 100 / 101)
    assert found.lost_if_node == pytest.approx((4 * 101 / 2 + 61) * 100 / 101)
    assert found.down == pytest.approx(0.75 * 65 + 0.25 * 80)
    mean = 0.75 * found.lost + 0.25 * found.lost_if_node
    assert found.lost_per_day == pytest.approx(mean)
    assert found.goodput == pytest.approx(((DAY - found.down) * 100 / 101 - mean) / DAY)


def test_a_slow_first_tier_stalls_and_a_slow_lower_one_falls_behind() -> None:
    first = Job(1, DAY, 10, 1, 0, (Rung("slow", 30),))
    assert expected(first).stall == pytest.approx(21)
    lower = Job(1, DAY, 10, 1, 0, (Rung("fast", 1), Rung("slow", 30, every=2, shared=True)))
    assert expected(lower).behind == ("slow",)
    assert best_interval(lower) >= 14
    assert "slow" not in expected(lower.at(best_interval(lower))).behind


def test_without_a_shared_tier_a_lost_node_loses_everything() -> None:
    job = Job(1, DAY, 100, 1, 0, (Rung("nvme", 1),), node_loss=0.1)
    assert expected(job).lost_if_node == math.inf
    assert expected(job).goodput == 0


@given(TIME, st.floats(1e3, 1e7), st.integers(1, 10_000), st.floats(0, 1))
def test_more_failures_are_never_better(write: float, mtbf: float, nodes: int, loss: float) -> None:
    rungs = (Rung("nvme", write), Rung("s3", 2 * write, every=5, shared=True))
    job = Job(nodes, mtbf * nodes, 600, 1, 60, rungs, node_loss=loss)
    more = Job(nodes, mtbf * nodes / 2, 600, 1, 60, rungs, node_loss=loss)
    assert expected(more).goodput <= expected(job).goodput
    assert 0 <= expected(job).goodput < 1
    assert expected(more).lost_per_day >= expected(job).lost_per_day


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": 0}, "number of nodes is 0"),
        ({"node_mtbf": -1.0}, "mean time between failures of a node is -1.0 s"),
        ({"interval": 0.0}, "interval is 0.0 s"),
        ({"stall": math.nan}, "stall is nan s"),
        ({"node_loss": 2.0}, "share of failures that lose a node is 2.0"),
        ({"images": 0}, "number of staging images is 0"),
        ({"rungs": ()}, "there is no tier"),
        ({"rungs": (Rung("s3", 1, every=2),)}, "tier s3 is the first, so 'every' is 1"),
    ],
)
def test_jobs_that_cannot_be(change: dict, message: str) -> None:
    whole = {"nodes": 1, "node_mtbf": 1.0, "interval": 1.0, "stall": 1.0, "restart": 0.0}
    with pytest.raises(ModelError, match=message):
        Job(**{"rungs": (Rung("t", 1),), **whole, **change})


def test_rungs_that_cannot_be() -> None:
    with pytest.raises(ModelError, match="write of tier t is -1"):
        Rung("t", -1)
    with pytest.raises(ModelError, match="'every' of tier t is 0"):
        Rung("t", 1, every=0)
    for call in (young, daly):
        with pytest.raises(ModelError, match="MTBF is 0 s"):
            call(1, 0)
