"""The comparison runs, loads what it saved, and tells who failed; no times are asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from typer.testing import CliRunner

from benchmarks import (
    checkpoint,
    ladder,
    manifest,
    measure,
    mlperf_layout,
    report,
    start,
    storage_points,
)
from benchmarks.__main__ import app
from benchmarks.hdfs import WORKLOADS
from benchmarks.hdfs_worker import MIB, Files
from benchmarks.measure import Sample
from benchmarks.migrate_ends import Site, make
from benchmarks.ranks import PeerProcess
from tests import model_points
from tests.command import COMMAND
from tests.conftest import Bucket, HdfsRoot
from tests.patience import PATIENCE
from tierstore.config import Config, TierConfig
from tierstore.model import bench
from tierstore.model.workload import BYTES_PER_PARAMETER, SHAPES, Shape
from tierstore.testing.servers import S3Server

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.torch


class Here:
    """A peer in this process: a worker's own answers, without another import of torch."""

    def __init__(self, name: str, where: str, shape: str, world: int, scale: float) -> None:
        from benchmarks import states
        from benchmarks.worker import Worker

        assert world == 1
        self.name, self.seconds = name, 0.0
        self.place = None if "://" in where else Path(where)
        with mock.patch.dict(os.environ, {"RANK": "0"}):
            self._worker = Worker(name, where, shape, scale)
        self.nbytes = states.size(self._worker.state)

    def ask(self, command: str, step: int) -> Sample:
        return Sample(**self._worker.answer(command, step))

    def close(self) -> None:
        self._worker.peer.close()


def started(name: str, *given: Any) -> Here | PeerProcess:
    return (PeerProcess if name == "tierstore" else Here)(name, *given)


@pytest.fixture
def few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure a tier with few requests of each kind."""
    monkeypatch.setattr(bench, "_ROUND_SECONDS", 0.001)


@pytest.fixture
def alone(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """This process is the one rank of a job, as a worker with one rank is."""
    import torch.distributed as dist

    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    meet = (tmp_path_factory.mktemp("job") / "meet").as_uri()
    dist.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def forked() -> None:
    """Ranks are forked from the process that those of all tests are forked from."""
    get_context("forkserver").set_forkserver_preload(["tests.imports"])
    forkserver.ensure_running()


@pytest.fixture
def shared_minio(minio_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons take the MinIO of all tests."""
    server = minio_bucket.server
    address = server.endpoint.replace("://", f"://{server.access_key}:{server.secret_key}@")
    monkeypatch.setenv("TIERSTORE_TEST_S3", address)


@pytest.fixture
def shared_bucket(
    minio_bucket: Bucket, shared_minio: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparisons take this test's bucket, which goes after it."""
    monkeypatch.setattr(S3Server, "new_bucket", lambda _: minio_bucket.name)


def compare(*arguments: str, what: str = "checkpoint") -> Any:
    """Run a comparison in this process; its peers have processes of their own."""
    with mock.patch.dict(os.environ):
        return CliRunner().invoke(app, [what, *arguments])


@pytest.mark.minio
@pytest.mark.usefixtures("shared_bucket", "alone")
def test_a_short_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PeerProcess", started)
    written = tmp_path / "figures.json"
    done = compare(
        *("--rounds", "1", "--scale", "0.01", "--rest", "0", "--place", str(tmp_path)),
        *("--only", "1 tensor", "--json", str(written)),
        *("--peer", "bare copy", "--peer", "tierstore", "--peer", "dcp file"),
        *("--peer", "bare file", "--peer", "bare s3"),
    )
    assert done.exit_code == 0, done.output
    found = json.loads(written.read_text())["scenarios"]["1 tensor"]
    assert found["errors"] == {}
    for peer in ("tierstore", "dcp file", "bare file", "bare s3"):
        measures = found["peers"][peer]
        assert {"save", "async", "load cold", "load warm", "slice"} <= set(measures)
        assert measures["save"]["cpu"]["median"] > 0
    state = found["bytes"]
    assert found["peers"]["dcp file"]["slice"]["read"]["median"] >= state
    assert 4 * 2**20 <= found["peers"]["tierstore"]["slice"]["read"]["median"] < 9 * 2**20
    assert "| tierstore |" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_many_chunks_on_this_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "figures.json"
    shapes = {"100 ranks": (100, 1000, 1), "1,000 chunks a tensor": (4, 250, 1000)}
    monkeypatch.setattr(manifest, "SHAPES", shapes)
    done = compare(
        *("--scale", "0.05", "--place", str(tmp_path), "--json", str(written)), what="manifest"
    )
    assert done.exit_code == 0, done.output
    assert len(json.loads(written.read_text())["figures"]) == 2
    assert "| 100 ranks | 5,000 |" in done.stdout
    assert "| 1,000 chunks a tensor | 48,000 |" in done.stdout  # 12 of them, on 4 ranks
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.hdfs
@pytest.mark.parametrize("deadline", ["300", "0.001"], ids=["in time", "hanging"])
def test_a_short_comparison_on_hdfs(
    hdfs_root: HdfsRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deadline: str
) -> None:
    written, server = tmp_path / "figures.json", hdfs_root.server
    monkeypatch.setenv("TIERSTORE_TEST_HDFS", f"http://{server.user}@{server.address}")
    done = compare(
        *("--rounds", "1", "--scale", "0.01", "--deadline", deadline, "--json", str(written)),
        *("--peer", "tierstore"),
        what="hdfs",
    )
    assert done.exit_code == 0, done.output
    found = json.loads(written.read_text())
    assert found["errors"] == {}
    if deadline == "300":
        assert set(found["workloads"]) == set(WORKLOADS)
        assert found["workloads"]["read one file"]["peers"]["tierstore"]["cpu"]["median"] > 0
        assert found["left_out"] == {}
    else:
        assert found["workloads"] == {}
        assert "it hung" in found["left_out"]["tierstore, read one file"]


def test_wrong_names_are_explained() -> None:
    command = [sys.executable, "-m", "benchmarks", "checkpoint", "--peer", "nobody"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 2
    assert "'nobody' is not one of" in done.stderr.replace("\n", " ")


def test_starts_are_measured_as_whole_processes(tmp_path: Path) -> None:
    written = tmp_path / "start.json"
    done = compare("--rounds", "1", "--json", str(written), what="start")
    assert done.exit_code == 0, done.output
    found = json.loads(written.read_text())["starts"]
    assert {start.BARE, start.BASE, "tierstore --help"} <= set(found)
    assert all(figures["cpu"]["median"] > 0 for figures in found.values())
    assert "| `tierstore --help` |" in done.stdout
    with pytest.raises(RuntimeError, match=r"(?s)--nope failed: .*No such option"):
        start.measure(start.Start([*COMMAND, "--nope"], {}))


def test_ranks_are_joined_by_their_slowest() -> None:
    samples = [Sample(1.0, 2.0, 10, 5, 0.5), Sample(3.0, 1.0, 20, 6, 0.1)]
    assert measure.join_ranks(samples) == Sample(3.0, 3.0, 30, 11, 0.5)
    summary = measure.summary([Sample(float(wall), 0, 0, 0, 0) for wall in (3, 1, 2)])
    assert summary["wall"] == {"min": 1, "median": 2, "max": 3, "low": 1, "high": 3, "count": 3}


def test_the_interval_of_a_median_narrows_with_more_runs() -> None:
    few, many = (measure.describe([1.0, 2, 3, 4, 100] * times) for times in (1, 20))
    assert (few["low"], few["high"]) == (1, 100)
    assert 2 <= many["low"] <= many["median"] == 3 <= many["high"] <= 4
    once = measure.describe([7.0])
    assert (once["low"], once["high"]) == (7, 7)


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


@pytest.mark.minio
@pytest.mark.usefixtures("shared_minio")
@pytest.mark.parametrize("deadline", ["300", "0.001"], ids=["in time", "hanging"])
def test_a_short_comparison_of_migrations(tmp_path: Path, deadline: str) -> None:
    written = tmp_path / "figures.json"
    done = compare(
        *("--rounds", "1", "--scale", "0.002", "--only", "S3 to local, small files"),
        *("--peer", "tierstore", "--peer", "s5cmd", "--json", str(written)),
        *("--deadline", deadline, "--place", str(tmp_path)),
        what="migrate",
    )
    assert done.exit_code == 0, done.output
    found = json.loads(written.read_text())
    assert found["errors"] == {}
    if deadline == "300":
        (figures,) = found["workloads"].values()
        assert figures["requests"] == 100
        for peer in ("tierstore", "s5cmd"):
            assert figures["peers"][peer]["cpu"]["median"] > 0
            assert figures["peers"][peer]["extra_memory"]["median"] > 2**20
        assert "| s5cmd |" in done.stdout
    else:
        assert found["workloads"] == {}
        assert "not done after" in found["left_out"]["tierstore, S3 to local, small files"]
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_migrations_to_compare_are_chosen_by_name() -> None:
    done = compare("--only", "tape", what="migrate")
    assert done.exit_code == 2
    assert "S3 to HDFS, small files" in " ".join(done.stderr.replace("│", " ").split())


def test_a_copy_that_differs_is_noticed(tmp_path: Path) -> None:
    site = Site(S3Server("http://127.0.0.1:1", "", ""), "b", None, tmp_path)
    wanted = make(tmp_path / "a", Files(3, 5000, 1))
    end = site.end("local", "a")
    site.check(end, wanted)
    (tmp_path / "a/000/00001").write_bytes(bytes(5000))
    with pytest.raises(RuntimeError, match="000/00001: other bytes"):
        site.check(end, wanted)
    (tmp_path / "a/000/00001").unlink()
    with pytest.raises(RuntimeError, match="1 are missing"):
        site.check(end, wanted)


@pytest.mark.usefixtures("few_requests")
def test_the_storage_model_is_judged_on_points_it_has_not_seen(tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    done = compare(
        *("--only", "local", "--seconds", "0.1", "--place", str(tmp_path), "--json", str(written)),
        what="model",
    )
    assert done.exit_code == 0, done.output
    found = json.loads(written.read_text())
    assert [v["operation"] for v in found["verdicts"]] == ["put", "get"]
    for verdict in found["verdicts"]:
        assert (verdict["fitted"], verdict["left_out"]) == (12, 18)
        assert verdict["printed"] > verdict["derived"] > verdict["calibrated"]
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_the_sources_formulas_are_far_off_where_the_model_is_exact(tmp_path: Path) -> None:
    local = model_points.tier("local", model_points.NVME, local=True)
    written = tmp_path / "figures.json"
    given = model_points.write(tmp_path / "points.json", local)
    done = compare("--points", given, "--json", str(written), what="model")
    assert done.exit_code == 0, done.output
    put, get = json.loads(written.read_text())["verdicts"]
    for verdict in (put, get):
        assert verdict["calibrated"] < 0.02
        assert verdict["printed"] > 1e6
    assert "| local | put | 8, 8 |" in done.stdout


def test_a_short_storage_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_points, "_RATES", (256 * MIB, 1024 * MIB))  # waits for less
    written = tmp_path / "storage.json"
    done = compare(
        *("--rounds", "2", "--scale", "0.02", "--place", str(tmp_path)),
        *("--store", "local", "--json", str(written)),
        what="storage",
    )
    assert done.exit_code == 0, done.output
    found = json.loads(written.read_text())
    assert [fit["operation"] for fit in found["fits"]] == ["put", "get"]
    for fit in found["fits"]:
        kinds = {kind: errors["points"] for kind, errors in fit["errors"].items()}
        assert kinds == {"fitted": 12, "held out": 18, "C": 2, "r": 2}
    for point in found["points"]:
        data, capacity, rate = point["bytes"], point["capacity"], point["limit"]
        predicted = point["predicted"]
        assert predicted["printed"] > capacity / point["nodes"]
        assert predicted["derived"] >= predicted["D/r"] * (1 + capacity / data) * 0.999
        assert not rate or predicted["calibrated"] >= data / rate
    assert [path.name for path in tmp_path.iterdir()] == ["storage.json"]


def test_a_short_run_of_mlperfs_checkpoints(tmp_path: Path) -> None:
    written = tmp_path / "mlperf.json"
    done = compare(
        *("--scale", "1e-4", "--processes", "2", "--turns", "2", "--rest", "0"),
        *("--peer", "tierstore", "--place", str(tmp_path), "--json", str(written)),
        what="mlperf",
    )
    assert done.exit_code == 0, done.output
    found = json.loads(written.read_text())["mlperf"]["8b"]
    assert (found["layout"]["played"], found["layout"]["ranks"]) == (2, 8)
    peer = found["peers"]["tierstore"]
    assert (peer["save"]["wall"]["count"], peer["load"]["wall"]["count"]) == (2, 2)
    assert found["bytes"] == pytest.approx(104.7 * 2**30 / 8 * 2 * 1e-4, rel=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["mlperf.json"]


def test_mlperfs_ranks_save_what_is_published() -> None:
    def nbytes(shape: Shape, rank: int) -> int:
        found = mlperf_layout.shards(shape, rank).values()
        return sum(count * (2 if dtype == "bfloat16" else 4) for count, dtype in found)

    for name, shape in SHAPES.items():
        sizes = [nbytes(shape, rank) for rank in range(shape.ranks)]
        published = shape.parameters * BYTES_PER_PARAMETER
        assert sum(sizes) == pytest.approx(published, rel=1e-4), name
        assert (max(sizes) > min(sizes) * 1.5) == (shape.zero == 1), name
    with pytest.raises(ValueError, match="8 ranks, so none is number 8"):
        mlperf_layout.shards(SHAPES["8b"], 8)


@pytest.mark.minio
@pytest.mark.usefixtures("shared_bucket", "few_requests", "forked")
def test_a_short_ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "copy_rate", partial(bench.copy_rate, MIB))
    written = tmp_path / "ladder.json"
    done = compare(
        *("--ranks", "2", "--mib", "8", "--turns", "1", "--saves", "1", "--seconds", "0.1"),
        *("--rest", "0"),
        *("--place", str(tmp_path), "--json", str(written)),
        what="ladder",
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(written.read_text())["rows"]
    assert [row["rung"] for row in rows] == ["staged", "local", "s3"]
    assert all(row[kind] > 0 for row in rows for kind in ("predicted", "simulated", "real"))
    assert "| s3 |" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["ladder.json"]


@pytest.mark.usefixtures("forked")
def test_ranks_that_fail_end_the_ladder(tmp_path: Path) -> None:
    wrong = Config((TierConfig("local", f"file://{tmp_path}/x?part_size=1"),))
    with pytest.raises(RuntimeError, match="a rank failed in r: see above"):
        ladder._save(wrong, "r", ladder.Job(2, 8, 1, 0.0))


def test_the_time_line_of_a_save_is_in_order(tmp_path: Path) -> None:
    written = tmp_path / "timeline.json"
    done = compare(
        *("--rounds", "1", "--scale", "0.01", "--place", str(tmp_path), "--json", str(written)),
        *("--tier", "memory", "--tier", "disk"),
        what="timeline",
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(written.read_text())["timeline"]
    assert [(row["tier"], row["what"]) for row in rows] == [
        *[("", "stall"), ("memory", "write"), ("memory", "commit")],
        *[("disk", "write"), ("disk", "commit")],
    ]
    assert all(0 <= row["begin"] <= row["end"] for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["timeline.json"]
