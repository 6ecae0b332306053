"""The `tierstore` command as a user meets it: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.shards import folder, launch, stage
from tierstore import __version__
from tierstore.checkpoint.collect import delete
from tierstore.checkpoint.store import RunStore
from tierstore.cli import main as cli
from tierstore.keys import Attempt
from tierstore.ladder.save import Saver
from tierstore.testing.servers import free_port

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process; return its exit code, output and errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tierstore", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Steps 1 to 3 on two tiers; launch 2 went back to step 2; step 3 was then abandoned."""
    tiers = [folder("fast", tmp_path / "fast"), folder("slow", tmp_path / "slow")]
    with closing(Saver(tiers, "run")) as saver:
        for step in (1, 2, 3):
            names = ["fast", "slow"] if step != 1 else ["slow"]
            work = stage(Attempt(step, 1, 1), launch(1))
            saver.submit(*work, tiers=names).wait(timeout=10)
        line = launch(2, parent=Attempt(2, 1, 1))
        saver.submit(*stage(Attempt(4, 2, 1), line), tiers=["fast"]).wait(timeout=10)
    config = tmp_path / "tierstore.toml"
    config.write_text(
        "".join(
            f'[[tier]]\nname = "{name}"\nurl = "file://{tmp_path}/{name}"\n'
            for name in ("fast", "slow")
        )
    )
    return config


def segment(store: Path, tier: str, step: int) -> Path:
    (found,) = (store.parent / tier).glob(f"runs/run/data/{step:012d}-*/00000-000.safetensors")
    return found


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# The command itself


def test_the_version(run: Run) -> None:
    assert run("--version") == (0, f"tierstore {__version__}\n", "")


@pytest.mark.parametrize("command", ["", "ls", "show", "verify", "doctor", "demo"])
def test_help_says_what_it_is_for(run: Run, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert "Usage:" in out
    assert len(out.splitlines()) > 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sl"], "No such command"),
        (["ls", "--al"], "No such option"),
        (["show"], "Missing argument"),
        (["show", "run", "latest"], "'step'"),
        (["verify", "../run", "-c", "file:///nowhere"], "run"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_configuration_mistakes_exit_with_2(run: Run, store: Path) -> None:
    missing = store.with_name("missing.toml")
    code, _, err = run("ls", "--config", str(missing))
    assert code == 2
    assert str(missing) in err.replace("\n", "")
    store.write_text(store.read_text().replace("url =", "ulr =", 1))
    code, _, err = run("ls", "--config", str(store))
    assert code == 2
    assert "'ulr'" in err
    assert "url" in err.replace("'ulr'", "")
    code, _, err = run("ls", "--config", "s3://key:s3cret@bucket/x")
    assert code == 2
    assert "s3cret" not in err


def test_without_a_configuration_the_way_to_one_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("ls")
    assert code == 2
    assert "TIERSTORE_CONFIG" in err + ""


def test_a_dead_server_is_named_within_seconds(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    started = time.monotonic()
    code, out, err = run("doctor", "--config", "s3://bucket/x")
    assert code == 1
    assert "reachable" in out
    assert "s3cret" not in out + err
    assert time.monotonic() - started < 10


# ls


def rows(out: str) -> list[tuple[Any, ...]]:
    return [(r["step"], r["launch"], r["line"], r["tiers"]) for r in json.loads(out)]


def test_ls_shows_what_a_restore_can_choose(run: Run, store: Path) -> None:
    code, out, err = run("ls", "--config", str(store), "--json")
    assert code == 0
    assert rows(out) == [
        (4, 2, "latest", ["fast"]),
        (2, 1, "timeline", ["fast", "slow"]),
        (1, 1, "timeline", ["slow"]),
    ]
    assert run("ls", "run", "-c", str(store), "--json")[1] == out
    code, out, err = run("ls", "--config", str(store))
    lines = out.splitlines()
    assert lines[0].split() == ["run", "step", "launch", "try", "line", "fast", "slow"]
    assert lines[1].split() == ["run", "4", "2", "1", "latest", "yes", "-"]
    assert "1 abandoned or deleted not shown" in err


def test_ls_all_shows_abandoned_and_deleted_steps(run: Run, store: Path) -> None:
    slow = folder("slow", store.parent / "slow")
    delete(RunStore(slow.backend, "run"), Attempt(1, 1, 1), grace=0)
    _, out, _ = run("ls", "--all", "--config", str(store), "--json")
    assert rows(out)[2:] == [(3, 1, "abandoned", ["fast", "slow"]), (1, 1, "deleted", [])]


def test_ls_of_nothing(run: Run, store: Path, tmp_path: Path) -> None:
    code, out, err = run("ls", "--config", f"file://{tmp_path}/empty")
    assert (code, out) == (0, "")
    assert "no checkpoints" in err
    assert run("ls", "--json", "--config", f"file://{tmp_path}/empty")[1] == "[]\n"
    code, out, err = run("ls", "other", "--config", str(store))
    assert (code, out) == (1, "")
    assert "'other'" in err
    assert "next:" in err


# show


def test_show(run: Run, store: Path) -> None:
    code, out, _ = run("show", "run", "--config", str(store), "--json")
    facts = json.loads(out)
    assert (code, facts["step"], facts["launch"], list(facts["tiers"])) == (0, 4, 2, ["fast"])
    assert Path(facts["tiers"]["fast"].removeprefix("file://")).is_dir()
    facts = json.loads(run("show", "run", "2", "-c", str(store), "--tensors", "--json")[1])
    assert facts["step"] == 2
    assert len(facts["tensors"]) == facts["tensor_count"]
    name = facts["tensors"][0]["name"]
    code, out, _ = run("show", "run", "2", "-c", str(store), "--match", name[:1] + "*")
    assert name in out
    assert name not in run("show", "run", "2", "-c", str(store), "--match", "nothing*")[1]


def test_show_what_is_not_there(run: Run, store: Path) -> None:
    for arguments in (["run", "9"], ["other"]):
        code, out, err = run("show", *arguments, "--config", str(store))
        assert (code, out) == (1, "")
        assert arguments[-1] in err


# verify


def test_verify_what_is_good(run: Run, store: Path) -> None:
    code, out, err = run("verify", "run", "2", "--config", str(store))
    assert (code, err) == (0, "")  # no progress bar where nobody looks
    assert out.count(": good, 5 files") == 2
    one = json.loads(run("verify", "run", "2", "-c", str(store), "-t", "slow", "--json")[1])
    assert list(one["tiers"]) == ["slow"]
    assert one["tiers"]["slow"]["damage"] == []


def test_verify_reports_all_damage_on_every_tier(run: Run, store: Path) -> None:
    flip(segment(store, "fast", 2), -1)
    whole = segment(store, "slow", 2)
    os.truncate(whole, whole.stat().st_size - 5)
    code, out, _ = run("verify", "run", "2", "--config", str(store))
    assert code == 1
    assert "on fast: damaged" in out
    assert "on slow: damaged" in out
    assert out.count("00000-000.safetensors block") == 2
    found = json.loads(run("verify", "run", "2", "--config", str(store), "--json")[1])
    for tier in ("fast", "slow"):
        (damage,) = found["tiers"][tier]["damage"]
        assert damage["file"].endswith("00000-000.safetensors")
        assert damage["tier"] == tier


def test_verify_a_missing_segment_and_a_damaged_manifest(run: Run, store: Path) -> None:
    segment(store, "fast", 2).unlink()
    (manifest,) = segment(store, "slow", 2).parent.glob("manifest-*")
    flip(manifest, 100)
    code, out, _ = run("verify", "run", "2", "--config", str(store), "--json")
    found = json.loads(out)
    assert code == 1
    assert found["tiers"]["fast"]["damage"]
    (damage,) = found["tiers"]["slow"]["damage"]
    assert damage["file"].endswith(manifest.name)
    segment(store, "fast", 4).unlink()
    code, out, err = run("verify", "run", "--config", str(store))
    assert code == 1
    assert "Traceback" not in out + err


def test_an_unknown_tier_is_named(run: Run, store: Path) -> None:
    code, _, err = run("verify", "run", "--tier", "fsat", "--config", str(store))
    assert code == 2
    assert "'fsat'" in err
    assert "fast, slow" in err


# doctor


def test_doctor(run: Run, store: Path) -> None:
    code, out, _ = run("doctor", "--config", str(store))
    assert code == 0
    assert "conditional create" in out
    assert "\x1b" not in out  # colour only on a terminal
    found = json.loads(run("doctor", "--config", str(store), "--json")[1])
    assert list(found) == ["fast", "slow"]
    assert not (store.parent / "fast" / "doctor").exists()
    blocked = store.parent / "file"
    blocked.write_text("")
    code, out, _ = run("doctor", "--config", f"file://{blocked}/tier")
    assert code == 1
    assert "->" in out  # advice


# As a process


def test_a_reader_that_leaves_is_no_error(store: Path) -> None:
    command = f"{sys.executable} -m tierstore.cli.main ls --all --config {store} | head -n 0"
    code = "import sys; from tierstore.cli.main import main; sys.argv[0] = 'tierstore'; main()"
    command = command.replace("-m tierstore.cli.main", f'-c "{code}"')
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_an_interrupt_ends_with_130(store: Path) -> None:
    script = (
        "import os, signal, sys, threading\n"
        "from tierstore.cli import ls, main\n"
        "ls._runs = lambda tiers: os.kill(os.getpid(), signal.SIGINT) or []\n"
        f"sys.argv = ['tierstore', 'ls', '--config', {str(store)!r}]\n"
        "main.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (130, -signal.SIGINT), done.stderr
    assert "Traceback" not in done.stderr
