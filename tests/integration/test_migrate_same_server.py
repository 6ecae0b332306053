"""Moving data within MinIO, under the names that it has, and names that not all stores can hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import Done, tierstore
from tests.conftest import Bucket
from tests.files import contents

pytestmark = pytest.mark.minio
DELETING = ("migrate", "--delete-source"), ("sync", "--delete", "--force")


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def url(bucket: Bucket, prefix: str, *options: str) -> str:
    query = "&".join(options)
    return f"s3://{bucket.name}/{prefix}?{query}".rstrip("?")


def outcomes(done: Done) -> dict[str, str]:
    events = [json.loads(line) for line in done.out.splitlines()]
    return {e["key"]: e["outcome"] for e in events if e["event"] == "object"}


@pytest.mark.parametrize("words", DELETING)
def test_one_place_under_two_names(minio_bucket: Bucket, words: tuple[str, ...]) -> None:
    command, *options = words
    for key in ("x/a", "x/y/b", "x/y/z/c"):
        minio_bucket.write(key, key.encode())
    before = minio_bucket.keys()
    here = minio_bucket.server.endpoint
    there = here.replace("127.0.0.1", "localhost")
    assert there != here
    nested = ("x", "x/y"), ("x/y/z", "x"), ("x", "x/new"), ("", "x/y")
    for query, places in (
        ("storage_class=REDUCED_REDUNDANCY", [("x", "x"), *nested]),
        (f"endpoint_url={here}", [("x", "x")]),
        (f"endpoint_url={there}", [("x", "x")]),
    ):
        for one, other in places:
            ends = url(minio_bucket, one), url(minio_bucket, other, query)
            done = tierstore(command, *ends, *options)
            same = one == other
            assert done.code == 2, done.out
            assert ("are the same place" if same else "lie one in the other") in done.said
            assert ("class of what is there" in done.said) == (same and "storage" in query)
        file, again = url(minio_bucket, "x/a"), url(minio_bucket, "x/a", query)
        done = tierstore("cp", file, again, "--conflict", "overwrite")
        assert (done.code, "are the same place" in done.said) == (2, True)
    assert minio_bucket.keys() == before


def test_places_beside_each_other(minio_bucket: Bucket) -> None:
    for key in ("x/a", "x/sub/a", "xy/a", "xy/x/a", "y/x/a"):
        minio_bucket.write(key, b"the same everywhere")
    done = tierstore("migrate", url(minio_bucket, "x"), url(minio_bucket, "xy"), "--delete-source")
    assert done.code == 0, done.err
    assert minio_bucket.keys() == ["xy/a", "xy/sub/a", "xy/x/a", "y/x/a"]


def test_names_that_a_folder_cannot_hold(minio_bucket: Bucket, tmp_path: Path) -> None:
    for key in ("x/a", "x/marker/", "x/z", "x/end/"):
        minio_bucket.write(key, b"" if key == "x/marker/" else b"content")
    words = [url(minio_bucket, "x"), str(tmp_path / "dst")]
    done = tierstore("migrate", *words, "--delete-source", "--json")
    assert done.code == 1
    assert outcomes(done) == {"a": "copied", "z": "copied", "end/": "left_out"}
    assert set(contents(tmp_path / "dst")) == {"a", "z"}
    assert set(minio_bucket.keys()) == {"x/marker/", "x/end/"}
    minio_bucket.write("x/b", b"content")
    assert tierstore("sync", *words, "--delete", "--force", "--skip-special").code == 0
    assert set(contents(tmp_path / "dst")) == {"b"}


@pytest.mark.parametrize(
    ("ours", "theirs"), [(["p/q/1", "p/q/2"], ["p"]), (["p/q"], ["p/q/1", "p/q/2/3"])]
)
@pytest.mark.parametrize("to_s3", [False, True])
def test_a_file_that_became_a_folder(
    minio_bucket: Bucket, tmp_path: Path, ours: list[str], theirs: list[str], *, to_s3: bool
) -> None:
    local, remote = (theirs, ours) if not to_s3 else (ours, theirs)
    for key in local:
        (tmp_path / "x" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / key).write_text(key)
    for key in remote:
        minio_bucket.write(f"x/{key}", key.encode())
    ends = [str(tmp_path / "x"), url(minio_bucket, "x")]
    done = tierstore("sync", *(ends if to_s3 else reversed(ends)), "--delete", "--force")
    assert done.code == 0, done.err
    assert sorted(contents(tmp_path / "x")) == ours
    arrived = minio_bucket.keys("x/")
    assert [key.removeprefix("x/") for key in arrived] == ours
    for key in theirs:  # MinIO shows nothing below an object, and may keep it
        minio_bucket.client.delete_object(Bucket=minio_bucket.name, Key=f"x/{key}")
