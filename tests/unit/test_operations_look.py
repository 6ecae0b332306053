"""`inspect` and `verify` as a notebook calls them: values in, results and errors out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import folders, ladder_file, save, stored
from tests.damage import flip
from tierstore.config import load_config
from tierstore.errors import CheckpointNotFoundError, ConfigError
from tierstore.operations import inspect
from tierstore.operations.verify import Finding, verify
from tierstore.testing.servers import free_port


@pytest.fixture
def urls(tmp_path: Path) -> list[str]:
    """Steps 1 and 2 of one run on two tiers; step 2 on the first alone."""
    tiers = folders(tmp_path, "fast", "slow")
    save(tiers, 1)
    save(tiers[:1], 2)
    return [(tmp_path / name).as_uri() for name in ("fast", "slow")]


def test_runs_and_steps_are_rows(urls: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert inspect.runs(urls) == inspect.Runs(("run",))
    found = inspect.steps(urls, "run")
    assert found.tiers == ("local", "local2")
    assert [(row.step, row.line, row.tiers) for row in found.steps] == [
        (2, "latest", ("local",)),
        (1, "timeline", ("local", "local2")),
    ]
    assert capfd.readouterr() == ("", "")


def test_a_ladder_is_whatever_says_which(
    urls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ladder_file(tmp_path / "tierstore.toml", fast=urls[0], slow=urls[1])
    monkeypatch.setenv("TIERSTORE_CONFIG", path)
    tiers = folders(tmp_path, "fast", "slow")
    ladders = [path, Path(path), [path], load_config(path), tiers, None, ()]
    found = [inspect.steps(ladder) for ladder in ladders]
    assert found == found[:1] * len(ladders)
    assert inspect.steps(urls[1]).steps[0].step == 1
    assert next(tiers[0].backend.list("")), "open tiers stay open"


def test_a_tier_that_is_away_is_told_with_the_rows(urls: list[str]) -> None:
    dead = f"hdfs://127.0.0.1:{free_port()}/t?retry_seconds=0"
    found = inspect.steps([urls[0], dead])
    assert [row.step for row in found.steps] == [2, 1]
    ((name, error),) = found.unseen
    assert name == "hdfs"
    assert "127.0.0.1" in str(error)


def test_what_is_in_a_step(urls: list[str]) -> None:
    found = inspect.show(urls, "run", 1, tensors="*")
    assert (found.step, found.world_size, [*found.tiers]) == (1, 1, ["local", "local2"])
    assert found.tensors is not None
    assert len(found.tensors) == found.tensor_count
    assert inspect.show(urls, "run").tensors is None
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint of step 9"):
        inspect.show(urls, "run", 9)
    with pytest.raises(ConfigError, match="no tier 'other'"):
        inspect.show(urls, "run", tier="other")


def test_no_copy_can_be_read(urls: list[str], tmp_path: Path) -> None:
    for tier in ("fast", "slow"):
        (commit,) = tmp_path.glob(f"{tier}/runs/run/commits/{1:012d}-*")
        commit.write_bytes(b"{" * commit.stat().st_size)
    with pytest.raises(inspect.NoCopyError, match=r"tier local: .*; tier local2: ") as caught:
        inspect.show(urls, "run", 1)
    assert len(caught.value.errors) == 2


def test_verify_finds_damage_and_tells_how_far_it_is(urls: list[str], tmp_path: Path) -> None:
    bars: dict[str, int] = {}
    done: dict[str, int] = {}

    def progress(what: str, nbytes: int) -> object:
        bars[what] = nbytes
        return lambda n: done.__setitem__(what, done.get(what, 0) + n)

    found = verify(urls, "run", 1, progress=progress)
    assert found.good
    assert bars == done == {name: copy.nbytes for name, copy in found.copies.items()}
    flip(stored(tmp_path / "slow", 1, "00000-000.safetensors"))
    found = verify(urls, "run", 1)
    assert (found.good, found.copies["local"].good) == (False, True)
    (bad,) = found.copies["local2"].damage
    assert isinstance(bad, Finding)
    assert (bad.tier, bad.block, "CRC32C" in bad.outcome) == ("local2", 0, True)


def test_a_secret_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        inspect.steps("s3://key:hunter2@bucket/t")
    assert "hunter2" not in f"{caught.value} {caught.value!r}"
