"""`tierstore ls`: what is where, also when a tier is away or a record is damaged."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tests.command import folders, ladder_file, save, tierstore
from tests.shards import folder, launch, stage
from tierstore.checkpoint.delete import delete
from tierstore.checkpoint.store import RunStore
from tierstore.keys import Attempt
from tierstore.ladder.save import Saver
from tierstore.testing.servers import free_port


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Two runs; "b" went back from step 3 to step 1, and step 2 is on the slow tier alone."""
    tiers = folders(tmp_path, "fast", "slow")
    save(tiers, 7, run="a")
    save(tiers, 1, run="b")
    save(tiers[1:], 2, run="b")
    save(tiers, 3, run="b")
    save(tiers, 4, run="b", on=2, parent=Attempt(1, 1, 1))
    urls = {name: f"file://{tmp_path}/{name}" for name in ("fast", "slow")}
    return ladder_file(tmp_path / "tierstore.toml", **urls)


def test_all_runs_with_the_newest_first(config: str) -> None:
    done = tierstore("ls", "-c", config)
    assert done.code == 0
    header, *lines = [line.split() for line in done.out.splitlines()]
    assert header == ["run", "step", "launch", "try", "line", "fast", "slow"]
    assert lines == [
        ["a", "7", "1", "1", "latest", "yes", "yes"],
        ["b", "4", "2", "1", "latest", "yes", "yes"],
        ["b", "1", "1", "1", "timeline", "yes", "yes"],
    ]
    assert done.err == "2 abandoned or deleted not shown; --all shows them\n"
    everything = tierstore("ls", "--all", "-c", config).out.splitlines()
    assert everything[-1].split() == ["b", "2", "1", "1", "abandoned", "-", "yes"]
    one, runs = (tierstore("ls", *words, "--json", "-c", config).json for words in (["b"], []))
    assert one == runs[1:]


def test_json_names_everything(config: str) -> None:
    rows = tierstore("ls", "b", "--all", "--json", "-c", config).json
    assert rows[0] == {
        "run": "b",
        "step": 4,
        "launch": 2,
        "try": 1,
        "nonce": f"{2:016x}",
        "line": "latest",
        "tiers": ["fast", "slow"],
    }
    assert [(row["step"], row["line"], row["tiers"]) for row in rows[1:]] == [
        (1, "timeline", ["fast", "slow"]),
        (3, "abandoned", ["fast", "slow"]),
        (2, "abandoned", ["slow"]),
    ]


def test_a_deleted_step_is_shown_only_when_asked_for(config: str, tmp_path: Path) -> None:
    for one in folders(tmp_path, "fast", "slow"):
        delete(RunStore(one.backend, "a"), Attempt(7, 1, 1), grace=0)
    done = tierstore("ls", "a", "-c", config)
    assert (done.code, done.out) == (0, "")
    assert "no checkpoints\n1 abandoned or deleted" in done.err
    (row,) = tierstore("ls", "a", "-a", "--json", "-c", config).json
    assert (row["line"], row["tiers"]) == ("deleted", [])


@pytest.mark.parametrize("part", [Attempt(8, 1, 1), Attempt(2, 2, 1)])
def test_what_only_one_node_has_is_not_the_latest(
    config: str, tmp_path: Path, part: Attempt
) -> None:
    """A restore passes it over, also if its launch began anew."""
    with closing(Saver(folders(tmp_path, "fast"), "a")) as saver:
        saver.submit(*stage(part, launch(part.launch, world=2), rank=0, world=2))
    lines = [line.split() for line in tierstore("ls", "a", "-c", config).out.splitlines()[1:]]
    assert lines == [
        ["a", str(part.step), str(part.launch), "1", "part", "yes", "-"],
        ["a", "7", "1", "1", "latest", "yes", "yes"],
    ]


def test_nothing_there(tmp_path: Path, config: str) -> None:
    empty = f"file://{tmp_path}/empty"
    assert tierstore("ls", "-c", empty) == (0, "", "no checkpoints\n")
    assert tierstore("ls", "--json", "-c", empty) == (0, "[]\n", "")
    assert not (tmp_path / "empty").exists()
    done = tierstore("ls", "other", "-c", config)
    assert (done.code, done.out) == (1, "")
    assert "run 'other' has no checkpoint on fast, slow" in done.err
    assert "next: `tierstore ls`" in done.err


@pytest.fixture
def half_dead(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ladder above, and an S3 tier whose server is not there."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    url = f"s3://bucket?endpoint_url=http://127.0.0.1:{free_port()}"
    path = tmp_path / "half.toml"
    lines = f'[[tier]]\nname = "s3"\nurl = "{url}"\nretry_seconds = 0.2\n'
    path.write_text(Path(config).read_text() + lines)
    return str(path)


@pytest.mark.parametrize("words", [["ls"], ["ls", "b"]])
def test_a_tier_that_is_away_hides_no_other(half_dead: str, words: list[str]) -> None:
    done = tierstore(*words, "-c", half_dead)
    assert done.code == 1
    assert done.out.splitlines()[-1].split() == [
        *("b", "1", "1", "1", "timeline"),
        "yes",
        "yes",
        "?",
    ]
    assert done.err.count("error: tier s3: ") == 1
    rows = tierstore(*words, "--json", "-c", half_dead)
    assert rows.code == 1
    assert [row["step"] for row in rows.json if row["run"] == "b"] == [4, 1]


def test_a_run_that_may_be_on_a_tier_that_is_away_is_not_called_missing(half_dead: str) -> None:
    done = tierstore("ls", "other", "-c", half_dead)
    assert (done.code, done.out) == (1, "")
    assert "tier s3" in done.err
    assert "no checkpoint" not in done.err


def test_a_damaged_launch_record_hides_nothing(config: str, tmp_path: Path) -> None:
    before = tierstore("ls", "--all", "-c", config)
    (tmp_path / "fast/runs/a/launches/000001.json").write_text("{}")
    done = tierstore("ls", "--all", "-c", config)
    assert (done.code, done.out) == (0, before.out)


def test_a_pipe_gets_whole_lines(tmp_path: Path) -> None:
    name = "r" * 180
    save([folder("t", tmp_path)], 1, run=name)
    done = tierstore("ls", "-c", f"file://{tmp_path}")
    assert done.out.splitlines()[1].split() == [name, "1", "1", "1", "latest", "yes"]
