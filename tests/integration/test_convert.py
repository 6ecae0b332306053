"""Conversions on a real store, with real ranks, and of models that are larger than the memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import states
from tests.command import tierstore
from tests.conftest import Bucket, HdfsRoot
from tests.integration import convert_cases
from tests.ranks import Ranks

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning:torch"),
]

MIB = 1024**2


def convert(*words: object) -> None:
    done = tierstore(*map(str, words))
    assert done.code == 0, done.err


def test_two_ranks_restore_what_was_imported(ranks: Ranks, tmp_path: Path) -> None:
    torch.save({"model": convert_cases.whole(), "step": 3}, tmp_path / "in.pt")
    convert("import", tmp_path / "in.pt", "r", 3, "-c", tmp_path.as_uri())
    results = ranks.run(2, convert_cases.load, tmp_path.as_uri(), "r")
    assert results == [(3, 3, True, True)] * 2


def test_what_two_ranks_saved_becomes_one_file(ranks: Ranks, tmp_path: Path) -> None:
    """DCP's shards stay chunks in the tier, and are put together in the export."""
    ranks.run(2, convert_cases.save, str(tmp_path / "dcp"))
    config = ("-c", f"{tmp_path.as_uri()}/tier")
    convert("import", tmp_path / "dcp", "r", 3, *config)
    facts = tierstore("show", "r", "--tensors", "--json", *config).json
    assert {row["chunks"] for row in facts["tensors"]} == {2}
    convert("export", "r", tmp_path / "out.pt", *config)
    state = {"model": convert_cases.whole(), "step": 3}
    loaded = torch.load(tmp_path / "out.pt")
    assert list(states.differences(state, {**loaded, "model": dict(loaded["model"])})) == []


@pytest.mark.minio
def test_every_side_can_be_a_bucket(minio_bucket: Bucket, tmp_path: Path) -> None:
    tier = ("-c", f"s3://{minio_bucket.name}/tier")
    state = {"model": {**states.tensors(), "wide": torch.randn(3000, 3001)}, "step": 3}
    torch.save(state, tmp_path / "in.pt")
    convert("import", tmp_path / "in.pt", "a", 1, *tier)
    convert("export", "a", f"s3://{minio_bucket.name}/dcp", "--to", "dcp", *tier)
    convert("import", f"s3://{minio_bucket.name}/dcp", "b", 1, *tier)
    names = ("--only", "model", "--strip-prefix", "model.", "--max-shard-size", "20MB")
    convert("export", "b", f"s3://{minio_bucket.name}/hf", "--to", "hf", *names, *tier)
    index = json.loads(minio_bucket.read("hf/model.safetensors.index.json"))
    files = sorted(set(index["weight_map"].values()))
    assert len(files) == 2
    loaded = {}
    for file in files:
        (tmp_path / file).write_bytes(minio_bucket.read(f"hf/{file}"))
        loaded |= load_file(tmp_path / file)
    assert list(states.differences(state["model"], loaded)) == []
    convert("import", f"s3://{minio_bucket.name}/hf", "c", 1, *tier)
    convert("export", "c", f"s3://{minio_bucket.name}/out.pt", *tier)
    (tmp_path / "out.pt").write_bytes(minio_bucket.read("out.pt"))
    assert list(states.differences(state["model"], torch.load(tmp_path / "out.pt"))) == []
    done = tierstore("import", f"s3://{minio_bucket.name}/out.pt", "d", "1", *tier)
    assert done.code == 2
    assert "must be on this machine" in done.err
    minio_bucket.assert_no_uploads()


@pytest.mark.hdfs
def test_every_side_can_be_on_hdfs(hdfs_root: HdfsRoot, tmp_path: Path) -> None:
    tier = ("-c", f"{hdfs_root.url}/tier")
    state = {"model": states.tensors(), "step": 3}
    torch.save(state, tmp_path / "in.pt")
    convert("import", tmp_path / "in.pt", "a", 1, *tier)
    convert("export", "a", f"{hdfs_root.url}/dcp", "--to", "dcp", *tier)
    convert("import", f"{hdfs_root.url}/dcp", "b", 1, *tier)
    convert("export", "b", tmp_path / "out.pt", *tier)
    assert list(states.differences(state, torch.load(tmp_path / "out.pt"))) == []


PROGRAM = """
import os, resource, sys
from tierstore.cli.main import main

def convert(*words):
    try:
        main([*words, "-c", f"file://{os.getcwd()}/tier?fsync=false"])
    except SystemExit as end:
        if end.code:
            raise

def chain(name):
    start, peaks = f"{name}.safetensors", {}
    for number, source in enumerate((start, f"{name}.pt", f"{name}-dcp")):
        run = f"{name}{number}"
        convert("import", source, run, "1")
        peaks[f"import {source}"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        target = (f"{name}.pt", f"{name}-dcp", f"{name}-hf")[number]
        convert("export", run, target, "--to", ("torch", "dcp", "hf")[number])
        peaks[f"export {target}"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peaks

base = max(chain("small").values())
for what, peak in chain("large").items():
    print("PEAK", what, (peak - base) // 1024)
"""


def sparse_model(path: Path, size: int) -> None:
    """One tensor that fills nearly all of a file, some of its bytes not 0."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}})
    text = header.encode().ljust(-(-len(header) // 8) * 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for at in range(0, size, max(1, size // 50)):
            file.seek(start + at)
            file.write(at.to_bytes(8, "little"))
        file.truncate(start + size)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """One tensor of 256 MiB goes through every format with a few parts of it in memory."""
    size = 256 * MIB
    sparse_model(tmp_path / "small.safetensors", 1000)
    sparse_model(tmp_path / "large.safetensors", size)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peaks = [line.rsplit(" ", 1) for line in done.stdout.splitlines() if line.startswith("PEAK")]
    assert len(peaks) == 6
    for what, mib in peaks:
        assert int(mib) < 128, what  # 60, more where more processors share the work
    before = (tmp_path / "large.safetensors").read_bytes()[-size:]
    assert (tmp_path / "large-hf/model.safetensors").read_bytes()[-size:] == before
