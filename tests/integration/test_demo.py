"""`tierstore demo`: the main job end to end, and what it leaves for the other commands."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.command import COMMAND
from tests.patience import PATIENCE

pytestmark = pytest.mark.torch


def tierstore(*arguments: str) -> subprocess.CompletedProcess[str]:
    # moto is what somebody without MinIO gets; the other tests of the ladder run on MinIO.
    environment = os.environ | {"PATH": "/usr/bin:/bin"}
    for name in ("TIERSTORE_TEST_S3", "TIERSTORE_TEST_HDFS"):
        environment.pop(name, None)
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
        env=environment,
    )


@pytest.mark.slow
def test_the_whole_story(tmp_path: Path) -> None:
    done = tierstore("demo", "--json", "--folder", str(tmp_path / "demo"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["resumed_from"] == 8
    assert len(told["losses"]) == 16
    assert told["losses"]["16"] < told["losses"]["1"]
    assert [(save["step"], len(save["tiers"])) for save in told["saves"]] == [
        *((4, 2), (8, 2), (12, 2), (16, 2))
    ]
    assert {tier["state"] for save in told["saves"] for tier in save["tiers"]} == {"committed"}
    assert told["restore_seconds"].keys() == {"2 ranks", "3 ranks"}
    listed = json.loads(tierstore("ls", "demo", "--json", "-c", told["config"]).stdout)
    assert [row["step"] for row in listed] == [16, 12, 8, 4]
    assert int(told["digest"], 16)
    # The configuration that it leaves names what is still there, not the server that is gone.
    left = tierstore("verify", "demo", "--json", "-c", str(tmp_path / "demo" / "tierstore.toml"))
    assert left.returncode == 0, left.stderr
    assert [(name, tier["good"]) for name, tier in json.loads(left.stdout)["tiers"].items()] == [
        ("nvme", True)
    ]
    shown = tierstore("show", "demo", "12", "--tensors", "-c", told["config"])
    assert "model.token.weight" in shown.stdout
