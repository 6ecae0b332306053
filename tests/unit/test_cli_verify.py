"""`tierstore verify`: every kind of damage is reported, on every tier, and hides no other."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.command import folders, ladder_file, save, stored, tierstore
from tests.damage import flip
from tests.shards import folder, launch, stage
from tierstore.blocks import BLOCK_SIZE
from tierstore.keys import Attempt
from tierstore.ladder.save import Saver
from tierstore.testing.servers import free_port

SEGMENT = "00000-000.safetensors"


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Step 1 on two tiers, in three files of one block each."""
    save(folders(tmp_path, "fast", "slow"), 1, rows=900)
    urls = {name: f"file://{tmp_path}/{name}" for name in ("fast", "slow")}
    return ladder_file(tmp_path / "tierstore.toml", **urls)


def verify(config: str, *words: str) -> Any:
    """Verify; return what each tier's part of the JSON says, having compared it with the text."""
    done = tierstore("verify", "run", *words, "--json", "-c", config)
    text = tierstore("verify", "run", *words, "-c", config)
    tiers = done.json["tiers"]
    assert done.code == text.code == (0 if all(tier["good"] for tier in tiers.values()) else 1)
    for name, tier in tiers.items():
        assert f"run step {done.json['step']} on {name}: " in text.out or tier["error"]
        for damage in tier["damage"]:
            assert damage["tier"] == name
            block = "" if damage["block"] is None else f" block {damage['block']}"
            assert f"  {damage['file']}{block}: {damage['outcome']}" in text.out
    return tiers


def test_all_is_good(config: str) -> None:
    done = tierstore("verify", "run", "-c", config)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"run step 1 on {name}: good, 3 files, 3.5 MiB read" for name in ("fast", "slow")
    ]
    one = tierstore("verify", "run", "1", "-t", "slow", "--json", "-c", config).json
    assert list(one["tiers"]) == ["slow"]
    done = tierstore("verify", "run", "1", "--json", "-c", config)
    found = done.json
    size = found["tiers"]["fast"].pop("bytes")
    assert size > 900 * 4096
    assert found["tiers"].pop("slow")["bytes"] == size
    assert found == {
        "run": "run",
        "step": 1,
        "launch": 1,
        "try": 1,
        "tiers": {"fast": {"good": True, "files": 3, "damage": [], "error": ""}},
    }


def test_every_segments_damage_is_found(config: str, tmp_path: Path) -> None:
    flip(stored(tmp_path / "slow", 1, "00000-000.safetensors"))
    os.truncate(stored(tmp_path / "slow", 1, "00000-001.safetensors"), 5000)
    stored(tmp_path / "slow", 1, "00000-002.safetensors").unlink()
    tiers = verify(config)
    assert tiers["fast"]["good"]
    damage = tiers["slow"]["damage"]
    assert [Path(each["file"]).name[:9] for each in damage] == [f"00000-00{n}" for n in range(3)]
    assert [each["block"] for each in damage] == [0, 0, 0]
    assert "CRC32C" in damage[0]["outcome"]
    assert "5000 bytes" in damage[1]["outcome"]
    assert "No such file" in damage[2]["outcome"]
    assert tiers["slow"]["files"] == 3


def test_a_segment_that_cannot_be_read_hides_no_other(config: str, tmp_path: Path) -> None:
    """Such as one whose disk fails; here a link to itself."""
    first = stored(tmp_path / "fast", 1, "00000-000.safetensors")
    first.unlink()
    first.symlink_to(first)
    flip(stored(tmp_path / "fast", 1, "00000-002.safetensors"))
    damage = verify(config)["fast"]["damage"]
    assert [Path(each["file"]).name[:9] for each in damage] == ["00000-000", "00000-002"]
    assert "symbolic links" in damage[0]["outcome"]


@pytest.mark.parametrize("tier", ["fast", "slow"])
@pytest.mark.parametrize("name", ["manifest-*", "fragments/00000"])
def test_a_damaged_record_is_found_on_any_tier(
    config: str, tmp_path: Path, tier: str, name: str
) -> None:
    file = stored(tmp_path / tier, 1, name)
    flip(file, 100)
    flip(stored(tmp_path / tier, 1, SEGMENT))  # is found all the same
    tiers = verify(config)
    record, segment = tiers[tier]["damage"]
    assert record["file"].endswith(f"/{file.name}")
    assert record["block"] is None
    assert (Path(segment["file"]).name, segment["block"]) == (SEGMENT, 0)
    assert [name for name, found in tiers.items() if found["good"]] == [
        name for name in ("fast", "slow") if name != tier
    ]


@pytest.mark.parametrize("tier", ["fast", "slow"])
def test_a_damaged_commit(config: str, tmp_path: Path, tier: str) -> None:
    (commit,) = (tmp_path / tier).glob("runs/run/commits/*")
    commit.write_text("{}")
    flip(stored(tmp_path / tier, 1, SEGMENT))
    tiers = verify(config)
    assert [Path(each["file"]).name for each in tiers[tier]["damage"]] == [commit.name, SEGMENT]


def test_a_missing_manifest(config: str, tmp_path: Path) -> None:
    stored(tmp_path / "fast", 1, "manifest-*").unlink()
    (damage,) = verify(config)["fast"]["damage"]
    assert "missing" in damage["outcome"]


def test_without_any_manifest_the_rest_is_still_looked_at(config: str, tmp_path: Path) -> None:
    for tier in ("fast", "slow"):
        flip(stored(tmp_path / tier, 1, "manifest-*"), 100)
    flip(stored(tmp_path / "slow", 1, "fragments/00000"), 100)
    tiers = verify(config)
    assert [len(tiers[tier]["damage"]) for tier in ("fast", "slow")] == [1, 2]
    assert "no tier has a good manifest" in tiers["fast"]["error"]


def test_people_get_some_blocks_and_programs_all(tmp_path: Path) -> None:
    save(folders(tmp_path, "t"), 1, rows=12_000, segment_bytes=1 << 30)
    file = stored(tmp_path / "t", 1, SEGMENT)
    blocks = -(-file.stat().st_size // BLOCK_SIZE)
    assert blocks == 12
    os.truncate(file, BLOCK_SIZE + 1)
    config = f"file://{tmp_path}/t"
    damage = tierstore("verify", "run", "--json", "-c", config).json["tiers"]["local"]["damage"]
    assert [each["block"] for each in damage] == [*range(1, blocks)]
    out = tierstore("verify", "run", "-c", config).out
    assert out.count(f"{SEGMENT} block ") == 8
    assert f"{SEGMENT}: and 3 more blocks" in out


def test_a_nodes_own_part_is_good(tmp_path: Path) -> None:
    local, line = folder("local", tmp_path, (0, 1)), launch(world=4)
    with closing(Saver([local], "run")) as one, closing(Saver([local], "run")) as two:
        for rank, saver in enumerate((one, two)):
            saver.submit(*stage(Attempt(1, 1, 1), line, rank=rank, world=4))
    config = f"file://{tmp_path}"
    assert verify(config)["local"]["files"] == 2
    flip(next(tmp_path.rglob("00001-000.safetensors")))
    assert [each["block"] for each in verify(config)["local"]["damage"]] == [0]


def test_what_is_not_there(config: str) -> None:
    for words in (["run", "9"], ["other"]):
        done = tierstore("verify", *words, "-c", config)
        assert (done.code, done.out) == (1, "")
        assert words[-1] in done.err
        assert "next: " in done.err


def test_a_tier_that_is_away_is_an_error_and_the_others_are_verified(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    url = f"s3://bucket?endpoint_url=http://127.0.0.1:{free_port()}"
    lines = f'[[tier]]\nname = "s3"\nurl = "{url}"\nretry_seconds = 0.2\n'
    Path(config).write_text(Path(config).read_text() + lines)
    flip(stored(tmp_path / "slow", 1, SEGMENT))
    done = tierstore("verify", "run", "-c", config)
    assert done.code == 1
    assert "on fast: good" in done.out
    assert "on slow: damaged" in done.out
    assert "error: tier s3: " in done.err
    found = tierstore("verify", "run", "--json", "-c", config).json["tiers"]
    assert "127.0.0.1" in found["s3"]["error"]
    assert not found["s3"]["good"]
    assert tierstore("verify", "run", "-t", "fast", "-c", config).code == 0
