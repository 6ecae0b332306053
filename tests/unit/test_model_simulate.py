"""The simulator against closed forms, published results and a drawn-out fluid model."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierstore.errors import ModelError
from tierstore.model.interval import efficiency, expected
from tierstore.model.job import Job, Rung
from tierstore.model.simulate import Chance, simulate

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
LADDER = (
    Rung("nvme", 20, 15, spread=0.1),
    Rung("s3", 200, 150, every=10, shared=True, write_floor=300, spread=0.2),
)
BIG = Job(10_000, 5 * 365 * DAY, 120, 1.0, 300, LADDER, node_loss=0.3)


def dalys(mtbf: float, interval: float) -> Job:
    """The setting of Daly's figures 3 to 5: dumps of 5 minutes, restarts of 10, both blocking."""
    return Job(1, mtbf, interval, 5 * MINUTE, 10 * MINUTE, (Rung("t", 0.0),))


def goodputs(job: Job, days: float, seeds: int = 12) -> tuple[float, float]:
    """The mean over seeds and its standard error."""
    found = [simulate(job, days, Chance(seed)).goodput for seed in range(seeds)]
    return fmean(found), stdev(found) / seeds**0.5


@pytest.mark.parametrize(
    ("mtbf", "minutes"), [(24 * HOUR, 117), (6 * HOUR, 57), (15 * MINUTE, 9.1)]
)
def test_it_agrees_with_dalys_complete_model(mtbf: float, minutes: float) -> None:
    interval = minutes * MINUTE
    mean, error = goodputs(dalys(mtbf, interval), 600 * mtbf / DAY)
    exact = efficiency(interval, 5 * MINUTE, mtbf, 10 * MINUTE)
    assert abs(mean - exact) < 4 * error
    assert error < 0.01 * max(exact, 0.2)


def test_the_published_interval_is_better_than_others() -> None:
    best, error = goodputs(dalys(6 * HOUR, 57 * MINUTE), 300)
    for factor in (0.3, 3):
        other, _ = goodputs(dalys(6 * HOUR, factor * 57 * MINUTE), 300)
        assert best > other + 4 * error


def test_it_agrees_with_the_closed_form_of_a_ladder() -> None:
    job = replace(BIG, node_mtbf=10 * BIG.node_mtbf)  # first order: few failures a saved state
    flat = tuple(replace(rung, spread=0.0) for rung in LADDER)
    job = replace(job, rungs=flat)
    mean, error = goodputs(job, 60)
    exact = expected(job)
    assert abs(mean - exact.goodput) < 4 * error + 1e-3
    runs = [simulate(job, 365, Chance(seed)) for seed in range(6)]
    failures = sum(run.failures for run in runs)
    assert failures == pytest.approx(6 * 365 * exact.failures_per_day, rel=0.1)
    assert sum(run.lost for run in runs) / failures == pytest.approx(
        exact.lost_per_day / exact.failures_per_day, rel=0.15
    )
    assert runs[0].durable_after["s3"] == pytest.approx(1 + 20 + 300)


def test_a_month_of_ten_thousand_nodes() -> None:
    found = simulate(BIG, 30, Chance(1, stragglers=1e-4, slowness=3))
    calm = simulate(BIG, 30, Chance(1))
    assert found.failures == pytest.approx(30 * 86_400 / BIG.mtbf, rel=0.3)
    assert found.durable_after["nvme"] > calm.durable_after["nvme"] * 1.3
    assert found.seconds == pytest.approx(
        found.work + found.lost + found.stalled + found.down, rel=0.001
    )
    assert found == simulate(BIG, 30, Chance(1, stragglers=1e-4, slowness=3)), "by the seed"


@given(
    rates=st.lists(st.floats(0.1, 10), min_size=1, max_size=12),
    capacity=st.floats(0.5, 50),
)
def test_nodes_share_a_store_as_fluids_do(rates: list[float], capacity: float) -> None:
    """Max-min fair shares, followed from one node's end to the next, end when `write_with` says."""
    left, now = dict(enumerate([1.0] * len(rates))), 0.0
    while left:
        shares, room = {}, capacity
        for count, node in enumerate(sorted(left, key=lambda n: rates[n])):
            shares[node] = min(rates[node], room / (len(left) - count))
            room -= shares[node]
        step = min(left[node] / shares[node] for node in left)
        now += step
        left = {n: rest for n in left if (rest := left[n] - shares[n] * step) > 1e-9}
    rung = Rung("s3", 1.0, write_floor=len(rates) / capacity)
    assert rung.write_with(1 / min(rates)) == pytest.approx(now, rel=1e-6)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    mtbf=st.floats(2e3, 1e6),
    every=st.integers(1, 20),
    loss=st.floats(0, 1),
    images=st.integers(1, 3),
)
def test_time_is_neither_lost_nor_made(
    seed: int, mtbf: float, every: int, loss: float, images: int
) -> None:
    rungs = (Rung("nvme", 70, 15, spread=0.1), Rung("s3", 200, 150, every=every, shared=True))
    job = Job(4, 4 * mtbf, 60, 1, 30, rungs, node_loss=loss, images=images)
    found = simulate(job, 2, Chance(seed, shape=0.8))
    spent = found.work + found.lost + found.stalled + found.down
    assert spent == pytest.approx(found.seconds, rel=1e-6)
    assert min(found.work, found.lost, found.stalled, found.down) >= 0
    assert found.longest_stall >= 1 or not found.saves


def test_more_failures_lose_more() -> None:
    goods = [simulate(replace(BIG, node_mtbf=BIG.node_mtbf / k), 30).goodput for k in (1, 4, 16)]
    assert goods == sorted(goods, reverse=True)


def test_lost_nodes_cost_what_lower_tiers_lack() -> None:
    kept = simulate(replace(BIG, node_loss=0.0), 60)
    gone = simulate(replace(BIG, node_loss=1.0), 60)
    assert gone.lost / gone.failures > 3 * kept.lost / kept.failures
    alone = simulate(replace(BIG, rungs=LADDER[:1], node_loss=1.0), 60)
    assert alone.from_start == alone.failures


def test_a_first_tier_that_is_too_slow_stalls_the_trainer() -> None:
    job = Job(1, 1e12, 60, 1, 0, (Rung("slow", 100),))
    found = simulate(job, 1)
    assert found.mean_stall == pytest.approx(expected(job).stall, rel=0.02)
    assert found.longest_stall == pytest.approx(41)
    assert simulate(replace(job, rungs=(Rung("fast", 50),)), 1).longest_stall == 1


def test_a_lower_tier_that_is_too_slow_skips_saves() -> None:
    rungs = (Rung("fast", 1), Rung("slow", 300, shared=True))
    found = simulate(Job(1, 1e12, 60, 1, 0, rungs), 1)
    taken = found.saves - found.skipped["slow"]
    assert taken == pytest.approx(DAY / 300, rel=0.05)
    assert not found.skipped["fast"]


def test_infant_mortality_strikes_a_new_job_more_often() -> None:
    early = simulate(BIG, 30, Chance(1, shape=0.7)).failures
    assert early > 1.5 * simulate(BIG, 30, Chance(1)).failures


@given(
    st.tuples(*[st.sampled_from([1e-30, 1e-9, 1.0, 1e9, 1e30])] * 5),
    st.sampled_from([1, 3, 100]),
)
@settings(max_examples=30)
def test_it_ends_whatever_the_numbers(numbers: tuple[float, ...], nodes: int) -> None:
    mtbf, interval, stall, write, days = numbers
    job = Job(nodes, mtbf, interval, stall, 0.0, (Rung("t", write, spread=9.0),))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tierstore.model.simulate.MOST_EVENTS", 200)
        found = simulate(job, days, Chance(shape=0.1))
    assert found.saves + found.failures <= 200
    assert 0 <= found.goodput <= 1 + 1e-9
    assert found.cut or found.seconds == days * DAY


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: simulate(BIG, 0), "days is 0"),
        (lambda: Chance(shape=0), "shape of the failures is 0"),
        (lambda: Chance(shape=1e-3), r"shape of the failures is 0\.001, not from 0\.1 to 100"),
        (lambda: simulate(replace(BIG, nodes=10**7), 1), "number of nodes is 1e\\+07, more than"),
        (lambda: Chance(stragglers=1.5), r"share of stragglers is 1\.5"),
        (lambda: Chance(slowness=0.5), r"slowness of stragglers beyond 1 is -0\.5"),
    ],
)
def test_wrong_numbers(wrong, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        wrong()
