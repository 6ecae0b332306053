"""What holds when a mirror on any tier loses checkpoints that its original has no more."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.attempts import commits, contents, flip, launch_of, save, write_rank
from tests.collect_rules import HOUR, Killed, killed, no_sleep
from tests.patience import PATIENCE
from tests.store_rules import A
from tierstore.backend import Backend
from tierstore.backends.memory import open_memory
from tierstore.checkpoint.commit import TOMBSTONE_SIZE
from tierstore.checkpoint.delete import bury, delete
from tierstore.checkpoint.store import RunStore
from tierstore.errors import StorageError
from tierstore.migration.ends import Ends
from tierstore.migration.mirror import Mirror
from tierstore.patterns import Selection
from tierstore.wrappers.delegate import Call
from tierstore.wrappers.faults import Fault, Faulty

B = replace(A, step=200)
PLAIN = {"a.txt": b"a", "z.txt": b"z"}


class MirrorRules:
    """The fixture `backend` is for the heirs to give; it is the mirror."""

    @pytest.fixture
    def source(self) -> Backend:
        return open_memory(f"memory://{secrets.token_hex(8)}")

    @pytest.fixture
    def ends(self, source: Backend, backend: Backend) -> Ends:
        """A mirror of two checkpoints, of which the original has lost A."""
        original = RunStore(source, "run")
        for attempt in (A, B):
            save(original, attempt)
        for key, data in contents(source).items():
            backend.create(key, data)
        lose(original)
        return Ends(source, backend)

    def test_readers_have_their_grace(self, ends: Ends) -> None:
        for key, data in PLAIN.items():
            ends.target.create(key, data)
        before, slept = below(ends, A), []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            assert commits(mirrored(ends)) == {A: False, B: True}
            assert below(ends, A) == before
            assert contents(ends.target).keys() > PLAIN.keys()

        gone = synced(ends, grace=HOUR, sleep=sleep)
        assert len(slept) == 1
        assert HOUR - PATIENCE < slept[0] <= HOUR
        assert gone[0] == mirrored(ends).keys.commit(A)
        assert sorted(gone[1:]) == sorted([*PLAIN, *before])
        assert not below(ends, A)
        self.is_mirror(ends)

    def test_nobody_waits_where_no_checkpoint_goes(self, ends: Ends) -> None:
        synced(ends, grace=0)
        for key, data in PLAIN.items():
            ends.target.create(key, data)
        write_rank(mirrored(ends), replace(A, step=300), 0)  # which nobody has committed
        assert len(synced(ends, grace=HOUR, sleep=no_sleep)) > len(PLAIN)
        self.is_mirror(ends)

    def test_it_goes_on_where_it_was_killed(self, ends: Ends) -> None:
        self.killed_in_the_grace(ends)
        assert commits(mirrored(ends)) == {A: False, B: True}
        before, slept = contents(ends.target), []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            assert contents(ends.target) == before  # asking for the time leaves nothing there

        synced(ends, grace=HOUR, sleep=sleep)
        assert len(slept) == 1
        assert HOUR - PATIENCE < slept[0] <= HOUR
        self.is_mirror(ends)

    def test_what_is_left_of_the_grace_is_by_the_tombstone(self, ends: Ends) -> None:
        self.killed_in_the_grace(ends)
        time.sleep(1.5)  # a store may have whole seconds
        synced(ends, grace=0.2, sleep=no_sleep)
        self.is_mirror(ends)

    def test_killed_anywhere(self, ends: Ends) -> None:
        before, number = contents(ends.target), 0
        while True:
            number += 1
            target = Faulty(ends.target, Fault("*", nth=number, action=killed))
            try:
                synced(Ends(ends.source, target), grace=0)
                break
            except Killed:
                if commits(mirrored(ends))[A]:
                    assert below(ends, A).items() <= before.items()
                    assert len(below(ends, A)) == sum(str(A) in key for key in before) - 1
                synced(ends, grace=0)
                self.is_mirror(ends)
            for key, data in before.items():
                ends.target.create(key, data)
        assert number > 6

    def test_a_tombstone_of_somebody_else_has_its_grace(self, ends: Ends) -> None:
        """It was written while this one waited for its own readers."""
        slept = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 1:
                lose(RunStore(ends.source, "run"), B)
                bury(ends.target, mirrored(ends).keys.commit(B))
            else:
                assert below(ends, B)

        synced(ends, grace=HOUR, sleep=sleep, most=100)
        assert len(slept) == 2
        assert not below(ends, A) | below(ends, B)

    def test_what_the_source_loses_meanwhile_waits_for_the_next_time(self, ends: Ends) -> None:
        before = below(ends, B)
        synced(ends, grace=HOUR, sleep=lambda _: lose(RunStore(ends.source, "run"), B), most=100)
        assert commits(mirrored(ends)) == {A: False, B: True}
        assert below(ends, B) == before
        synced(ends, grace=0)
        assert commits(mirrored(ends)) == {A: False, B: False}
        assert not below(ends, B)

    def test_no_more_commits_than_were_counted(self, ends: Ends) -> None:
        mirror = Mirror(ends, Selection(), grace=0)
        extra = mirror.extra()
        lose(RunStore(ends.source, "run"), B)  # it is away
        with pytest.raises(StorageError, match="more is missing at SRC"):
            list(mirror.remove(extra.objects))
        assert commits(mirrored(ends)) == {A: True, B: True}

    def test_an_excluded_commit_keeps_its_data(self, ends: Ends) -> None:
        before, no_commits = contents(ends.target), Selection([("-", "commits/")])
        assert not synced(ends, grace=0, selection=no_commits)
        bury(ends.target, mirrored(ends).keys.commit(A))
        slept: list[float] = []
        assert synced(ends, grace=HOUR, selection=no_commits, sleep=slept.append)
        assert len(slept) == 1
        assert not below(ends, A)
        assert before.keys() - contents(ends.target).keys() == {
            key for key in before if str(A) in key and "/data/" in key
        }

    def test_rivals(self, ends: Ends) -> None:
        """Folders of one attempt by two launches of one number go, or stay, with its commit."""
        rival = replace(launch_of(1), nonce="f" * 16)
        for attempt in (A, B):
            write_rank(mirrored(ends), attempt, 0, launch=rival)
        before = below(ends, B)
        slept: list[float] = []
        synced(ends, grace=HOUR, sleep=slept.append)
        assert len(slept) == 1
        assert not below(ends, A)
        assert below(ends, B) == before

    @pytest.mark.parametrize("left", ["nothing", "a part", "a damaged tombstone"])
    def test_a_damaged_commit_is_buried_as_another(self, ends: Ends, left: str) -> None:
        """By its size it is a tombstone, and readers that have what it said are there still."""
        key = mirrored(ends).keys.commit(A)
        if left == "a damaged tombstone":
            bury(ends.target, key)
            flip(ends.target, key, 20)
        else:
            size = TOMBSTONE_SIZE if left == "a part" else 0
            ends.target.create(key, contents(ends.target)[key][:size])
        slept: list[float] = []
        synced(ends, grace=HOUR, sleep=slept.append)
        assert len(slept) == 1
        assert mirrored(ends).deleted(A, mirrored(ends).entries()[A])
        self.is_mirror(ends)

    def test_a_deletion_at_the_source_is_followed(self, ends: Ends) -> None:
        delete(RunStore(ends.source, "run"), B, grace=0)
        synced(ends, grace=0)
        assert commits(mirrored(ends)) == {A: False, B: False}
        assert not below(ends, B)

    def killed_in_the_grace(self, ends: Ends) -> None:
        with pytest.raises(Killed):
            synced(ends, grace=HOUR, sleep=lambda _: killed(Call("sleep", "")))

    def is_mirror(self, ends: Ends) -> None:
        """Beside tombstones the mirror has what its original has."""
        dead = mirrored(ends).keys.commit(A)
        left = contents(ends.target)
        assert len(left.pop(dead)) == TOMBSTONE_SIZE
        assert left == contents(ends.source)


def mirrored(ends: Ends) -> RunStore:
    return RunStore(ends.target, "run")


def below(ends: Ends, attempt: object) -> dict[str, bytes]:
    return contents(ends.target, f"runs/run/data/{attempt}-")


def lose(store: RunStore, attempt: object = A) -> None:
    """Lose all of a checkpoint: nobody should, but a mirror follows."""
    store.backend.delete([key for key in contents(store.backend) if str(attempt) in key])


def synced(
    ends: Ends,
    *,
    grace: float,
    sleep: Callable[[float], None] = time.sleep,
    selection: Selection | None = None,
    most: int | None = None,
) -> list[str]:
    """Remove what the mirror has too much; return the keys in this order."""
    mirror = Mirror(ends, selection or Selection(), grace=grace, sleep=sleep)
    extra = mirror.extra()
    gone = [key for keys in mirror.remove(most or extra.objects) for key in keys]
    assert most or len(gone) == extra.objects
    return gone
