"""The command on a real HDFS: what it shows, what it finds, and what it leaves there."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.command import Done, ladder_file, save, stored, tierstore
from tests.conftest import HdfsRoot
from tests.patience import noted_retries
from tests.shards import folder
from tierstore.config import TierConfig
from tierstore.ladder.tiers import OpenTier
from tierstore.testing.servers import free_port
from tierstore.wrappers import open_tier

pytestmark = pytest.mark.hdfs

SHAPE = {"rows": 2500, "segment_bytes": 6 * 1024**2}  # two files, three blocks
DAY = 86_400


@pytest.fixture(autouse=True)
def _nothing_is_left(hdfs_root: HdfsRoot, no_leaks: None) -> None:
    """What a command leaves behind counts from after the server's start."""


@pytest.fixture
def config(hdfs_root: HdfsRoot, tmp_path: Path) -> str:
    """Step 1 on a local tier and on HDFS, step 2 on HDFS alone."""
    tier = TierConfig("hdfs", f"{hdfs_root.url}/t")
    with closing(open_tier(tier)) as backend:
        remote = OpenTier(tier, backend)
        save([folder("nvme", tmp_path / "nvme"), remote], 1, **SHAPE)
        save([remote], 2, **SHAPE)
    return ladder_file(
        tmp_path / "tierstore.toml", nvme=f"file://{tmp_path}/nvme", hdfs=f"{hdfs_root.url}/t"
    )


def key(root: HdfsRoot, step: int, name: str) -> str:
    """Return the key of one file of a step."""
    (found,) = [each for each in root.keys(f"t/runs/run/data/{step:012d}-") if each.endswith(name)]
    return found


def test_looking(config: str, hdfs_root: HdfsRoot) -> None:
    rows = tierstore("ls", "--json", "-c", config).json
    assert [(row["step"], row["tiers"]) for row in rows] == [(2, ["hdfs"]), (1, ["nvme", "hdfs"])]
    facts = tierstore("show", "run", "--match", "matrix", "--json", "-c", config).json
    assert facts["tensors"][0]["shape"] == [2500, 1024]
    assert facts["tiers"]["hdfs"].startswith(f"{hdfs_root.url}/t/runs/run/data/{2:012d}-")
    facts = tierstore("show", "run", "1", "--json", "-c", config).json
    assert list(facts["tiers"]) == ["nvme", "hdfs"]


def test_a_url_alone_is_a_tier(config: str, hdfs_root: HdfsRoot) -> None:
    for scheme in ("hdfs", "webhdfs"):
        url = f"{hdfs_root.url}/t?stall_timeout=9".replace("hdfs", scheme, 1)
        assert tierstore("ls", "run", "--json", "-c", url).json[0]["tiers"] == [scheme]
    del config


def test_what_is_good(config: str) -> None:
    tiers = tierstore("verify", "run", "1", "--json", "-c", config).json["tiers"]
    assert {name: (tier["good"], tier["files"]) for name, tier in tiers.items()} == {
        "nvme": (True, 2),
        "hdfs": (True, 2),
    }


def test_all_damage_is_reported(config: str, hdfs_root: HdfsRoot, tmp_path: Path) -> None:
    first, second = (key(hdfs_root, 1, f"00000-00{n}.safetensors") for n in range(2))
    manifest = Path(stored(tmp_path / "nvme", 1, "manifest-*")).name
    data = bytearray(hdfs_root.read(first))
    data[-1] ^= 1  # in the second block
    hdfs_root.write(first, bytes(data))
    hdfs_root.write(second, hdfs_root.read(second)[:100])
    hdfs_root.server.client().remove(f"{hdfs_root.path}/{key(hdfs_root, 1, manifest)}")
    done = tierstore("verify", "run", "1", "-c", config)
    assert done.code == 1
    assert "run step 1 on nvme: good" in done.out
    found = tierstore("verify", "run", "1", "--json", "-c", config).json["tiers"]["hdfs"]
    assert [(Path(each["file"]).name, each["block"]) for each in found["damage"]] == [
        (manifest, None),
        ("00000-000.safetensors", 1),
        ("00000-001.safetensors", 0),
    ]
    for damage in found["damage"]:
        assert damage["file"] in done.out
    assert tierstore("verify", "run", "1", "-t", "nvme", "-c", config).code == 0


def test_a_reader_needs_no_right_to_write(
    config: str, hdfs_root: HdfsRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HADOOP_USER_NAME", "stranger")
    for command in (["ls"], ["show", "run"], ["verify", "run"]):
        assert tierstore(*command, "-c", config).code == 0
    hdfs_root.server.client().set_permission(f"{hdfs_root.path}/t", 0o700)
    for command in (["ls"], ["verify", "run", "1"]):
        done = tierstore(*command, "-c", config)
        assert done.code == 1
        assert "error: tier hdfs: " in done.err
        assert "AccessControlException: Permission denied: user=stranger" in done.err
        assert "next: give the tier's folder to this user" in done.err
        assert "nvme" in done.out


def test_a_dead_namenode_does_not_hide_the_other_tier(
    config: str, hdfs_root: HdfsRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = f"127.0.0.1:{free_port()}"
    text = Path(config).read_text().replace(hdfs_root.server.address, dead)
    Path(config).write_text(text)
    retries = noted_retries(monkeypatch)
    done = tierstore("ls", "-c", config)
    assert done.code == 1
    assert done.out.split()[-3:] == ["latest", "yes", "?"]
    assert f"no namenode answers: {dead}" in done.err
    assert "next: start the namenode" in done.err
    assert retries == [5.0, 5.0], "and not the two minutes of a save"
    done = tierstore("doctor", "-c", config)
    assert done.code == 1
    said = done.out.partition("  failed  reachable: ")[2].splitlines()
    assert dead in said[0]
    assert "dfs.namenode.http-address" in said[1]
    assert len(retries) == 2, "doctor tries once"


# doctor


def checks(done: Done) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in done.json["hdfs"]["checks"]}


def test_doctor_finds_nothing_and_leaves_nothing(config: str, hdfs_root: HdfsRoot) -> None:
    walk = hdfs_root.server.client().walk

    def there() -> dict[str, bytes]:
        found = walk(hdfs_root.path, folders=True)
        read = hdfs_root.server.client().read
        return {path: b"" if path.endswith("/") else read(path) for path in found}

    before = there()
    done = tierstore("doctor", "--json", "-c", config)
    assert done.code == 0
    bad = {name for name, check in checks(done).items() if check["outcome"] != "ok"}
    assert bad <= {"free space"}  # of this machine
    assert there() == before


@pytest.mark.parametrize("left", [".tierstore-0123456789abcdef", "upload"])
def test_doctor_names_what_killed_writers_left(hdfs_root: HdfsRoot, left: str) -> None:
    """A small object's hidden file, or an upload's folder of parts."""
    tier = TierConfig("hdfs", hdfs_root.url)
    if left == "upload":
        with closing(open_tier(tier)) as backend:
            backend.upload("runs/upload", 1)
    else:
        hdfs_root.write(f"runs/{left}", b"x")
    assert (
        checks(tierstore("doctor", "--json", "-c", hdfs_root.url))["unfinished uploads"]["outcome"]
        == "ok"
    )
    client, before = hdfs_root.server.client(), int((time.time() - DAY - 600) * 1000)
    for path in client.walk(f"{hdfs_root.path}/runs", folders=True):
        client.call("PUT", path.rstrip("/"), "SETTIMES", modificationtime=before)
    done = tierstore("doctor", "-c", hdfs_root.url)
    assert done.code == 0
    said = done.out.partition("  warning unfinished uploads: ")[2].splitlines()
    assert f"runs/{left}" in said[0]
    assert "HdfsBackend.abort_upload" in said[1]


@pytest.mark.parametrize(
    ("user", "rights", "check", "said", "advice"),
    [
        ("stranger", 0o755, "writable", "user=stranger, access=WRITE", "-chown"),
        ("stranger", 0o700, "reachable", "user=stranger, access=EXECUTE", "-chown"),
        ("a b", 0o755, "reachable", "user.name", "set user or HADOOP_USER_NAME"),
    ],
)
def test_doctor_says_what_is_wrong(
    hdfs_root: HdfsRoot, user: str, rights: int, check: str, said: str, advice: str, tmp_path: Path
) -> None:
    hdfs_root.server.client().set_permission(hdfs_root.path, rights)
    config = ladder_file(tmp_path / "t.toml", f'user = "{user}"', hdfs=hdfs_root.url)
    done = tierstore("doctor", "--json", "-c", config)
    assert done.code == 1
    found = checks(done)[check]
    assert found["outcome"] == "failed"
    assert said in found["detail"]
    assert advice in found["advice"]
    assert hdfs_root.keys() == []


def test_doctor_on_the_port_of_another_protocol(hdfs_root: HdfsRoot) -> None:
    if not hdfs_root.server.rpc:
        pytest.skip("the port of Hadoop's own protocol is not known")
    done = tierstore("doctor", "-c", f"hdfs://{hdfs_root.server.rpc}/t")
    assert done.code == 1
    assert "-> this is not WebHDFS: the URL wants dfs.namenode.http-address" in done.out


def test_a_token_that_is_missing_or_not_looked_at(hdfs_root: HdfsRoot, tmp_path: Path) -> None:
    """This HDFS has no Kerberos: whoever brings a token, and so no name, is dr.who."""
    file = tmp_path / "token"
    url = f"{hdfs_root.url}?token_file={file}"
    for command, code in ("doctor", 1), ("ls", 2):
        done = tierstore(command, "-c", url)
        assert done.code == code
        assert f"token_file '{file}' cannot be read: No such file" in done.out + done.err
        assert "GETDELEGATIONTOKEN" in done.out + done.err
    file.write_text("hunter2")
    done = tierstore("doctor", "-c", url)
    assert done.code == 1
    refused = done.out.partition("  failed  writable: ")[2]
    assert "user=dr.who, access=WRITE" in refused
    assert "looks at no token: leave token_file out" in refused
    assert "hunter2" not in done.out + done.err
