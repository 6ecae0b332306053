"""`tierstore doctor`'s findings: each is made where it is due, with advice, and nothing is left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import Bucket
from tierstore.backend import Check, ObjectInfo
from tierstore.backends import local_diagnosis
from tierstore.backends.memory import MemoryBackend
from tierstore.config import load_config
from tierstore.errors import AccessError, UnsupportedError
from tierstore.ladder import diagnosis
from tierstore.wrappers.faults import Fault, Faulty


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
        *("O_DIRECT", "free space"),
    ]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_memory_is_a_tier_like_others(tmp_path: Path) -> None:
    del tmp_path
    assert {check.outcome for check in examine("memory://doctor-memory").values()} == {"ok"}


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = examine(f"file://{tmp_path}/file/tier")
    assert "failed" in {check.outcome for check in found.values()}


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


def test_what_comes_back_damaged_or_is_refused(opened: Any) -> None:
    flips = Faulty(MemoryBackend("memory://flips"), Fault("read_into", flip=3, times=99))
    assert opened(flips)["readable"].outcome == "failed"
    refused = AccessError("not for you", hint="ask for the right to write")
    check = opened(Faulty(MemoryBackend("memory://no"), Fault("create", error=refused, times=99)))
    assert check["writable"].outcome == "failed"
    assert check["writable"].advice == "ask for the right to write"


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
