"""`tierstore doctor`'s findings: each is made where it is due, with advice, and nothing is left."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.command import COMMAND, save
from tests.conftest import Bucket
from tests.patience import PATIENCE
from tests.shards import folder
from tierstore.backend import Check, ObjectInfo
from tierstore.backends.local import diagnosis as local_diagnosis
from tierstore.backends.local.scratch import NAME
from tierstore.backends.memory import MemoryBackend
from tierstore.config import TierConfig, load_config
from tierstore.errors import AccessError, ThrottledError, TruncatedFileError, UnsupportedError
from tierstore.ladder import diagnosis
from tierstore.testing.servers import free_port
from tierstore.wrappers.faults import Fault, Faulty

_MAY_BE_SHORT = ("free space", "O_DIRECT")  # these depend on the machine


def examine(url: str) -> dict[str, Check]:
    (tier,) = load_config(url).tiers
    checks = list(diagnosis.diagnose(tier))
    assert all(bool(check.advice) == (check.outcome != "ok") for check in checks), checks
    return {check.name: check for check in checks}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let doctor find a given backend behind any URL."""

    def use(backend: Any) -> dict[str, Check]:
        monkeypatch.setattr(diagnosis, "open_backend", lambda *_: backend)
        return examine("memory://x")

    return use


def test_a_good_folder_has_nothing_wrong_and_nothing_left(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    found = examine(f"file://{tmp_path}/deep/tier")
    assert {name for name, check in found.items() if check.outcome != "ok"} <= {"free space"}
    assert list(found) == [
        *("reachable", "writable", "readable", "clock", "conditional create", "checksums"),
        *("medium", "O_DIRECT", "free space"),
    ]
    assert list(tmp_path.rglob("*")) == [tmp_path / "deep"]


def test_nothing_of_a_tier_in_use_changes(tmp_path: Path) -> None:
    save([folder("t", tmp_path)], 1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    folders = {path for path in tmp_path.rglob("*") if path.is_dir()} - {tmp_path / NAME}
    examine(tmp_path.as_uri())
    now = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert now == before
    assert {path for path in tmp_path.rglob("*") if path.is_dir()} == folders


def test_who_stops_listening_leaves_nothing_either(tmp_path: Path) -> None:
    (tier,) = load_config(f"file://{tmp_path}/tier").tiers
    checks = diagnosis.diagnose(tier)
    while next(checks).name != "writable":
        pass
    assert list(tmp_path.rglob("probe"))
    checks.close()
    assert list(tmp_path.iterdir()) == []


def test_a_tier_in_tmpfs(shm_path: Path) -> None:
    root = shm_path / "tier"
    found = examine(root.as_uri())
    assert {found[name].outcome for name in found if name not in _MAY_BE_SHORT} == {"ok"}
    assert "memory (tmpfs)" in found["medium"].detail
    assert found["O_DIRECT"].detail == "not needed in memory"
    assert not root.exists()


def test_a_disk_is_not_called_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_diagnosis, "kind_of", lambda _: "xfs")
    assert examine(tmp_path.as_uri())["medium"].detail == "xfs"
    monkeypatch.setattr(local_diagnosis, "kind_of", lambda _: "")
    assert "not told" in examine(tmp_path.as_uri())["medium"].detail


def test_a_mount_that_went_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(_: str) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "statvfs", stale)
    check = examine(tmp_path.as_uri())["free space"]
    assert check.outcome == "warning"
    assert "Stale file handle" in check.detail


def test_memory_is_a_tier_like_others(tmp_path: Path) -> None:
    del tmp_path
    assert {check.outcome for check in examine("memory://doctor-memory").values()} == {"ok"}


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = examine(f"file://{tmp_path}/file/tier")["writable"]
    assert check.outcome == "failed"
    assert "correct the tier's URL" in check.advice
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_wrong_option_and_a_dead_server() -> None:
    check = examine(f"s3://b/t?endpoint_url=http://127.0.0.1:{free_port()}&anonymous=true")
    assert check["reachable"].outcome == "failed"
    assert "that the server runs" in check["reachable"].advice
    tier = TierConfig("t", "file://not/absolute")
    (opened,) = diagnosis.diagnose(tier)
    assert (opened.name, opened.outcome) == ("open", "failed")
    assert "absolute" in opened.advice


@pytest.mark.parametrize(
    ("options", "fill", "said"),
    [("ro", "true", "read-only"), ("size=1m", "head -c 2m /dev/zero > {0}/full", "0 free")],
)
def test_a_mount_that_takes_nothing(tmp_path: Path, options: str, fill: str, said: str) -> None:
    """Real file systems, in a mount namespace that ends with the command."""
    steps = (
        f"mount -t tmpfs -o {options} none {tmp_path} || exit 77",
        f"{fill.format(tmp_path)} 2> /dev/null",
        f"{shlex.join(COMMAND)} doctor -c file://{tmp_path}/tier",
    )
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", "; ".join(steps)]
    done = subprocess.run(unshare, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
    assert done.returncode == 1, done.stderr
    failed = done.stdout.partition("failed  writable: ")[2].splitlines()
    assert said in failed[0] + failed[1]
    assert "-> " in failed[1]
    assert ("warning free space: 0.0 of 0.0 GiB" in done.stdout) == (options != "ro")


def test_a_file_system_without_o_direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_diagnosis, "set_direct", lambda *_, **__: False)
    assert examine(tmp_path.as_uri())["O_DIRECT"].outcome == "warning"


@pytest.mark.parametrize(("free", "outcome"), [(9, "warning"), (11, "ok")])
def test_little_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, outcome: str
) -> None:
    disk = SimpleNamespace(f_bavail=free << 18, f_blocks=100 << 18, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    check = examine(tmp_path.as_uri())["free space"]
    assert (check.outcome, check.detail) == (outcome, f"{free}.0 of 100.0 GiB")


class Careless(MemoryBackend):
    """A store that ignores conditions."""

    def create(self, key: str, buffer: Any, *, if_absent: bool = False) -> ObjectInfo:
        del if_absent
        return super().create(key, buffer)


class Late(MemoryBackend):
    """A store whose clock is an hour behind."""

    def create(self, key: str, buffer: Any, *, if_absent: bool = False) -> ObjectInfo:
        info = super().create(key, buffer, if_absent=if_absent)
        return replace(info, mtime=time.time() - 3600)


def test_a_store_that_ignores_conditions(opened: Any) -> None:
    check = opened(Careless("memory://careless"))["conditional create"]
    assert check.outcome == "failed"
    assert "overwritten" in check.advice


def test_a_clock_that_is_off(opened: Any) -> None:
    check = opened(Late("memory://late"))["clock"]
    assert check.outcome == "warning"
    assert "-3600 s" in check.detail


def test_a_slow_store_has_no_other_clock() -> None:
    assert diagnosis._clock(1000.0, 995.0, 1060.0).outcome == "ok"
    assert "+10 s" in diagnosis._clock(1070.0, 995.0, 1060.0).detail
    assert "-15 s" in diagnosis._clock(980.0, 995.0, 1060.0).detail


def test_what_comes_back_damaged_or_is_refused(opened: Any) -> None:
    flips = Faulty(MemoryBackend("memory://flips"), Fault("read_into", flip=3, times=99))
    assert opened(flips)["readable"].outcome == "failed"
    refused = AccessError("not for you", hint="ask for the right to write")
    check = opened(Faulty(MemoryBackend("memory://no"), Fault("create", error=refused, times=99)))
    assert check["writable"].outcome == "failed"
    assert check["writable"].advice == "ask for the right to write"


def test_an_object_that_is_cut_short_is_not_called_unreachable(opened: Any) -> None:
    cut = TruncatedFileError("it ends early")
    found = opened(Faulty(MemoryBackend("memory://cut"), Fault("read_into", error=cut)))
    assert found["readable"].outcome == "failed"
    assert found["reachable"].outcome == found["conditional create"].outcome == "ok"


def test_a_busy_store_is_not_told_to_go(opened: Any) -> None:
    busy = Fault("create", nth=2, error=ThrottledError("503 SlowDown"))
    check = opened(Faulty(MemoryBackend("memory://busy"), busy))["conditional create"]
    assert check.outcome == "failed"
    assert "try again" in check.advice
    never = Fault("create", nth=2, error=UnsupportedError("501"))
    check = opened(Faulty(MemoryBackend("memory://never"), never))["conditional create"]
    assert "use a store with atomic conditional writes" in check.advice


class Keeping(MemoryBackend):
    """A store that says that it deleted."""

    def delete(self, keys: Any) -> None:
        del keys


def test_what_cannot_be_deleted_is_told(opened: Any) -> None:
    check = opened(Keeping("memory://keeping"))["deletable"]
    assert check.outcome == "warning"
    assert "/probe" in check.detail
    refused = Fault("delete", error=AccessError("403"), times=99)
    check = opened(Faulty(MemoryBackend("memory://refusing"), refused))["deletable"]
    assert (check.outcome, check.detail) == ("warning", "403")


def test_a_diagnosis_that_fails_is_a_finding(opened: Any) -> None:
    class Silent(MemoryBackend):
        def diagnose(self) -> Iterator[Check]:
            raise UnsupportedError("not told", hint="ask somebody else")

    assert opened(Silent("memory://silent"))["details"].outcome == "warning"


@pytest.mark.minio
def test_a_real_s3(minio_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    from tierstore_s3 import backend as s3

    url = minio_bucket.url
    found = examine(url)
    assert {check.outcome for check in found.values()} == {"ok"}
    assert "refuses" in found["checksums"].detail
    assert minio_bucket.keys() == []
    minio_bucket.client.create_multipart_upload(Bucket=minio_bucket.name, Key="left/behind")
    assert examine(url)["unfinished uploads"].outcome == "ok"
    monkeypatch.setattr(s3, "_FORGOTTEN", -60.0)
    check = examine(url)["unfinished uploads"]
    assert check.outcome == "warning"
    assert "left/behind" in check.detail
    assert "a younger one may be under way" in check.advice


@pytest.mark.minio
def test_a_missing_bucket_and_wrong_keys(
    minio_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = minio_bucket.url.replace(minio_bucket.name, "no-such-bucket")
    check = examine(missing)["reachable"]
    assert check.outcome == "failed"
    assert "NoSuchBucket" in check.detail
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-wrong-secret")
    check = examine(minio_bucket.url)["reachable"]
    assert check.outcome == "failed"
    assert "wrong-secret" not in check.detail + check.advice


def test_a_store_that_checks_nothing(
    moto_bucket: Bucket,
) -> None:
    assert examine(moto_bucket.url)["checksums"].outcome == "failed"
    url = moto_bucket.url + ("&" if "?" in moto_bucket.url else "?") + "checksum=none"
    assert examine(url)["checksums"].outcome == "warning"
