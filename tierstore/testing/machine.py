"""A state machine that drives a backend against a dictionary.

::

    class Machine(BackendMachine):
        @classmethod
        def new_place(cls): ...      # an opener of an empty place

    TestMachine = Machine.TestCase
    TestMachine.settings = settings(...)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tierstore.backend import Backend, Upload
from tierstore.blocks import crc32c
from tierstore.errors import AlreadyExistsError, NotFoundError, TruncatedFileError
from tierstore.testing.contract_base import noise, part_size, read

KEYS = st.sampled_from(["a!", "a/b", "a/b+", "a/c/d", "a0", "b/%41", "b/é", "ä", "c/.x/y"])
PREFIXES = st.sampled_from(["", "a", "a/", "a/b", "a/c/", "b/", "b/%", "c", "x"])
DATA = st.sampled_from([b"", b"x", b"y", b"equal", b"other", noise(4096), noise(5001)])


@dataclass(eq=False)
class Unfinished:
    """An upload and what it will hold."""

    upload: Upload
    key: str
    data: bytes
    part: int
    missing: set[int] = field(default_factory=set)


class BackendMachine(RuleBasedStateMachine):
    """Every request, in any order; the backend and the model must agree."""

    uploads: Bundle[Unfinished] = Bundle("uploads")

    #: Whether uploads of several parts are tried; off where a part is large and the store slow.
    many_parts = True

    @classmethod
    def new_place(cls) -> Callable[[], Backend]:
        """Return an opener of a new, empty place."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.opener = self.new_place()
        self.backend = self.opener()
        self.model: dict[str, bytes] = {}
        self.open: list[Unfinished] = []

    def teardown(self) -> None:
        for unfinished in self.open:
            unfinished.upload.abort()
        self.backend.delete([*self.model])
        assert list(self.backend.list("")) == []
        self.backend.close()

    @rule(key=KEYS, data=DATA, if_absent=st.booleans())
    def create(self, key: str, data: bytes, if_absent: bool) -> None:
        if if_absent and self.model.get(key, data) != data:
            with pytest.raises(AlreadyExistsError):
                self.backend.create(key, data, if_absent=True)
            return
        info = self.backend.create(key, data, if_absent=if_absent)
        assert (info.key, info.size) == (key, len(data))
        self.model[key] = data

    @rule(target=uploads, key=KEYS, data=DATA, long=st.booleans())
    def begin(self, key: str, data: bytes, long: bool) -> Unfinished:
        part = part_size(self.backend)
        if long and self.many_parts:
            data = noise(part) + data
        missing = set(range(-(-len(data) // part)))
        unfinished = Unfinished(self.backend.upload(key, len(data)), key, data, part, missing)
        self.open.append(unfinished)
        return unfinished

    @rule(unfinished=uploads, index=st.integers(0, 1))
    def write(self, unfinished: Unfinished, index: int) -> None:
        offset = index * unfinished.part
        data = unfinished.data[offset : offset + unfinished.part]
        if data and unfinished in self.open:
            unfinished.upload.write(offset, data, crc32c(data))
            unfinished.missing.discard(index)

    @rule(unfinished=consumes(uploads), if_absent=st.booleans())
    def commit(self, unfinished: Unfinished, if_absent: bool) -> None:
        upload, key, data = unfinished.upload, unfinished.key, unfinished.data
        if unfinished not in self.open:
            return
        self.open.remove(unfinished)
        try:
            if unfinished.missing:
                with pytest.raises(TruncatedFileError):
                    upload.commit(if_absent=if_absent)
            elif if_absent and self.model.get(key, data) != data:
                with pytest.raises(AlreadyExistsError):
                    upload.commit(if_absent=True, crc32c=crc32c(data))
            else:
                info = upload.commit(if_absent=if_absent, crc32c=crc32c(data))
                assert (info.key, info.size) == (key, len(data))
                self.model[key] = data
        finally:
            upload.abort()

    @rule(unfinished=consumes(uploads))
    def abort(self, unfinished: Unfinished) -> None:
        if unfinished in self.open:
            self.open.remove(unfinished)
        unfinished.upload.abort()

    @rule(keys=st.lists(KEYS, max_size=3))
    def delete(self, keys: list[str]) -> None:
        self.backend.delete(iter(keys))
        for key in keys:
            self.model.pop(key, None)

    @rule(key=KEYS, offset=st.integers(0, 5000), length=st.integers(1, 5000))
    def read(self, key: str, offset: int, length: int) -> None:
        data = self.model.get(key)
        if data is None:
            with pytest.raises(NotFoundError):
                read(self.backend, key, offset, length)
        elif offset + length > len(data):
            with pytest.raises(TruncatedFileError):
                read(self.backend, key, offset, length)
        else:
            assert read(self.backend, key, offset, length) == data[offset : offset + length]

    @rule(prefix=PREFIXES, after=st.none() | KEYS, delimiter=st.booleans())
    def list(self, prefix: str, after: str | None, delimiter: bool) -> None:
        found = [item.key for item in self.backend.list(prefix, after=after, delimiter=delimiter)]
        wanted = {key for key in self.model if key.startswith(prefix)}
        if delimiter:
            tails = (key[len(prefix) :].partition("/") for key in wanted)
            wanted = {prefix + head + slash for head, slash, _ in tails}
        assert found == sorted(key for key in wanted if after is None or key > after)

    @rule()
    def reopen(self) -> None:
        """Another process sees the same."""
        for unfinished in self.open:
            unfinished.upload.abort()
        self.open.clear()
        self.backend.close()
        self.backend = self.opener()

    @invariant()
    def agrees(self) -> None:
        items = {item.key: item.size for item in self.backend.list("")}
        assert items == {key: len(data) for key, data in self.model.items()}
        for key, data in self.model.items():
            assert self.backend.stat(key).size == len(data)
            assert read(self.backend, key, 0, len(data)) == data
