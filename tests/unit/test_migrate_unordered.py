"""Stores that list in no order: sorted where they are known, else an error before anything goes."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Done, tierstore
from tests.files import contents
from tierstore.backend import ObjectInfo
from tierstore.backends.local import LocalBackend
from tierstore.backends.memory import open_memory
from tierstore.errors import UnsupportedError
from tierstore.patterns import Selection
from tierstore.scan import Ways, in_order, scan
from tierstore.transfer.migrate.listing import Ends, objects
from tierstore.transfer.migrate.mirror import Mirror
from tierstore.wrappers.faults import Faulty
from tierstore_s3.backend import S3Backend
from tierstore_s3.listing import Page
from tierstore_s3.options import S3Options
from tierstore_s3.sorting import in_key_order

KEYS = [f"{letter}/{number}" for letter in "bca" for number in (1, 0, 2)]


class Unordered(Faulty):
    """A store that lists its objects as they come."""

    def list(
        self, prefix: str, *, after: str | None = None, delimiter: bool = False
    ) -> Iterator[ObjectInfo]:
        found = [*super().list(prefix, after=after, delimiter=delimiter)]
        yield from sorted(found, key=lambda info: KEYS.index(info.key))


def store(*, ordered: bool) -> Faulty:
    backend = (Faulty if ordered else Unordered)(open_memory(f"memory://{secrets.token_hex(8)}"))
    for key in KEYS:
        backend.create(key, key.encode())
    return backend


@pytest.mark.parametrize("which", ["source", "target", "both"])
def test_nothing_is_removed(which: str) -> None:
    source, target = store(ordered=which == "target"), store(ordered=which == "source")
    mirror = Mirror(Ends(source, target), Selection())
    with pytest.raises(UnsupportedError, match="in no order"):
        mirror.extra()
    with pytest.raises(UnsupportedError, match="in no order"):
        list(mirror.remove())
    with pytest.raises(UnsupportedError, match="in no order"):
        list(objects(Ends(source, target), Selection()))
    assert len(list(target.inner.list(""))) == len(KEYS)


@pytest.mark.parametrize("which", ["src", "dst"])
def test_a_mirror_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for end in ("src", "dst"):
        backend = LocalBackend(str(tmp_path / end))
        for key in KEYS:
            backend.create(key, key.encode())
        backend.close()
    walk = LocalBackend.scan

    def shuffled(self: LocalBackend, ways: Ways, *, after: str | None = None) -> Iterator[object]:
        found = [*walk(self, ways, after=after)]
        if self.url.endswith(which):
            found.sort(key=lambda each: KEYS.index(each.key))
        return iter(found)

    monkeypatch.setattr(LocalBackend, "scan", shuffled)
    for words in (["--delete", "--force"], ["--delete", "--force", "--dry-run"]):
        done: Done = tierstore("sync", str(tmp_path / "src"), str(tmp_path / "dst"), *words)
        assert done.code == 1
        assert "in no order that can be relied on" in done.said
    assert set(contents(tmp_path / "dst")) == set(KEYS)


def test_a_key_that_comes_twice() -> None:
    infos = [ObjectInfo(key, 0, 0.0) for key in ("a", "b", "b")]
    with pytest.raises(UnsupportedError, match="'b' behind 'b'"):
        list(in_order(infos, "s3://b"))


# -- directory buckets ---------------------------------------------------------------------------


def infos(count: int) -> list[ObjectInfo]:
    keys = [f"{number % 7}/{'é😀~'[number % 3]}{number}" for number in range(count)]
    random.Random(count).shuffle(keys)
    return [ObjectInfo(key, len(key), float(at), tag=f'"{at}"') for at, key in enumerate(keys)]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 95])
def test_sorting_in_runs(count: int) -> None:
    found = infos(count)
    assert list(in_key_order(found, run=10)) == sorted(found, key=lambda info: info.key.encode())


def test_a_directory_bucket_is_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = S3Backend("s3://bucket--use1-az4--x-s3/p", S3Options(region="us-east-1"))
    found = infos(95)

    def page(prefix: str, *, after: str, delimiter: str, token: str) -> Page:
        assert after == ""  # it knows no start-after
        assert prefix == "" or prefix.endswith("/")
        assert not delimiter
        start = int(token or 0)
        here = [info for info in found if info.key.startswith(prefix)]
        more = str(start + 10) if start + 10 < len(here) else ""
        return Page(here[start : start + 10], more)

    monkeypatch.setattr(backend._objects, "page", page)
    assert not backend.capabilities.ordered_listing
    wanted = sorted(found, key=lambda info: info.key)
    assert list(scan(backend, Ways())) == wanted
    for prefix, after in (("3/", ""), ("3/é", ""), ("", "3/é"), ("3", "3/~9")):
        expected = [i for i in wanted if i.key.startswith(prefix) and i.key > after]
        assert list(backend.list(prefix, after=after)) == expected
    backend.close()


def test_other_buckets_are_in_order() -> None:
    backend = S3Backend("s3://bucket/p", S3Options())
    assert backend.capabilities.ordered_listing
    backend.close()
