"""The contract on objects in memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from tierstore.backends import memory
from tierstore.backends.memory import MemoryBackend, open_memory
from tierstore.errors import ConfigError
from tierstore.registry import open_backend
from tierstore.testing.contract import BackendContract

_numbers = itertools.count()


class TestMemory(BackendContract):
    @pytest.fixture(autouse=True)
    def _place(self):
        self.url = f"memory://contract/{next(_numbers)}"
        open_memory(self.url)
        self.space = memory._spaces[self.url]

    def open(self) -> MemoryBackend:
        return open_memory(self.url)

    def raw_get(self, key: str) -> bytes:
        return self.space.objects[key][0]

    def raw_put(self, key: str, data: bytes) -> None:
        self.space.put(self.url, key, data, 0, if_absent=False)
        object_ = self.space.objects[key]
        self.space.objects[key] = object_[0], type(object_[1])(key, len(data), 1.0)

    def raw_list(self) -> list[str]:
        return list(self.space.objects)

    def raw_uploads(self) -> Sequence[object]:
        return list(self.space.uploads)


def test_urls_are_places():
    one, two = open_backend("memory://one"), open_backend("memory://two")
    one.create("x", b"1")
    assert list(two.list("")) == []
    assert [item.key for item in open_backend("memory://one/").list("")] == ["x"]
    with pytest.raises(ConfigError):
        open_memory("file:///x")
