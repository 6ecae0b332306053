"""Measuring, predicting and planning as a notebook does: values in, results and errors out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import model_points
from tierstore.cli.assumed import KNOWN
from tierstore.errors import ConfigError, ModelError
from tierstore.operations.bench import Bench, FittedLaw, Limits, bench, bench_plan
from tierstore.operations.predict import ASSUMPTIONS, Targets, plan, predict, setting

DAY = 86_400.0
SHORT = Limits(0.3, sizes=(4096, 16_384, 65_536), concurrency=(1, 2))


def test_what_would_be_measured_and_what_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tier = (tmp_path / "t").as_uri()
    (planned,), failed = bench_plan(tier, SHORT)
    assert (planned.where, planned.schedule.most, failed) == (f"{tier}/bench/", 2, ())
    heard: list[tuple[str, int, int]] = []
    done = bench(tier, SHORT, progress=lambda name, _cell, n, of: heard.append((name, n, of)))
    assert isinstance(done, Bench)
    assert done.failed == ()
    assert {name for name, _, _ in heard} == {"local"}
    assert done.measured.tier("local").points
    assert done.fits["local"].keys() == {"put", "write", "commit", "read", "list"}
    assert all(isinstance(law, FittedLaw | ModelError) for law in done.fits["local"].values())
    assert not (tmp_path / "t").exists()
    assert capfd.readouterr() == ("", "")


def test_a_tier_that_fails_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ladder = [(tmp_path / name).as_uri() for name in ("t", "file")]
    done = bench(ladder, SHORT)
    assert [tier.name for tier in done.measured.tiers] == ["local"]
    assert [name for name, _ in done.failed] == ["local2"]


def test_a_job_is_predicted_from_points_and_their_file(tmp_path: Path) -> None:
    measured, path = model_points.measured(), model_points.write(tmp_path / "points.json")
    found = [predict(setting("8e9", 64, 150 * DAY, points)) for points in (measured, path)]
    assert found[0] == found[1]
    assert [tier.rung.name for tier in found[0].forecast.tiers] == ["nvme", "s3"]
    assert 0.5 < found[0].forecast.expected.goodput < 1
    often = setting("8e9", 64, 150 * DAY, measured, assume={"interval": 60.0, "every.s3": 3})
    assert predict(often).forecast.job.interval == 60.0
    assert [tier.rung.every for tier in predict(often).forecast.tiers] == [1, 3]


def test_a_ladder_is_chosen() -> None:
    job = setting(8e9, 64, 150 * DAY, model_points.measured())
    chosen = plan(job, Targets(goodput=0.9, price={"s3": 0.02}))
    assert chosen.prediction.forecast.expected.goodput >= 0.9
    assert chosen.tried > 1
    assert set(chosen.without_price) == chosen.plan.keep.keys() - {"s3"}
    with pytest.raises(ModelError, match="no ladder meets the targets"):
        plan(job, Targets(goodput=0.999999))
    with pytest.raises(ConfigError, match="no tier has a price"):
        plan(job, Targets(cost=1.0))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"assume": {"netwrok": 1.0}}, "assumption 'netwrok' is unknown"),
        ({"assume": {"every.": 1.0}}, "assumption 'every.' is unknown"),
        ({"assume": {"every": 1.0}}, "assumption 'every' is unknown"),
        ({"assume": {"every.tape": 1.0}}, "tape"),
        ({"model": "70c"}, "70c"),
        ({"model": "70b", "nodes": 3}, "ranks, not by 3 x 8"),
        ({"points": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_arguments_that_are_wrong(wrong: dict[str, Any], said: str) -> None:
    right: dict[str, Any] = {"model": "8e9", "nodes": 64, "mtbf": DAY}
    with pytest.raises((ConfigError, ModelError), match=said):
        setting(**({**right, "points": model_points.measured()} | wrong))


def test_the_command_line_reads_what_may_be_assumed() -> None:
    assert {*KNOWN} == {*ASSUMPTIONS}
