"""The two commands: options, conflicts, what they say, what a kill leaves."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.command import Done, ladder_file, start, tierstore
from tierstore.convert import formats

Command = Callable[..., Done]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in the test's folder, on a tier there; m.safetensors is a model."""
    monkeypatch.chdir(tmp_path)
    save_file({"a": np.arange(5), "b": np.ones((2, 3), np.float16)}, "m.safetensors")
    ladder_file(tmp_path / "tierstore.toml", t=f"file://{tmp_path}/tier")
    return lambda *words: tierstore(*map(str, words))


def test_what_they_say(command: Command, tmp_path: Path) -> None:
    done = command("import", "m.safetensors", "run", 7, "--exclude", "b")
    assert done.out == (
        "imported 1 tensor, 0 values, 40 B from m.safetensors (hf) as run step 7 on t\n"
        "  not selected: 1\n"
    )
    done = command("export", "run", "out", "--to", "hf")
    assert done.out.startswith(
        f"exported 1 tensor, 0 values, 40 B of run step 7 to file://{tmp_path}/out (hf, 1 file)\n"
    )
    assert "config.json" in done.out
    assert done.err == ""
    assert [path.name for path in Path("out").iterdir()] == ["model.safetensors"]


def test_json(command: Command) -> None:
    facts = command("import", "m.safetensors", "run", 7, "--json").json
    assert facts.pop("seconds") >= 0
    assert facts == {
        "source": "m.safetensors",
        "format": "hf",
        "run": "run",
        "step": 7,
        "launch": 1,
        "tiers": ["t"],
        "tensors": 2,
        "values": 0,
        "bytes": 52,
        "files": 1,
        "not_selected": 0,
        "left_out": [],
        "pickles": [],
        "dry_run": False,
    }
    facts = command("export", "run", "out.safetensors", "--json").json
    assert facts["files"] == ["out.safetensors"]
    assert (facts["tensors"], facts["bytes"], facts["step"]) == (2, 52, 7)


def test_a_dry_run_writes_nothing(command: Command) -> None:
    done = command("import", "m.safetensors", "run", 1, "--dry-run")
    assert done.out.startswith("would import 2 tensors")
    assert command("ls", "--json").json == []
    command("import", "m.safetensors", "run", 1)
    before = {*Path().rglob("*")}
    done = command("export", "run", "out", "--to", "hf", "-n")
    assert done.out.startswith("would export 2 tensors")
    assert {*Path().rglob("*")} == before


def test_it_is_a_checkpoint_like_any_other(command: Command) -> None:
    command("import", "m.safetensors", "run", 1)
    assert command("verify", "run").code == 0
    facts = command("show", "run", "--tensors", "--json").json
    assert [(t["name"], t["dtype"], t["shape"]) for t in facts["tensors"]] == [
        ("a", "int64", [5]),
        ("b", "float16", [2, 3]),
    ]
    assert facts["world_size"] == 1


def test_steps_are_imported_in_order(command: Command) -> None:
    for step in (10, 20):
        assert command("import", "m.safetensors", "run", step).code == 0
    rows = command("ls", "run", "--json").json
    assert [(row["step"], row["line"]) for row in rows] == [(20, "latest"), (10, "timeline")]
    done = command("import", "m.safetensors", "run", 20)
    assert done.code == 1
    assert "has step 20" in done.err
    assert "--force" in done.err
    done = command("import", "m.safetensors", "run", 15)
    assert "is at step 20" in done.err
    assert command("import", "m.safetensors", "run", 15, "--force").code == 0
    rows = command("ls", "run", "--all", "--json").json
    assert [(row["step"], row["line"]) for row in rows] == [
        (15, "latest"),
        (10, "timeline"),
        (20, "abandoned"),
    ]


def test_an_earlier_export_is_kept_unless_forced(command: Command) -> None:
    command("import", "m.safetensors", "run", 1)
    export = ("export", "run", "out", "--to", "hf", "--max-shard-size", "20B")
    Path("out").mkdir()
    Path("out/config.json").write_text("{}")
    assert command(*export).code == 0
    done = command("export", "run", "out", "--to", "hf")
    assert done.code == 1
    assert "model-00001-of-00002.safetensors" in done.err
    assert command("export", "run", "out", "--to", "hf", "--force").code == 0
    assert {path.name for path in Path("out").iterdir()} == {"config.json", "model.safetensors"}
    assert command("export", "run", "m.safetensors").code == 1
    assert load_file("out/model.safetensors").keys() == {"a", "b"}


def test_to_every_tier_or_to_one(command: Command, tmp_path: Path) -> None:
    folders = {name: f"file://{tmp_path}/{name}" for name in ("one", "two")}
    config = ladder_file(tmp_path / "two.toml", **folders)
    command("import", "m.safetensors", "run", 1, "-c", config)
    command("import", "m.safetensors", "run", 2, "-c", config, "--tier", "two")
    rows = command("ls", "--json", "-c", config).json
    assert [(row["step"], row["tiers"]) for row in rows] == [(2, ["two"]), (1, ["one", "two"])]
    for path in (tmp_path / "one").rglob("*.safetensors"):
        path.write_bytes(b"damaged")
    done = command("export", "run", "out.safetensors", "--step", 1, "-c", config)
    assert done.code == 0  # from the other tier
    assert load_file("out.safetensors")["a"].tolist() == [0, 1, 2, 3, 4]


def test_damage_ends_an_export(command: Command, tmp_path: Path) -> None:
    command("import", "m.safetensors", "run", 1)
    (path,) = (tmp_path / "tier").rglob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = command("export", "run", "out.safetensors")
    assert done.code == 1
    assert "block 0 is damaged on every tier" in done.err
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["import", "nothing", "run", "1"], 1, "there is no nothing"),
        (["import", "m.safetensors", "run", "x"], 2, "Invalid value for 'STEP'"),
        (["import", "m.safetensors", "../run", "1"], 2, "'../run' is not legal"),
        (["import", "m.safetensors", "run", "1", "--from", "hff"], 2, "did you mean 'hf'?"),
        (["import", "m.safetensors", "run", "1", "--only", "c"], 1, "matches none of a, b"),
        (["import", "tierstore.toml", "run", "1"], 2, "of no format that is known here"),
        (["import", "s3://u:p@b/x", "run", "1"], 2, "holds a user or password"),
        (["export", "run", "out"], 2, "say --to hf or --to dcp"),
        (["export", "none", "out", "--to", "hf"], 1, "has no checkpoint"),
        (
            ["export", "run", "m.safetensors", "--max-shard-size", "0"],
            2,
            "'0' is less than one byte",
        ),
        (["export", "run", "tierstore.toml", "--to", "hf"], 2, "tierstore.toml is a file"),
        (["export", "run", "x.safetensors", "--step", "3"], 1, "no checkpoint of step 3"),
        (["export", "run", "x.safetensors", "--only", "c"], 1, "nothing that --only matches"),
    ],
)
def test_mistakes(command: Command, words: list[str], code: int, said: str) -> None:
    command("import", "m.safetensors", "run", 1)
    done = command(*words)
    assert (done.code, done.out) == (code, "")
    assert said in done.said


def test_a_folder_of_pickles_is_named(command: Command) -> None:
    Path("old").mkdir()
    Path("old/pytorch_model.bin").write_bytes(b"x")
    done = command("import", "old", "run", 1)
    assert done.code == 2
    assert "pytorch_model.bin" in done.err


def test_without_torch_there_is_a_clear_message(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = metadata.EntryPoint("torch", "not_torch.convert:FORMAT", formats.GROUP)
    monkeypatch.setattr(formats, "_entries", lambda: {"torch": entry})
    Path("m.pt").write_bytes(b"x")
    done = command("import", "m.pt", "run", 1)
    assert done.code == 2
    assert "needs not_torch, which is not installed" in done.err
    assert "pip install 'tierstore[torch]'" in done.err


# Kills


def wait_for(process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    """Wait for a process to get somewhere."""
    while not there():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)


@pytest.fixture
def large(command: Command) -> None:
    """Three tensors of two blocks each, in large.safetensors."""
    del command
    save_file({name: np.full(2**21, 7) for name in "abc"}, "large.safetensors")


def test_a_killed_import_is_no_checkpoint(command: Command, large: None, tmp_path: Path) -> None:
    slow = f"file://{tmp_path}/tier?write_bandwidth=4000000"
    process = start("import", "large.safetensors", "run", "1", "-c", slow)
    wait_for(process, lambda: any((tmp_path / "tier").glob("runs/run/launches/*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert command("ls", "--all", "--json").json == []
    assert command("import", "large.safetensors", "run", 1).code == 0
    assert command("verify", "run").code == 0


def test_a_killed_export_does_not_look_whole(command: Command, large: None, tmp_path: Path) -> None:
    command("import", "large.safetensors", "run", 1)
    slow = f"file://{tmp_path}/out?write_bandwidth=16000000"
    size = ("--max-shard-size", "20MB", "--to", "hf")
    process = start("export", "run", slow, *size)
    wait_for(process, lambda: any(Path("out").glob("*.safetensors")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("out/model.safetensors.index.json").exists()
    assert "it is not the whole model" in command("import", "out", "other", 1).err
    assert "--force" in command("export", "run", "out", *size).err
    assert command("export", "run", "out", *size, "--force").code == 0
    assert command("import", "out", "other", 1, "--json").json["bytes"] == 3 * 2**24


@pytest.mark.parametrize("size", [4, 60, -10])
def test_a_file_that_was_cut_short(command: Command, size: int) -> None:
    whole = Path("m.safetensors").read_bytes()
    Path("m.safetensors").write_bytes(whole[:size])
    done = command("import", "m.safetensors", "run", 7)
    assert done.code == 1
    assert "next: copy or download it again" in done.err
    assert "verify" not in done.err


@pytest.mark.parametrize("name", ["wh?t%41 +#.safetensors", "ü.safetensors"])
def test_names_of_files_are_what_they_read(command: Command, tmp_path: Path, name: str) -> None:
    assert command("import", "m.safetensors", "run", 7).code == 0
    assert command("export", "run", name).code == 0
    assert Path(name).is_file()
    assert command("import", name, "run", 8).code == 0
    url = f"file://{tmp_path}/{quote(name)}"
    assert command("import", url, "run", 9).code == 0
    assert command("export", "run", url, "--force").code == 0


def test_an_export_replaces_nothing_of_a_tier(command: Command, tmp_path: Path) -> None:
    """Its own input is what it would read from."""
    command("import", "m.safetensors", "run", 7)
    (segment,) = (tmp_path / "tier").rglob("*.safetensors")
    before = segment.read_bytes()
    (tmp_path / "link").symlink_to(segment.parent)
    for target in (segment, f"file://{segment}?direct=never"):
        for words in ((), ("--dry-run",)):
            done = command("export", "run", target, "--force", *words)
            assert done.code == 2, done.out
            assert "is part of the tier" in done.said
    assert segment.read_bytes() == before
