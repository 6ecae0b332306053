"""Threads that move small objects share a core; the others, and the caller's, keep all."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.unit.test_migrate_every_request import migrate
from tierstore.backends.memory import open_memory
from tierstore.transfer.engine import affinity
from tierstore.transfer.engine.affinity import Affinity
from tierstore.wrappers.delegate import Call, Delegate

T = TypeVar("T")
CPUS = os.sched_getaffinity(0)

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="there is but one core")


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(affinity, "_KEPT", 1000.0)
    yield
    os.sched_setaffinity(0, CPUS)


def elsewhere(work: Callable[[], T]) -> T:
    """Return what `work` does in a thread of its own."""
    done: list[T] = []
    thread = threading.Thread(target=lambda: done.append(work()))
    thread.start()
    thread.join()
    return done[0]


def bound(shared: Affinity) -> set[int]:
    shared.join()
    return os.sched_getaffinity(0)


def test_threads_share_one_core_until_they_leave() -> None:
    shared = Affinity()
    mine = bound(shared)
    assert len(mine) == 1
    assert elsewhere(lambda: bound(shared)) == mine  # born bound, too
    shared.leave()
    assert os.sched_getaffinity(0) == CPUS
    assert elsewhere(lambda: bound(shared)) == mine


def test_who_was_born_bound_can_leave() -> None:
    shared = Affinity()
    shared.join()

    def leave() -> set[int]:
        shared.leave()
        return os.sched_getaffinity(0)

    assert elsewhere(leave) == CPUS


def test_the_kernel_is_asked_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = sorted(CPUS)[:2]
    monkeypatch.setattr(affinity, "_current", lambda: first)
    shared = Affinity()
    assert bound(shared) == {first}
    monkeypatch.setattr(affinity, "_KEPT", 0.0)
    assert bound(shared) == CPUS  # one is free to be moved
    monkeypatch.setattr(affinity, "_KEPT", 1000.0)
    assert elsewhere(lambda: bound(shared)) == {first}  # the others work on
    monkeypatch.setattr(affinity, "_current", lambda: second)
    assert bound(shared) == {second}
    assert elsewhere(lambda: bound(shared)) == {second}


def test_where_it_is_forbidden_threads_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int, _cpus: object) -> None:
        raise PermissionError(1, "not here")

    with monkeypatch.context() as patched:
        patched.setattr(os, "sched_setaffinity", refuse)
        shared = Affinity()
        shared.join()
        shared.leave()
    assert bound(shared) == CPUS


def test_one_core_is_shared_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "sched_getaffinity", lambda _pid: {0})
        shared = Affinity()
    assert bound(shared) == CPUS


class Watched(Delegate):
    """A store that sees on how many cores the thread of each request may run."""

    def __init__(self) -> None:
        super().__init__(open_memory(f"memory://{secrets.token_hex(8)}"))
        self.seen: dict[str, set[int]] = {}

    def around(self, call: Call, run: Callable[[], T]) -> T:
        self.seen.setdefault(call.key, set()).add(len(os.sched_getaffinity(0)))
        return run()


def test_what_moves_many_bytes_uses_all_cores(tmp_path: Path) -> None:
    source, target = Watched(), Watched()
    part = target.capabilities.part_size
    for number in range(20):
        source.inner.create(f"small-{number}", os.urandom(4096))
    source.inner.create("large", os.urandom(2 * part))
    migration, _ = migrate(tmp_path / "journal", source, target)
    assert migration.totals.moved == 2 * part + 20 * 4096
    assert os.sched_getaffinity(0) == CPUS
    small = set().union(*(target.seen[f"small-{number}"] for number in range(20)))
    assert small == {1}
    assert source.seen["large"] >= {len(CPUS)}
