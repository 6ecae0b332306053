"""`tierstore bench` on real tiers at once, and what predict and plan make of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import ladder_file, tierstore
from tests.conftest import Bucket, HdfsRoot
from tierstore.model import bench as measuring

SHORT = ("--seconds", "0.1", "--size", "16K", "--size", "256K", "--size", "1M")
MANY = ("--concurrency", "1", "--concurrency", "2", "--concurrency", "4")
JOB = ("--params", "1e9", "--nodes", "16", "--mtbf", "30d")


@pytest.fixture(autouse=True)
def _few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure with few requests of each kind."""
    monkeypatch.setattr(measuring, "_ROUND_SECONDS", 0.001)


def bench(tmp_path: Path, **tiers: str) -> Path:
    points = tmp_path / "points.json"
    config = ladder_file(tmp_path / "t.toml", **tiers)
    done = tierstore("bench", "-c", config, *SHORT, *MANY, "-p", str(points))
    assert (done.code, done.err) == (0, "")
    for name, url in tiers.items():
        assert f"{name}  {url.partition('?')[0]}  ended by: " in done.out
    return points


@pytest.mark.minio
def test_memory_disk_and_minio(tmp_path: Path, minio_bucket: Bucket, no_leaks: None) -> None:
    disk = tmp_path / "disk"
    points = bench(
        tmp_path, memory="memory://bench/all", disk=disk.as_uri(), s3=f"{minio_bucket.url}"
    )
    assert not disk.exists()
    assert minio_bucket.keys() == []
    minio_bucket.assert_no_uploads()
    tiers = {tier["name"]: tier for tier in json.loads(points.read_text())["tiers"]}
    assert {name: tier["local"] for name, tier in tiers.items()} == {
        "memory": True,
        "disk": True,
        "s3": False,
    }
    assert all(tier["points"] for tier in tiers.values())
    found = tierstore("predict", *JOB, "-p", str(points), "--json")
    assert found.code == 0, found.err
    assert [tier["rung"]["shared"] for tier in found.json["tiers"]] == [False, False, True]
    chosen = tierstore("plan", *JOB, "-p", str(points), "-t", "goodput=0.5", "--json")
    assert chosen.code == 0, chosen.err
    assert chosen.json["tiers"][-1]["name"] == "s3"


@pytest.mark.hdfs
def test_hdfs_is_read_back_and_left_clean(tmp_path: Path, hdfs_root: HdfsRoot) -> None:
    points = bench(tmp_path, hdfs=hdfs_root.url)
    assert hdfs_root.keys() == []
    (tier,) = json.loads(points.read_text())["tiers"]
    assert tier["reads_back"]
    found = tierstore("predict", *JOB, "-p", str(points), "--json")
    assert "read back" in found.json["tiers"][0]["stages"]
