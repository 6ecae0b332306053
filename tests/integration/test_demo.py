"""`tierstore demo`: the main job end to end, and what it leaves for the other commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tierstore.cli import demo
from tierstore.errors import ConfigError

pytestmark = pytest.mark.torch

_MAIN = "import sys; from tierstore.cli.main import main; sys.argv[0] = 'tierstore'; main()"


def tierstore(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _MAIN, *arguments]
    # moto is what somebody without MinIO gets; the other tests of the ladder run on MinIO.
    environment = os.environ | {"PATH": "/usr/bin:/bin"}
    environment.pop("TIERSTORE_TEST_S3", None)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=400, check=False, env=environment
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


def test_an_empty_folder_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="is not empty"):
        demo.run(folder=tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "torch" else name)
    with pytest.raises(ConfigError, match="needs torch") as caught:
        demo.run(folder=tmp_path / "new")
    assert "pip install" in caught.value.hint
    assert not (tmp_path / "new").exists()


def test_what_it_must_show_is_checked() -> None:
    with pytest.raises(demo.DemoError, match="the loss differ"):
        demo._same("loss", {1: 2.0}, {1: 2.5})
    with pytest.raises(demo.DemoError, match="no 'digest'"):
        demo.Job(0, 1.0, [], "its log").last("digest")
