"""`tierstore migrate` between real stores: every pair, killed, interrupted, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.command import tierstore
from tests.ends import MIB, PART, End, pairs
from tests.files import receipts
from tests.forked import forked
from tests.patience import PATIENCE


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def summary(out: str) -> Any:
    return json.loads(out.splitlines()[-1])


def noted(tmp_path: Path) -> int:
    """Return how many receipts are in the one journal, once it is there."""
    journals = list((tmp_path / "state").rglob("*.journal"))
    assert len(journals) <= 1
    return sum(len(receipts(journal)) for journal in journals)


@pairs()
def test_round_trip(end: Callable[[str, str], End], one: str, other: str) -> None:
    source, target = end(one, "from"), end(other, "to")
    sizes = {"empty": 0, "one": 1, "deep/down/page": 4096, "block": 4 * MIB + 1, "a part": PART}
    sizes |= {"parts": 2 * PART + 12_345, "odd/é+% ü": 70_001}
    for key, size in sizes.items():
        source.write(key, os.urandom(size))
    plan = tierstore("migrate", str(source), str(target), "--dry-run")
    assert plan.out.startswith("7 objects of ")
    assert target.keys() == []
    done = tierstore("migrate", str(source), str(target), "--json")
    assert done.code == 0, done.err
    assert target.contents() == source.contents()
    told = summary(done.out)
    assert (told["copied"], told["sent_bytes"]) == (7, sum(sizes.values()))
    again = tierstore("migrate", str(source), str(target), "--json")
    assert (summary(again.out)["same"], summary(again.out)["sent_bytes"]) == (7, 0)
    assert target.leftovers() == []


@pairs()
def test_one_object(end: Callable[[str, str], End], one: str, other: str) -> None:
    source, target = end(one, "from"), end(other, "to")
    source.write("d/x", b"content")
    source.write("d/xy", b"not this one")
    for place, name in (("/", "x"), ("/as/y", "as/y")):
        url = f"{target.url}{place}{target.options}"
        done = tierstore("migrate", f"{source.url}/d/x{source.options}", url)
        assert done.code == 0, done.err
        assert target.contents()[name] == b"content"
    assert target.keys() == ["as/y", "x"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other", "number"),
    [
        pytest.param("local", "s3", signal.SIGINT, marks=pytest.mark.minio),
        pytest.param("local", "s3", signal.SIGTERM, marks=pytest.mark.minio),
        pytest.param("s3", "local", signal.SIGINT, marks=pytest.mark.minio),
        pytest.param("local", "hdfs", signal.SIGINT, marks=pytest.mark.hdfs),
        pytest.param("hdfs", "local", signal.SIGINT, marks=pytest.mark.hdfs),
        pytest.param("s3", "hdfs", signal.SIGINT, marks=[pytest.mark.minio, pytest.mark.hdfs]),
        pytest.param("hdfs", "s3", signal.SIGINT, marks=[pytest.mark.minio, pytest.mark.hdfs]),
        ("local", "local", signal.SIGINT),
    ],
)
def test_interrupted_and_resumed(
    end: Callable[[str, str], End], tmp_path: Path, one: str, other: str, number: signal.Signals
) -> None:
    source, target = end(one, "from"), end(other, "to")
    source.write("large", os.urandom(7 * PART))
    slow = target.with_options(f"write_bandwidth={12 * MIB}")
    process = forked("migrate", str(source), slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while noted(tmp_path) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert "not done: run the same command again to resume from " in out
    assert err == ""
    parts = noted(tmp_path)
    assert parts < 7, "it did not wait for the rest"
    done = tierstore("migrate", str(source), str(target), "--json")
    told = summary(done.out)
    assert told["reused_bytes"] == parts * PART
    assert told["sent_bytes"] == (7 - parts) * PART
    assert target.contents() == source.contents()
    assert target.leftovers() == []


@pytest.mark.slow
@pairs(kinds=[("local", "s3"), ("s3", "local"), ("local", "hdfs"), ("hdfs", "local")])
def test_the_source_changes_meanwhile(
    end: Callable[[str, str], End], tmp_path: Path, one: str, other: str
) -> None:
    source, target = end(one, "from"), end(other, "to")
    source.write("large", bytes(6 * PART))
    new = os.urandom(6 * PART)  # of the same size
    halts = one != "s3"  # MinIO replaces nothing that somebody is still reading
    slow = target.with_options(f"write_bandwidth={(32 if halts else 16) * MIB}")
    process = forked("migrate", str(source), slow, "--json", stdout=subprocess.PIPE)
    while not noted(tmp_path):
        assert process.poll() is None
        time.sleep(0.005)
    if halts:
        process.send_signal(signal.SIGSTOP)  # else it may be done before this is
    assert noted(tmp_path) < 6
    source.write("large", new)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert summary(out)["copied"] == 1
    assert target.contents() == {"large": new}
    assert target.leftovers() == []


@pairs(kinds=[("local", "s3"), ("s3", "hdfs"), ("hdfs", "local")])
@pytest.mark.parametrize("conflict", ["skip", "fail", "overwrite"])
def test_conflicts(end: Callable[[str, str], End], one: str, other: str, conflict: str) -> None:
    source, target = end(one, "from"), end(other, "to")
    large = os.urandom(2 * PART + 5)
    theirs = {"size": b"longer", "bytes": b"BBBB", "large": large[:-1] + bytes([large[-1] ^ 1])}
    for key, data in {"size": b"s", "bytes": b"bbbb", "large": large, "new": b"n"}.items():
        source.write(key, data)
    for key, data in theirs.items():
        target.write(key, data)
    done = tierstore("migrate", str(source), str(target), "--conflict", conflict, "--json")
    assert done.code == (1 if conflict == "fail" else 0), done.err
    told = summary(done.out)
    outcome = {"skip": "kept", "fail": "failed", "overwrite": "copied"}[conflict]
    assert told[outcome] == (4 if conflict == "overwrite" else 3)
    wanted = source.contents() if conflict == "overwrite" else {**theirs, "new": b"n"}
    assert target.contents() == wanted
    assert target.leftovers() == []
