"""The command on a real MinIO: what it shows, what it finds, and what it leaves there."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.command import ladder_file, save, stored, tierstore
from tests.conftest import Bucket
from tests.shards import folder
from tierstore.config import TierConfig
from tierstore.ladder.tiers import OpenTier
from tierstore.testing.servers import Proxy, Toxiproxy
from tierstore.wrappers import open_tier
from tierstore_s3 import backend as s3

pytestmark = pytest.mark.minio

SHAPE = {"rows": 2500, "segment_bytes": 6 * 1024**2}  # two files, three blocks


@pytest.fixture
def proxy(toxics: Toxiproxy, minio_bucket: Bucket) -> Proxy:
    return toxics.proxy(minio_bucket.server.address)


@pytest.fixture(autouse=True)
def _nothing_is_left(minio_bucket: Bucket, proxy: Proxy, no_leaks: None) -> None:
    """What a command leaves behind counts from after the servers' start."""


@pytest.fixture
def config(minio_bucket: Bucket, tmp_path: Path) -> str:
    """Step 1 on a local tier and on S3, step 2 on S3 alone."""
    tier = TierConfig("s3", f"s3://{minio_bucket.name}/t")
    with closing(open_tier(tier)) as backend:
        remote = OpenTier(tier, backend)
        save([folder("nvme", tmp_path / "nvme"), remote], 1, **SHAPE)
        save([remote], 2, **SHAPE)
    urls = {"nvme": f"file://{tmp_path}/nvme", "s3": f"s3://{minio_bucket.name}/t"}
    return ladder_file(tmp_path / "tierstore.toml", **urls)


def key(bucket: Bucket, step: int, name: str) -> str:
    """Return the key of one file of a step."""
    keys = bucket.keys(f"t/runs/run/data/{step:012d}-")
    (found,) = [each for each in keys if each.endswith(name)]
    return found


def test_looking(config: str, minio_bucket: Bucket) -> None:
    rows = tierstore("ls", "--json", "-c", config).json
    assert [(row["step"], row["tiers"]) for row in rows] == [(2, ["s3"]), (1, ["nvme", "s3"])]
    facts = tierstore("show", "run", "--match", "matrix", "--json", "-c", config).json
    assert facts["tensors"][0]["shape"] == [2500, 1024]
    assert facts["tiers"]["s3"].startswith(f"s3://{minio_bucket.name}/t/runs/run/data/{2:012d}-")
    facts = tierstore("show", "run", "1", "--json", "-c", config).json
    assert list(facts["tiers"]) == ["nvme", "s3"]


NAMES = ["50%41.txt", "50%", "a+b", "a b", "ü€", "a#b", "wh?t", "a?b=c", "%2F", "x&y;z"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_what_they_read(minio_bucket: Bucket, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(name.encode())
    there = f"s3://{minio_bucket.name}/d/{name}"
    assert tierstore("cp", f"{tmp_path}/{name}", f"{there}?max_requests=4").code == 0
    assert minio_bucket.keys("d/") == [f"d/{name}"]
    assert tierstore("cp", f"{there}?" if "?" in name else there, f"{tmp_path}/back/").code == 0
    assert (tmp_path / "back" / name).read_bytes() == name.encode()
    assert tierstore("cp", f"{tmp_path}/{name}", f"s3://{minio_bucket.name}/e/").code == 0
    assert minio_bucket.keys("e/") == [f"e/{name}"]
    assert tierstore("cp", f"file://{tmp_path}/back/{quote(name)}", f"{tmp_path}/on/").code == 0
    assert (tmp_path / "on" / name).read_bytes() == name.encode()
    done = tierstore("migrate", f"s3://{minio_bucket.name}/d", f"{tmp_path}/all")
    assert (done.code, (tmp_path / "all" / name).read_bytes()) == (0, name.encode())


def test_what_is_good(config: str) -> None:
    tiers = tierstore("verify", "run", "1", "--json", "-c", config).json["tiers"]
    assert {name: (tier["good"], tier["files"]) for name, tier in tiers.items()} == {
        "nvme": (True, 2),
        "s3": (True, 2),
    }


def test_all_damage_is_reported(config: str, minio_bucket: Bucket, tmp_path: Path) -> None:
    first, second = (key(minio_bucket, 1, f"00000-00{n}.safetensors") for n in range(2))
    manifest = Path(stored(tmp_path / "nvme", 1, "manifest-*")).name
    data = bytearray(minio_bucket.read(first))
    data[-1] ^= 1  # in the second block
    minio_bucket.write(first, bytes(data))
    minio_bucket.write(second, minio_bucket.read(second)[:100])
    minio_bucket.client.delete_object(Bucket=minio_bucket.name, Key=key(minio_bucket, 1, manifest))
    done = tierstore("verify", "run", "1", "-c", config)
    assert done.code == 1
    assert "run step 1 on nvme: good" in done.out
    found = tierstore("verify", "run", "1", "--json", "-c", config).json["tiers"]["s3"]
    assert [(Path(each["file"]).name, each["block"]) for each in found["damage"]] == [
        (manifest, None),
        ("00000-000.safetensors", 1),
        ("00000-001.safetensors", 0),
    ]
    for damage in found["damage"]:
        assert damage["file"] in done.out
    assert tierstore("verify", "run", "1", "-t", "nvme", "-c", config).code == 0


def test_a_tier_that_goes_away_in_the_middle(config: str, proxy: Proxy) -> None:
    """The listing still answers; the data does not come."""
    proxy.add("limit_data", stream="downstream", bytes=1_000_000)
    lines = f'endpoint_url = "{proxy.endpoint}"\nretry_seconds = 0.5\n'
    Path(config).write_text(Path(config).read_text() + lines)
    done = tierstore("verify", "run", "1", "-c", config)
    assert done.code == 1
    assert "on nvme: good" in done.out
    assert "on s3: unreadable" in done.out


# doctor


def outcomes(done: Any, tier: str = "s3") -> dict[str, str]:
    return {check["name"]: check["outcome"] for check in done.json[tier]["checks"]}


def test_doctor_finds_nothing_and_leaves_nothing(config: str, minio_bucket: Bucket) -> None:
    before = {name: minio_bucket.read(name) for name in minio_bucket.keys("")}
    done = tierstore("doctor", "--json", "-c", config)
    assert done.code == 0
    assert set(outcomes(done).values()) == {"ok"}
    assert {name: minio_bucket.read(name) for name in minio_bucket.keys("")} == before
    minio_bucket.assert_no_uploads()


def test_doctor_names_forgotten_uploads(
    minio_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    minio_bucket.client.create_multipart_upload(Bucket=minio_bucket.name, Key="left/behind")
    monkeypatch.setattr(s3, "_FORGOTTEN", -60.0)
    done = tierstore("doctor", "-c", minio_bucket.url)
    assert done.code == 0
    said = done.out.partition("  warning unfinished uploads: ")[2].splitlines()
    assert "left/behind" in said[0]
    assert "lifecycle rule" in said[1]


@pytest.mark.parametrize(
    ("what", "said", "advice"),
    [
        ("bucket", "NoSuchBucket", "create the bucket"),
        ("key", "InvalidAccessKeyId", "check the access key"),
        ("secret", "SignatureDoesNotMatch", "check the access key and the secret key"),
    ],
)
def test_doctor_says_what_is_wrong(
    minio_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, what: str, said: str, advice: str
) -> None:
    url = minio_bucket.url
    if what == "bucket":
        url = url.replace(minio_bucket.name, "no-such-bucket")
    elif what == "key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    else:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    for command in (["doctor"], ["ls"], ["verify", "run"]):
        done = tierstore(*command, "-c", url)
        assert done.code == 1
        assert said in done.out + done.err
        assert advice in done.out + done.err
        assert "hunter2" not in done.out + done.err
