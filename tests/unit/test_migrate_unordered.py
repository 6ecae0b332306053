"""Stores that list in no order: an error before anything goes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Done, tierstore
from tests.files import contents
from tierstore.backend import ObjectInfo
from tierstore.backends.local.backend import LocalBackend
from tierstore.backends.memory import open_memory
from tierstore.errors import UnsupportedError
from tierstore.migration.ends import Ends
from tierstore.migration.listing import objects
from tierstore.migration.mirror import Mirror
from tierstore.patterns import Selection
from tierstore.scan import Ways, in_order, scan
from tierstore.wrappers.faults import Faulty
from tierstore.wrappers.retry import Retrying
from tierstore_s3.backend import S3Backend
from tierstore_s3.listing import Page
from tierstore_s3.options import S3Options

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
        list(mirror.remove(100))
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


def test_pages_of_s3_that_come_in_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going on behind the last good key, as after other errors, would lose what came too late."""
    backend = Faulty(Retrying(S3Backend("s3://bucket/p", S3Options())))
    pages = {"": ["c", "d"], "2": ["a", "b"]}

    def page(_prefix: str, *, after: str, delimiter: str, token: str) -> Page:
        assert not delimiter
        found = [ObjectInfo(key, 1, 0.0) for key in pages[token] if key > after]
        return Page(found, "" if token else "2")

    monkeypatch.setattr(backend.inner.inner._objects, "page", page)
    with pytest.raises(UnsupportedError, match="in no order"):
        list(backend.list(""))
    with pytest.raises(UnsupportedError, match="in no order"):
        list(scan(backend, Ways()))
    backend.close()
