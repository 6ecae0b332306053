"""From points to a cluster: by hand where one can, and what must hold of any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import model_points
from tests.docs.pages import ROOT, tables
from tests.model_points import NVME, S3, K, M
from tierstore.errors import ConfigError, ModelError
from tierstore.model.curve import Curve
from tierstore.model.plan import Targets, plan
from tierstore.model.predict import Forecast, predict
from tierstore.model.workload import SHAPES, Cluster, Workload

DAY = 86_400.0
MEASURED = model_points.measured()
CLUSTER = Cluster(nodes=64, gpus=8, mtbf=150 * DAY, spread=0.0)
WORK = Workload.parse("8e9")


@pytest.mark.parametrize(
    ("shape", "billions", "gib", "ranks"),
    [
        ("8b", 8.03, 104.7, 8),
        ("70b", 69.9, 911, 64),
        ("405b", 405.9, 5292, 512),
        ("1t", 1183, 15_427, 1024),
    ],
)
def test_the_published_shapes(shape: str, billions: float, gib: float, ranks: int) -> None:
    work = Workload.parse(shape.upper())
    assert SHAPES[shape].parameters / 1e9 == pytest.approx(billions, rel=1e-3)
    assert work.nbytes / 2**30 == pytest.approx(gib, rel=1e-3)
    assert work.ranks == ranks
    assert work.largest_rank is not None
    assert work.largest_rank >= work.nbytes / ranks
    row = next(row for row in tables(ROOT / "docs/model.md", "shape") if row[0] == f"`{shape}`")
    assert float(row[1]) == pytest.approx(billions, rel=1e-3)
    assert float(row[2].replace(",", "")) == pytest.approx(gib, rel=1e-3)
    assert float(row[4]) == pytest.approx(work.nbytes / ranks / 2**30, rel=0.01)
    assert float(row[5]) == pytest.approx(work.largest_rank / 2**30, rel=0.01)


def test_parameters() -> None:
    assert WORK.nbytes == 14 * 8e9
    with pytest.raises(ConfigError, match="'9b' is neither a shape nor a number"):
        Workload.parse("9b")
    with pytest.raises(ModelError, match="number of parameters is -1"):
        Workload.parse("-1")


def test_a_save_by_hand() -> None:
    """One node with one rank: 128 MiB in 4 parts of 32, which the curve gives 4 in flight."""
    work = Workload("x", 128 * M)
    found = predict(MEASURED, work, Cluster(1, 1, DAY, spread=0.0))
    stages = found.tiers[0].stages
    put = NVME.seconds(32 * M, 4)
    assert stages["write"] == pytest.approx(put - 0.5e-3, rel=0.02)
    assert stages["commit"] == pytest.approx(0.5e-3, rel=0.05)
    assert found.job.stall == pytest.approx(128 * M / 8e9)
    small = NVME.seconds(64 * K)
    assert stages["manifest"] == pytest.approx(2 * small + 1e-3 + 1e-5 + small, rel=0.05)
    assert found.tiers[0].read == pytest.approx(NVME.seconds(32 * M, 4), rel=0.02)
    assert found.rungs[1][1] == pytest.approx(found.job.stall + found.tiers[0].write)
    assert found.tiers[0].limit == "device"


def limits(found: Forecast) -> list[str]:
    return [tier.limit for tier in found.tiers]


def test_ceilings() -> None:
    free = predict(MEASURED, WORK, CLUSTER)
    assert limits(free) == ["device", "device"]
    network = predict(MEASURED, WORK, replace(CLUSTER, network=10e6))
    assert limits(network) == ["device", "network"]
    assert network.tiers[1].stages["write"] == pytest.approx(WORK.nbytes / 64 / 10e6)
    store = predict(MEASURED, WORK, replace(CLUSTER, ceilings={"s3": 1e9}))
    assert limits(store) == ["device", "store"]
    assert store.tiers[1].write == pytest.approx(WORK.nbytes / 1e9)
    busy = replace(MEASURED, machine={"cores": 0.001})
    assert limits(predict(busy, WORK, CLUSTER)) == ["CPU", "CPU"]
    twice = replace(MEASURED.tiers[1], reads_back=True, every=1)
    back = predict(model_points.measured(twice), WORK, replace(CLUSTER, ceilings={"s3": 1e9}))
    assert back.tiers[0].write == pytest.approx(2 * WORK.nbytes / 1e9)
    assert "read back" in back.tiers[0].stages


def test_a_tier_is_fed_no_faster_than_the_one_above_is_read() -> None:
    slow = Curve(0.01, 1 / 1e6, contention=1)
    above = model_points.tier("slow", slow, local=True)
    found = predict(model_points.measured(above, MEASURED.tiers[1]), WORK, CLUSTER)
    assert found.tiers[1].rung.write == pytest.approx(found.tiers[0].rung.read)
    assert sum(found.tiers[1].stages.values()) < found.tiers[1].rung.write


def test_it_says_where_it_goes_beyond_what_was_measured() -> None:
    found = predict(MEASURED, WORK, CLUSTER)
    assert "64 requests in flight on a node: taken as fast as 8" in found.tiers[0].notes[0]
    assert "as it served one" in found.tiers[1].notes[-1]
    known = predict(MEASURED, WORK, Cluster(64, 1, DAY, ceilings={"s3": 1e12}))
    assert known.tiers[1].notes == ()
    large = model_points.tier("hdfs", S3, local=False, part_size=128 * M)
    one = predict(model_points.measured(large), WORK, Cluster(64, 1, DAY))
    assert "requests of 128 MiB are beyond the 32 MiB" in one.tiers[0].notes[0]


def test_a_ladder_of_ones_own() -> None:
    found = predict(MEASURED, WORK, CLUSTER, every={"nvme": 1, "s3": 50}, interval=77)
    assert [tier.rung.every for tier in found.tiers] == [1, 50]
    assert found.job.interval == 77
    shared = predict(MEASURED, WORK, replace(CLUSTER, shared=frozenset({"nvme"})))
    assert shared.tiers[0].rung.shared
    with pytest.raises(ConfigError, match="tier 'hdfs' is not among the measured points"):
        predict(MEASURED, WORK, CLUSTER, every={"hdfs": 1})


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2000), st.floats(1e8, 1e12), st.floats(DAY, 1e4 * DAY))
def test_what_holds_of_any_cluster(nodes: int, parameters: float, mtbf: float) -> None:
    work = Workload.parse(f"{parameters:.6g}")
    cluster = Cluster(nodes, 8, mtbf)
    small, large = (
        predict(MEASURED, replace(work, nbytes=work.nbytes * k), cluster, interval=600)
        for k in (1, 4)
    )
    assert large.tiers[0].write >= small.tiers[0].write
    assert large.job.stall >= small.job.stall
    for found in (small, large):
        assert 0 <= found.expected.goodput < 1
        times = [seconds for _, seconds in found.rungs]
        assert times == sorted(times)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": 0}, "number of nodes is 0"),
        ({"gpus": 0}, "number of ranks on a node is 0"),
        ({"mtbf": -1}, "mean time between failures of a node is -1"),
        ({"network": 0}, "network is 0"),
        ({"node_loss": 1.1}, r"share of failures that lose a node is 1\.1"),
        ({"ceilings": {"s3": -1}}, "ceiling of tier s3 is -1"),
        ({"spread": -0.1}, r"spread between nodes is -0\.1"),
    ],
)
def test_clusters_that_cannot_be(change: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        replace(CLUSTER, **change)


def test_a_plan_is_the_cheapest_that_meets_the_targets() -> None:
    priced = {"price": {"s3": 0.023}, "write_price": {"s3": 0.005}}
    best, tried = plan(MEASURED, WORK, CLUSTER, Targets())
    assert tried == 2 + 7
    cheap, _ = plan(MEASURED, WORK, CLUSTER, Targets(goodput=0.9, **priced))
    strict, _ = plan(MEASURED, WORK, CLUSTER, Targets(lost=30, **priced))
    assert cheap.forecast.expected.goodput >= 0.9
    assert strict.forecast.expected.lost_per_day <= 30
    assert strict.cost > cheap.cost > 0
    assert best.forecast.expected.goodput >= cheap.forecast.expected.goodput
    assert [t.rung.name for t in cheap.forecast.tiers][-1] == "s3", "a lost node wants a copy"
    for each in (best, cheap, strict):
        assert not each.forecast.expected.behind
        assert min(each.keep.values()) >= 2
        assert each.space["s3"] == each.keep["s3"] * WORK.nbytes


def test_targets_that_none_meets_and_wrong_ones() -> None:
    with pytest.raises(ModelError, match=r"no ladder meets the targets .*goodput at most 9\d\.\d"):
        plan(MEASURED, WORK, CLUSTER, Targets(goodput=1))
    with pytest.raises(ModelError, match=r"at least .* min, cost at least 0\.00 a month"):
        plan(MEASURED, WORK, CLUSTER, Targets(lost=0, cost=1))
    alone = model_points.measured(MEASURED.tiers[0])
    with pytest.raises(ModelError, match="every one loses all work to failures"):
        plan(alone, WORK, CLUSTER, Targets())
    with pytest.raises(ConfigError, match="tier 'gcs' is not among"):
        plan(MEASURED, WORK, CLUSTER, Targets(price={"gcs": 1}))
    for wrong in ({"goodput": 2}, {"lost": -1}, {"cost": -1}, {"price": {"s3": -1}}):
        with pytest.raises(ModelError):
            Targets(**wrong)


def test_a_slow_single_stream_is_predicted_with_what_is_in_flight() -> None:
    slow = model_points.tier("s3", Curve(0.02, 1 / 50e6), local=False)
    one = predict(model_points.measured(slow), WORK, Cluster(1, 1, DAY, spread=0))
    assert one.tiers[0].rate == pytest.approx(8 * 32 * M / Curve(0.01, 1 / 50e6).seconds(32 * M),
                                              rel=0.02)  # fmt: skip


def test_more_tiers_than_can_be_tried_are_refused() -> None:
    many = model_points.measured(
        *(model_points.tier(f"t{n}", model_points.NVME, local=True) for n in range(7))
    )
    with pytest.raises(ModelError, match=r"7 tiers make too many ladders .*6 at most"):
        plan(many, Workload.parse("8e9"), Cluster(1, 8, 1e6), Targets())
