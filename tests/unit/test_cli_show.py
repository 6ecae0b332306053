"""`tierstore show`: what is in one checkpoint, from whichever tier can tell."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tests import attempts
from tests.command import folders, ladder_file, save, stored, tierstore
from tests.damage import flip
from tests.shards import COLUMNS, folder, launch, stage
from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.store import RunStore
from tierstore.image.layout import Chunk
from tierstore.keys import Attempt
from tierstore.ladder.save import Saver


@pytest.fixture
def config(tmp_path: Path) -> str:
    tiers = folders(tmp_path, "fast", "slow")
    save(tiers, 10)
    save(tiers, 20, on=2, parent=Attempt(10, 1, 1), rows=600)
    urls = {name: f"file://{tmp_path}/{name}" for name in ("fast", "slow")}
    return ladder_file(tmp_path / "tierstore.toml", **urls)


def test_the_latest_in_json(config: str, tmp_path: Path) -> None:
    facts = tierstore("show", "run", "--json", "-c", config).json
    nbytes, folders_ = facts.pop("bytes"), facts.pop("tiers")
    assert facts == {
        "run": "run",
        "step": 20,
        "launch": 2,
        "try": 1,
        "nonce": f"{2:016x}",
        "parent": {"launch": 1, "step": 10},
        "world_size": 1,
        "tensor_count": 1,
        "chunks": 2,
        "files": 2,
        "format": 2,
        "ranks": {"fast": 1, "slow": 1},
        "values": {"rank0": "0"},
    }
    assert nbytes >= 600 * COLUMNS * 4
    for name, where in folders_.items():
        assert where.startswith(f"file://{tmp_path}/{name}/runs/run/data/000000000020-000002-01-")
        assert Path(where.removeprefix("file://")).is_dir()


def test_a_given_step_in_words(config: str) -> None:
    done = tierstore("show", "run", "10", "-c", config)
    assert (done.code, done.err) == (0, "")
    first, second, *rest = done.out.splitlines()
    assert first == "run step 10  launch 1, try 1, 1 rank"
    assert second.endswith(" in 1 tensor, 1 chunk, 1 file, format 2")
    assert [line.split(":")[0] for line in rest[:2]] == ["  fast", "  slow"]
    assert rest[2] == "  rank0 = 0"
    latest = tierstore("show", "run", "-c", config).out
    assert latest.splitlines()[0].endswith(", goes on from step 10 of launch 1")


def test_one_tier(config: str) -> None:
    facts = tierstore("show", "run", "-t", "slow", "--tensors", "--json", "-c", config).json
    assert list(facts["tiers"]) == ["slow"]
    assert len(facts["tensors"]) == facts["tensor_count"]


def test_a_step_that_is_not_there_says_which_are(config: str) -> None:
    done = tierstore("show", "run", "15", "-c", config)
    assert (done.code, done.out) == (1, "")
    assert "no checkpoint of step 15 on fast, slow" in done.err
    assert "next: it has steps 20, 10" in done.err
    done = tierstore("show", "other", "-c", config)
    assert (done.code, done.out) == (1, "")
    assert "run 'other' has no checkpoint" in done.err


@pytest.fixture
def odd(tmp_path: Path) -> str:
    """One checkpoint with names and values that are not easy to print."""
    store = RunStore(folder("t", tmp_path / "odd").backend, "odd")
    attempt = Attempt(1, 1, 1)
    attempts.claim(store, 1)
    names = ["layers[0].[red]w", "layers[1].w", "x" * 300, ":smile:"]
    attempts.write_rank(
        store,
        attempt,
        0,
        1,
        chunks=[Chunk(name, "float32", (2, 3), (0, 0), (2, 3), "") for name in names],
        values=[
            ValueEntry("args[lr]", "", "json", b'"' + b"v" * 100 + b'"'),
            ValueEntry("rng", "", "opaque", b"\x80\x04N."),
        ],
        declared=6,
    )
    assert store.try_commit(attempt, attempts.nonce_of(1)) is not None
    return f"file://{tmp_path}/odd"


def test_names_are_printed_as_they_are(odd: str) -> None:
    out = tierstore("show", "odd", "--tensors", "-c", odd).out
    for name in ("layers[0].[red]w", "x" * 300, ":smile:"):
        assert [line.split() for line in out.splitlines() if line.startswith(name)] == [
            [name, "float32", "2x3", "1"]
        ]
    assert f'  args[lr] = "{"v" * 56}...\n' in out
    assert "  rng = <opaque, 4 bytes>\n" in out


def test_match_is_a_glob(odd: str) -> None:
    facts = tierstore("show", "odd", "--match", "layers*", "--json", "-c", odd).json
    assert facts["tensors"][1] == {
        "name": "layers[1].w",
        "dtype": "float32",
        "shape": [2, 3],
        "elements": 6,
        "chunks": 1,
    }
    assert [tensor["name"] for tensor in facts["tensors"]] == ["layers[0].[red]w", "layers[1].w"]
    assert facts["values"]["args[lr]"] == f'"{"v" * 100}"'
    done = tierstore("show", "odd", "-m", "[z-a]", "-c", odd)
    assert (done.code, "pattern '[z-a]'" in done.said) == (2, True)
    done = tierstore("show", "odd", "-m", "nothing*", "-c", odd)
    assert done.code == 0
    assert "chunks\n" not in done.out  # no empty table
    assert "no tensor is named like 'nothing*'" in done.err


def test_a_tier_with_a_damaged_manifest_is_named_and_the_next_one_asked(
    config: str, tmp_path: Path
) -> None:
    flip(stored(tmp_path / "fast", 20, "manifest-*"), 200)
    done = tierstore("show", "run", "--tensors", "-c", config)
    assert done.code == 1
    assert "matrix" in done.out
    assert "error: tier fast: runs/run/data/" in done.err
    flip(stored(tmp_path / "slow", 20, "manifest-*"), 200)
    done = tierstore("show", "run", "-c", config)
    assert (done.code, done.out) == (1, "")
    assert "error: tier fast: " in done.err
    assert "error: tier slow: " in done.err


def test_a_nodes_own_part_is_shown_as_a_part(tmp_path: Path) -> None:
    local, line = folder("local", tmp_path, (0, 1)), launch(world=4)
    with closing(Saver([local], "run")) as one, closing(Saver([local], "run")) as two:
        for rank, saver in enumerate((one, two)):
            saver.submit(*stage(Attempt(1, 1, 1), line, rank=rank, world=4))
    done = tierstore("show", "run", "-c", f"file://{tmp_path}")
    assert done.code == 0
    assert "4 ranks\n" in done.out
    assert "  (2 of 4 ranks)\n" in done.out
