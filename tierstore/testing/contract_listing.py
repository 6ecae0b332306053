"""The contract of `list`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tierstore.backend import Backend
from tierstore.blocks import crc32c
from tierstore.errors import InvalidKeyError
from tierstore.scan import Ways, key_check, scan
from tierstore.testing.contract_base import Hooks, together

_PREFIXES = ["", "a", "a/", "a/b", "a/b/", "a%", "a-", "b/", "z", "ä", "nothing", "a/b c/"]
_AFTERS = [None, "", "a", "a-b", "a/", "a/b", "a/b/c", "a/b0", "a0", "b/", "zz", "\U0001f600/x"]


def _sorted(keys: tuple[str, ...] | list[str]) -> list[str]:
    return sorted(keys, key=str.encode)


def _expected(keys: tuple[str, ...], prefix: str, after: str | None, delimiter: bool) -> list[str]:
    found = [key for key in keys if key.startswith(prefix)]
    if delimiter:
        tails = [(key, key[len(prefix) :].partition("/")) for key in found]
        found = [prefix + tail[0] + tail[1] if tail[1] else key for key, tail in tails]
    return [
        key
        for key in _sorted(list(dict.fromkeys(found)))
        if after is None or key.encode() > after.encode()
    ]


class ListingContract(Hooks):
    """Listings are lazy, complete and in byte order."""

    #: More than one page of whatever is behind the backend; smaller where the second path is slow.
    many = 1003

    @pytest.mark.parametrize("delimiter", [False, True])
    def test_lists_like_the_model(self, backend: Backend, delimiter: bool) -> None:
        for key in self.odd_keys:
            self.raw_put(key, key.encode())
        for prefix in _PREFIXES:
            for after in _AFTERS:
                found = [i.key for i in backend.list(prefix, after=after, delimiter=delimiter)]
                wanted = _expected(self.odd_keys, prefix, after, delimiter)
                assert found == wanted, (prefix, after)

    def test_scanning_finds_what_is_listed(self, backend: Backend) -> None:
        for key in self.odd_keys:
            self.raw_put(key, key.encode())
        found = list(scan(backend, Ways()))
        assert found == list(backend.list(""))
        assert len(found) == len(self.odd_keys)
        for at in (0, len(found) // 2):
            assert list(scan(backend, Ways(), after=found[at].key)) == found[at + 1 :]
        check = key_check(backend)
        for info in found:
            check(info.key)
        with pytest.raises(InvalidKeyError):
            check("a//b")

    def test_tells_what_stat_tells(self, backend: Backend) -> None:
        backend.create("l/a", b"one")
        backend.create("l/b", b"")
        backend.create("l/c/d", b"three")
        for item in backend.list("l/"):
            stat = backend.stat(item.key)
            assert (item.size, item.key) == (stat.size, stat.key)
            assert abs(item.mtime - stat.mtime) < 1.5  # some servers round one of them
            assert item.crc32c in (None, crc32c(self.raw_get(item.key)))

    def test_common_prefixes_have_no_size(self, backend: Backend) -> None:
        self.raw_put("l/c/d", b"three")
        self.raw_put("l/e", b"e")
        items = list(backend.list("l/", delimiter=True))
        assert [(item.key, item.size) for item in items] == [("l/c/", 0), ("l/e", 1)]

    def test_an_empty_place(self, backend: Backend) -> None:
        assert list(backend.list("")) == []
        assert list(backend.list("runs/", delimiter=True)) == []

    def test_deleted_folders_are_gone(self, backend: Backend) -> None:
        backend.create("l/a/x", b"x")
        backend.create("l/b/y", b"y")
        backend.delete(["l/a/x"])
        assert [item.key for item in backend.list("l/", delimiter=True)] == ["l/b/"]
        backend.delete(["l/b/y"])
        assert list(backend.list("", delimiter=True)) == []

    def test_more_than_a_page(self, backend: Backend) -> None:
        keys = [f"l/{index % 7}/{index:05d}" for index in range(self.many)]
        assert together(16, lambda i: self._put_all(keys[i::16])) == [None] * 16
        listing = backend.list("l/")
        assert isinstance(listing, Iterator)
        first = next(listing)
        backend.delete([keys[-1]])  # a deletion in between disturbs nobody else
        rest = [item.key for item in listing]
        found = [first.key, *rest]
        wanted = _sorted(keys)
        assert [key for key in found if key != keys[-1]] == [k for k in wanted if k != keys[-1]]
        prefixes = [item.key for item in backend.list("l/", delimiter=True)]
        assert prefixes == [f"l/{index}/" for index in range(7)]
        backend.delete(keys)
        assert self.raw_list() == []

    def _put_all(self, keys: list[str]) -> None:
        for key in keys:
            self.raw_put(key, b"x")
