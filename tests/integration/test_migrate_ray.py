"""`tierstore migrate --on ray` on real nodes, one of which is lost on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import start
from tests.conftest import Bucket, or_skip
from tests.ends import MIB, PART
from tests.files import contents, receipts
from tests.patience import PATIENCE
from tests.ray_nodes import ENVIRONMENT, Nodes, ray_nodes
from tests.shards import until

pytestmark = [pytest.mark.slow, pytest.mark.minio]


@pytest.fixture(scope="module")
def nodes(pytestconfig: pytest.Config) -> Iterator[Nodes]:
    """A head and one more node, without credentials."""
    with or_skip(pytestconfig, "Ray", lambda: ray_nodes(1, 1)) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, nodes: Nodes, minio_bucket: Bucket) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    (folder / "sub").mkdir(parents=True)
    for number in range(16):
        (folder / f"large{number}").write_bytes(os.urandom(3 * PART + number))
    for number in range(20):
        (folder / "sub" / f"{number:02}").write_bytes(os.urandom(1000 * number))
    return folder


def stored(bucket: Bucket) -> dict[str, bytes]:
    return {key.removeprefix("to/"): bucket.read(key) for key in bucket.keys("to/")}


class Migration:
    """The command, under way."""

    def __init__(self, src: Path, bucket: Bucket, *words: str) -> None:
        self.journal = src.parent / "journal"
        target = f"s3://{bucket.name}/to?part_size={PART}&write_bandwidth={16 * MIB}"
        words = ("migrate", str(src), target, "--journal", str(self.journal), "--json", *words)
        self.out = src.parent / "out"
        with self.out.open("w") as out:
            self.process = start(*words, "--on", "ray", stdout=out, stderr=subprocess.PIPE)

    def wait_for(self, what: Callable[[], bool]) -> None:
        while not what():
            assert self.process.poll() is None, (self.told, self.process.communicate())
            time.sleep(0.05)

    def end(self) -> tuple[int, dict[str, Any], str]:
        """Return its exit code, its summary and its errors."""
        try:
            _, err = self.process.communicate(timeout=PATIENCE)
        finally:
            self.process.kill()
        return self.process.returncode, self.told, err

    @property
    def told(self) -> dict[str, Any]:
        """The last whole line of what it has printed."""
        lines = self.out.read_text().split("\n")[:-1]
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return found

    @property
    def noted(self) -> list[tuple[int, int]]:
        return receipts(self.journal) if self.journal.exists() else []


def test_credentials_stay_here_unless_sent(src: Path, minio_bucket: Bucket) -> None:
    code, told, err = Migration(src, minio_bucket).end()
    assert (code, told["copied"], told["workers"]) == (1, 0, 0)
    assert "takes no part: " in err
    assert "no node of the Ray cluster is left: " in err
    assert stored(minio_bucket) == {}


def test_interrupted_resumed_and_a_node_lost(src: Path, minio_bucket: Bucket, nodes: Nodes) -> None:
    first = Migration(src, minio_bucket, "--send-credentials")
    first.wait_for(lambda: len(first.noted) >= 2)
    first.process.send_signal(signal.SIGINT)
    code, before, err = first.end()
    assert (code, before["complete"]) == (130, False)
    # A busy machine takes its time to start a cluster's workers, and the command says so.
    assert all(line.startswith("waiting for ray ") for line in err.splitlines()), err
    until(lambda: not nodes.workers(0) + nodes.workers(1))  # workers end with the command
    noted = set(first.noted)
    nbytes = sum(path.stat().st_size for path in src.rglob("*") if path.is_file())

    second = Migration(src, minio_bucket, "--send-credentials")
    second.wait_for(lambda: second.told.get("workers") == 2)
    seen: set[tuple[int, int]] = set()  # a finished object has none any more

    def goes_on() -> bool:
        seen.update(second.noted)
        return len(seen - noted) >= 4

    second.wait_for(goes_on)
    nodes.kill(1)
    code, told, err = second.end()
    assert code == 0, err
    assert all(json.loads(line)["event"] for line in second.out.read_text().splitlines())
    assert stored(minio_bucket) == contents(src)
    assert (told["failed"], told["complete"]) == (0, True)
    assert (told["workers"], told["workers_lost"]) == (2, 1)
    assert "is lost; others go on with what it had" in err
    assert told["reused_bytes"] >= PART
    assert second.noted == []
    assert before["sent_bytes"] + told["sent_bytes"] == nbytes, "what was noted was kept"

    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    logs = [path for path in nodes.folder.rglob("*") if path.is_file()]
    assert logs
    assert not [path for path in logs if secret in path.read_bytes()]
