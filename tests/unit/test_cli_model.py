"""`tierstore bench`, `predict` and `plan`: what they print, and how they refuse."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests import model_points
from tests.command import ladder_file, start, tierstore
from tests.patience import PATIENCE
from tierstore.cli.amounts import assignments, duration, nbytes, number, seconds, some_bytes
from tierstore.errors import ConfigError

BENCH = ("--seconds", "0.5", "--size", "4K", "--size", "16K", "--size", "64K")
JOB = ("--nodes", "64", "--mtbf", "150d")


@pytest.fixture
def points(tmp_path: Path) -> str:
    return model_points.write(tmp_path / "points.json")


def test_bench_prints_points_and_laws_and_writes_them(tmp_path: Path) -> None:
    out = tmp_path / "points.json"
    config = ladder_file(tmp_path / "t.toml", fast=f"file://{tmp_path}/a", slow="memory://cli/b")
    done = tierstore("bench", "-c", config, *BENCH, "-p", str(out))
    assert (done.code, done.err) == (0, "")
    assert f"fast  file://{tmp_path}/a  ended by: " in done.out
    assert [*(line.split()[0] for line in done.out.splitlines() if "%" in line)] == [
        *("put", "write", "commit", "read", "list")
    ] * 2
    written = json.loads(out.read_text())
    assert [tier["name"] for tier in written["tiers"]] == ["fast", "slow"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["points.json", "t.toml"]
    again = tierstore("predict", "--params", "1e9", *JOB, "-p", str(out))
    assert again.code == 0, again.err
    assert "no tier outlives a lost node" in again.out


def test_bench_measures_nothing_that_it_cannot_write(tmp_path: Path) -> None:
    """A named pipe would be waited for, after minutes."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "missing/points.json"):
        done = tierstore("bench", "-c", "memory://cli/no", *BENCH, "-p", str(tmp_path / name))
        assert (done.code, done.out) == (2, "")
        assert str(tmp_path / name) in done.err


def test_bench_shows_what_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("tierstore.cli.bench.open_regular", full)
    done = tierstore("bench", "-c", "memory://cli/full", *BENCH, "-p", str(tmp_path / "p"))
    assert done.code == 1
    assert "put" in done.out
    assert f"{tmp_path}/p cannot be written: no space" in done.err


def test_a_terminal_sees_how_far_it_is() -> None:
    ours, theirs = pty.openpty()
    words = ("bench", "-c", "memory://cli/bar", *BENCH)
    with start(*words, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while block := os.read(ours, 65_536):
                seen += block
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"memory  (preparing|put|get|range|first|list)", seen)


def test_bench_as_json(tmp_path: Path) -> None:
    done = tierstore("bench", "-c", "memory://cli/json", *BENCH, "--concurrency", "2", "--json")
    assert done.code == 0
    (tier,) = done.json["tiers"]
    assert {p["concurrency"] for p in tier["points"]} == {2}
    why = done.json["fits"]["memory"]["put"]["error"]
    assert "all 3 points have the concurrency 2" in why
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_dry_run_writes_nothing(tmp_path: Path, as_json: list[str]) -> None:
    url = f"file://{tmp_path}/tier"
    done = tierstore("bench", "-c", url, "--dry-run", "--bytes", "3G", *as_json)
    assert done.code == 0
    if as_json:
        (found,) = done.json
        assert found["where"] == f"{url}/bench/"
        assert found["moved_bytes"] == 3 << 30
    else:
        assert f"local  would write below {url}/bench/, and delete it again" in done.out
        assert "3.0 GiB moved in all" in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_dry_run_refuses_what_a_real_one_does(tmp_path: Path, dry: list[str]) -> None:
    done = tierstore("bench", "-c", "memory://cli/x", *BENCH, "-p", f"{tmp_path}/no/p", *dry)
    assert (done.code, "there is no folder" in done.said) == (2, True)
    done = tierstore("bench", "-c", "memory://cli/x", "--size", "1T", *dry)
    assert (done.code, "tier memory: " in done.said) == (1, True)


def test_one_bad_tier_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    urls = {"bad": f"file://{tmp_path}/file", "good": "memory://cli/good"}
    done = tierstore("bench", "-c", ladder_file(tmp_path / "t.toml", **urls), *BENCH)
    assert done.code == 1
    assert "good  memory://cli/good  ended by:" in done.out
    assert "tier bad: " in done.said


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, sent: signal.Signals) -> None:
    at = tmp_path / "tier"
    words = ("bench", "-c", at.as_uri(), "--seconds", "3600", "--size", "64K", "--size", "256K")
    process = start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(at.glob("bench/*/put/*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(sent)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert (out, err) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_predict(points: str) -> None:
    done = tierstore("predict", "--params", "8e9", *JOB, "-p", points)
    assert done.code == 0, done.err
    assert "8e+09 parameters: 104.3 GiB a save, 208.6 MiB a rank" in done.out
    for word in ("nvme", "s3", "goodput", "suggested", "Young", "device", "manifest"):
        assert word in done.out
    shape = tierstore("predict", "--shape", "8b", "--nodes", "1", "--mtbf", "150d", "-p", points)
    assert "MLPerf 8b: 104.7 GiB a save" in shape.out


def test_predict_as_json_with_assumptions(points: str) -> None:
    assume = ("restart=1m", "interval=10m", "ceiling.s3=1G", "every.s3=4", "days=2", "seed=7")
    words = [word for each in assume for word in ("-a", each)]
    done = tierstore("predict", "--params", "8e9", *JOB, "-p", points, "--json", *words)
    assert done.code == 0, done.err
    found = done.json
    assert found["interval"] == 600
    assert [tier["rung"]["every"] for tier in found["tiers"]] == [1, 4]
    assert found["tiers"][1]["write"] >= found["workload"]["nbytes"] / 2**30
    assert found["simulated"]["seconds"] == 2 * 86_400
    assert list(found["rungs"]) == ["staged", "nvme", "s3"]


def test_predict_takes_the_ladder_of_a_configuration(points: str, tmp_path: Path) -> None:
    config = ladder_file(tmp_path / "t.toml", s3="s3://other/place")
    words = ("predict", "--params", "8e9", *JOB, "-p", points, "--json", "-c", config)
    assert [tier["rung"]["name"] for tier in tierstore(*words).json["tiers"]] == ["s3"]


def test_few_cores_are_a_limit(points: str) -> None:
    words = ("predict", "--params", "8e9", *JOB, "-p", points, "--json")
    few = tierstore(*words, "-a", "cores=0.01")
    assert {tier["limit"] for tier in few.json["tiers"]} == {"CPU"}
    assert "cores is 0" in tierstore(*words, "-a", "cores=0").said


def test_plan(points: str) -> None:
    targets = ("-t", "lost=1m", "-t", "price.s3=0.023", "-t", "write_price.s3=0.005")
    words = ("plan", "--params", "8e9", *JOB, "-p", points, *targets)
    done = tierstore(*words)
    assert done.code == 0, done.err
    assert "a month, without nvme; the best of 9 ladders" in done.out
    assert '[[tier]]\nname = "s3"\nurl = "s3://bucket/s3"' in done.out
    found = tierstore(*words, "--json").json
    assert found["prediction"]["expected"]["lost_per_day"] <= 60
    assert all(tier["keep"] >= 2 for tier in found["tiers"])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--params", "8e9", "--nodes", "0", "--mtbf", "1d"), 2, "number of nodes is 0"),
        (("--params", "8e9", "--nodes", "1", "--mtbf", "0d"), 2, "mean time between failures"),
        (("--params", "8e9", "--nodes", "1", "--mtbf", "soon"), 2, "'soon' is not a time"),
        (("--params", "lots", *JOB), 2, "neither a shape nor a number of parameters"),
        (("--shape", "8b", *JOB), 2, "is saved by 8 ranks, not by 64 x 8"),
        (("--params", "8e9", *JOB, "-a", "restart"), 2, "not of the form KEY=VALUE"),
        (("--params", "8e9", *JOB, "-a", "restat=1m"), 2, "'restat' is unknown"),
        (("--params", "8e9", *JOB, "-a", "restart=1x"), 2, "restart: '1x' has no unit of time"),
        (("--params", "8e9", *JOB, "-a", "ceiling.gcs=1G"), 2, "'gcs' is not among"),
        (("--params", "8e9", *JOB, "-a", "shared.s3=x"), 2, "'x' is neither yes nor no"),
        (("--params", "8e9", *JOB, "-a", "every.s3=0"), 2, "every.s3 is 0"),
    ],
)
def test_what_predict_refuses(points: str, words: tuple[str, ...], code: int, message: str) -> None:
    done = tierstore("predict", *words, "-p", points)
    assert done.code == code
    assert message in done.said


@pytest.mark.parametrize("assumed", ["interval=10m", "every.s3=4"])
def test_plan_takes_no_answer_for_a_question(points: str, assumed: str) -> None:
    done = tierstore("plan", "--params", "8e9", *JOB, "-p", points, "-a", assumed)
    assert done.code == 2
    assert f"assumption {assumed.partition('=')[0]}: that is what plan chooses" in done.said


def test_missing_points(tmp_path: Path) -> None:
    done = tierstore("predict", "--params", "1e9", *JOB, "-p", str(tmp_path / "none.json"))
    assert done.code == 2
    assert "there is no such file" in done.said
    few = model_points.tier("nvme", model_points.NVME, local=True)
    reads = next(p for p in few.points if p.operation == "get")
    path = model_points.write(tmp_path / "few.json", replace(few, points=(reads,)))
    done = tierstore("plan", "--params", "1e9", *JOB, "-p", path)
    assert done.code == 2
    assert "tier nvme: " in done.said
    assert "1 measured point: nothing can be fitted" in done.said


def test_amounts() -> None:
    sizes = ("32M", "32mib", "1.5GiB", "1.5Gi", "8e9", "0", "2 KiB", "5GB", "1.5kB", "7B")
    assert [nbytes(t) for t in sizes] == [
        *(32 << 20, 32 << 20, 1.5 * 2**30, 1.5 * 2**30, 8e9, 0, 2048, 5e9, 1500, 7)
    ]
    assert some_bytes("1.9") == 1
    assert [seconds(t) for t in ("90", "5m", "2h", "1.5d", "20ms")] == [
        90,
        300,
        7200,
        129_600,
        0.02,
    ]
    for wrong in ("", "x", "1.2.3", "5 parsecs", "-1s", "nan"):
        for parse in (nbytes, some_bytes, seconds, number):
            with pytest.raises(ConfigError):
                parse(wrong)
    for wrong in ("5i", "5iB", "5KK", "5Bi", "5 kilo"):
        with pytest.raises(ConfigError, match="no unit of size"):
            nbytes(wrong)
    with pytest.raises(ConfigError, match="less than one byte"):
        some_bytes("0.5")
    shown = [duration(t) for t in (0, 2e-5, 0.02, 1, 119, 120, 7200, 2 * 86_400, float("inf"))]
    assert shown == ["0 s", "20 us", "20 ms", "1 s", "119 s", "2.0 min", "2.0 h", "2.0 d", "all"]
    with pytest.raises(ConfigError, match="unknown"):
        assignments(["a.=1"], {"a.": number}, what="x")


def test_a_plan_without_prices_says_so(points: str) -> None:
    words = ("plan", "--params", "8e9", *JOB, "-p", points)
    done = tierstore(*words)
    assert "; no prices were given (--target price.TIER=...); the best of 9 ladders" in done.out
    assert "a month" not in done.out
    assert tierstore(*words, "--json").json["cost"] is None
    done = tierstore(*words, "-t", "price.nvme=0", "-t", "price.s3=0")
    assert "0.00 a month" in done.out, "a price of 0 is one"
    done = tierstore(*words, "-t", "cost=5")
    assert (done.code, "target cost: no tier has a price" in done.said) == (2, True)


def test_a_job_that_only_fails_is_simulated_for_a_while(
    points: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierstore.model.simulate.MOST_EVENTS", 1000)
    words = ("predict", "--params", "8e9", "--nodes", "10000", "--mtbf", "150", "-p", points)
    found = tierstore(*words, "--json").json["simulated"]
    assert found["cut"]
    assert found["saves"] + found["failures"] == 1000
    assert 0 < found["seconds"] < 86_400
    assert re.search(r"simulated .* only: \d+ failures and \d+ saves?", tierstore(*words).out)


HOSTILE = ("0", "-1", "nan", "1e300", "9" * 400)


@pytest.mark.parametrize(
    "option",
    ["--params", "--nodes", "--gpus", "--mtbf"]
    + [
        f"-a {name}="
        for name in (
            *("restart", "node_loss", "network", "copy", "cores", "spread", "images", "interval"),
            *("days", "stragglers", "slowness", "shape", "ceiling.s3", "every.s3"),
        )
    ],
)
def test_hostile_numbers_are_refused_in_words(
    points: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierstore.model.simulate.MOST_EVENTS", 100)
    usual = ["--params", "8e9", *JOB, "-p", points]
    name, _, key = option.partition(" ")
    refused = 0
    for value in HOSTILE:
        done = tierstore("predict", *usual, name, f"{key}{value}")
        assert done.code in (0, 2), (value, done.err)
        refused += done.code == 2
    assert refused >= 3
