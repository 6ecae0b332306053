"""The comparison runs, loads what it saved, and tells who failed; no times are asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import measure, report
from benchmarks.hdfs import WORKLOADS
from benchmarks.measure import Sample

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.torch


def compare(*arguments: str, what: str = "checkpoint") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", what, *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False, env=os.environ
    )


def test_a_short_comparison(tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    done = compare(
        *("--rounds", "1", "--scale", "0.01", "--rest", "0", "--place", str(tmp_path)),
        *("--only", "1 tensor", "--json", str(written)),
        *("--peer", "bare copy", "--peer", "tierstore", "--peer", "dcp file"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(written.read_text())["scenarios"]["1 tensor"]
    assert found["errors"] == {}
    for peer in ("tierstore", "dcp file"):
        measures = found["peers"][peer]
        assert {"save", "async", "load cold", "load warm", "slice"} <= set(measures)
        assert measures["save"]["cpu"]["median"] > 0
    state = found["bytes"]
    assert found["peers"]["dcp file"]["slice"]["read"]["median"] >= state
    assert 4 * 2**20 <= found["peers"]["tierstore"]["slice"]["read"]["median"] < 9 * 2**20
    assert "| tierstore |" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.hdfs
@pytest.mark.usefixtures("hdfs_root")  # not without a real HDFS, although it starts its own
@pytest.mark.parametrize("deadline", ["60", "0.001"], ids=["in time", "hanging"])
def test_a_short_comparison_on_hdfs(tmp_path: Path, deadline: str) -> None:
    written = tmp_path / "figures.json"
    done = compare(
        *("--rounds", "1", "--scale", "0.01", "--deadline", deadline, "--json", str(written)),
        *("--peer", "tierstore"),
        what="hdfs",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(written.read_text())
    assert found["errors"] == {}
    if deadline == "60":
        assert set(found["workloads"]) == set(WORKLOADS)
        assert found["workloads"]["read one file"]["peers"]["tierstore"]["cpu"]["median"] > 0
        assert found["left_out"] == {}
    else:
        assert found["workloads"] == {}
        assert "it hung" in found["left_out"]["tierstore, read one file"]


def test_wrong_names_are_explained() -> None:
    done = compare("--peer", "nobody")
    assert done.returncode == 2
    assert "'nobody' is not one of" in done.stderr.replace("\n", " ")


def test_ranks_are_joined_by_their_slowest() -> None:
    samples = [Sample(1.0, 2.0, 10, 5, 0.5), Sample(3.0, 1.0, 20, 6, 0.1)]
    assert measure.join_ranks(samples) == Sample(3.0, 3.0, 30, 11, 0.5)
    summary = measure.summary([Sample(float(wall), 0, 0, 0, 0) for wall in (3, 1, 2)])
    assert summary["wall"] == {"min": 1, "median": 2, "max": 3}


def test_the_report_names_who_failed_and_who_was_asked_once() -> None:
    machine = dict.fromkeys(("processor", "kernel", "python", "torch"), "x")
    samples = {"async": measure.summary([Sample(1.0, 1.0, 1, 1, 0.25)])}
    scenario = {
        "bytes": 10**9,
        "disk_direct_read": [2e9],
        "errors": {"other": "no space"},
        "measured_once": {"slow": 200.0},
        "peers": {"bare copy": samples, "slow": samples},
    }
    text = report.markdown(
        {"machine": machine | {"cores": 2, "memory_gib": 1}, "rounds": 1}
        | {"scenarios": {"300 tensors": scenario}}
    )
    assert "| slow | 250 | 1.00 |" in text
    assert "- slow took 200 s a turn and was measured once" in text
    assert "- other failed: no space" in text
    assert "2.00 GB/s" in text
