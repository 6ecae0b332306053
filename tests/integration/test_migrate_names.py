"""Keys of S3 that no other store, and no key of tierstore, can be: told, and never removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import tierstore
from tests.conftest import Bucket
from tests.files import contents

STRANGE = ("a//b", "tab\there", "folder/", "n" * 1022)


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_strange_keys_are_left_out(moto_bucket: Bucket, tmp_path: Path) -> None:
    for key in ("a", "folder/x", "z", *STRANGE):
        moto_bucket.write(f"x/{key}", b"content")
    for target in (str(tmp_path / "dst"), f"s3://{moto_bucket.name}/longer"):
        words = [f"s3://{moto_bucket.name}/x", target]
        done = tierstore("sync", *words, "--delete", "--json")
        assert done.code == 1, done.err
        told = [json.loads(line) for line in done.out.splitlines()]
        objects = {e["key"]: e["outcome"] for e in told if e["event"] == "object"}
        assert objects == {
            **dict.fromkeys(("a", "folder/x", "z"), "copied"),
            **dict.fromkeys(STRANGE, "left_out"),
        }
        assert tierstore("sync", *words, "--delete", "--skip-special").code == 0
    assert set(contents(tmp_path / "dst")) == {"a", "folder/x", "z"}
    assert set(moto_bucket.keys("longer/")) == {
        "longer/a",
        "longer/folder/x",
        "longer/z",
    }


def test_a_mirror_leaves_strange_keys_alone(moto_bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a").write_bytes(b"a")
    for key in ("old", "folder/old", *STRANGE[:3]):
        moto_bucket.write(f"x/{key}", b"content")
    words = [str(tmp_path / "src"), f"s3://{moto_bucket.name}/x"]
    done = tierstore("sync", *words, "--delete", "--force")
    assert done.code == 0, done.err
    assert set(moto_bucket.keys("x/")) == {"x/a", *(f"x/{key}" for key in STRANGE[:3])}
