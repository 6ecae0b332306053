"""How one command is answered, whatever the stores say of what it is about."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tierstore.backend import Upload
from tierstore.backends.local.backend import LocalBackend
from tierstore.backends.memory import MemoryBackend, open_memory
from tierstore.errors import AccessError, NotFoundError, StorageError
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.affinity import Affinity
from tierstore.transfer.engine.crew import PartMemory
from tierstore.transfer.engine.entries import Entry
from tierstore.transfer.engine.records import TARGET, Version
from tierstore.transfer.engine.stores import Stores
from tierstore.transfer.engine.worker import Worker

ENTRY = Entry("k", Version(10, 1.0))


class Resuming(MemoryBackend):
    """A store that answers whoever goes on with an upload in its own way."""

    answer: Exception | None = None

    def upload(self, key: str, size: int | None = None, *, resume: str | None = None) -> Upload:
        if resume is not None and self.answer is not None:
            raise self.answer
        return super().upload(key, size)  # begun anew, whatever was asked for


def worker(target: Any) -> Worker:
    stores = Stores.pair(open_memory("memory://worker/from"), target)
    return Worker(stores, PartMemory(4096, 1, 1), Affinity())


def test_an_upload_that_the_store_began_anew_is_gone_and_leaves_nothing() -> None:
    target = Resuming("memory://worker/anew")
    answer = worker(target).carry_out(m.Open(7, ENTRY, "another token"))
    assert answer == m.Gone(7)
    assert not list(target._space.uploads)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotFoundError("no such upload"), m.Gone),
        (StorageError("no such upload"), m.Gone),
        (AccessError("expired"), m.Failed),
    ],
)
def test_only_a_store_that_knows_no_such_upload_says_that_it_is_gone(
    error: Exception, kind: type
) -> None:
    target = Resuming("memory://worker/refused")
    target.answer = error
    answer = worker(target).carry_out(m.Open(7, ENTRY, "token"))
    assert type(answer) is kind
    assert answer.job == 7


def test_an_upload_that_is_new_is_opened() -> None:
    target = Resuming("memory://worker/new")
    working = worker(target)
    answer = working.carry_out(m.Open(7, ENTRY, ""))
    assert isinstance(answer, m.Opened)
    assert (answer.job, len(list(target._space.uploads))) == (7, 1)
    assert working.carry_out(m.Discard(7, TARGET, "k", 10, answer.token)) == m.Discarded(7)
    assert not list(target._space.uploads)


LARGE = bytes(9_000_000)  # more than a part


@pytest.mark.parametrize(
    ("copied", "now"),
    [
        (b"copied", b"edited"),
        (b"copied", b"longer than it was"),
        (b"copied", b"copied"),
        (LARGE, LARGE),
        (LARGE, LARGE[:-1] + b"x"),
    ],
)
def test_what_changed_since_it_was_copied_is_not_removed(
    tmp_path: Path, copied: bytes, now: bytes
) -> None:
    """Whatever changed of it; what was only touched has its bytes at the destination, and goes."""
    (tmp_path / "src").mkdir()
    path = tmp_path / "src" / "k"
    path.write_bytes(copied)
    with (
        closing(LocalBackend(str(tmp_path / "src"))) as source,
        closing(LocalBackend(str(tmp_path / "dst"))) as target,
    ):
        entry = Entry("k", Version.of(source.stat("k")))
        target.create("k", copied)
        path.unlink()
        path.write_bytes(now)
        os.utime(path, (1, 1))
        working = Worker(Stores.pair(source, target), PartMemory(1 << 24, 1, 1), Affinity())
        answer = working.carry_out(m.Remove(7, entry))
    assert answer == m.Removed(7, changed=now != copied)
    assert path.exists() == (now != copied)
