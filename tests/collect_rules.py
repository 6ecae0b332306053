"""What holds when a run on any tier loses checkpoints; a companion of `store_rules`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.attempts import (
    claim,
    commits,
    contents,
    flip,
    launch_of,
    line_of,
    save,
    write_rank,
)
from tests.patience import PATIENCE
from tests.store_rules import NONCE, A, wrapped
from tierstore.backend import Backend
from tierstore.checkpoint.collect import collect, prune
from tierstore.checkpoint.delete import bury, delete, sweep
from tierstore.checkpoint.store import RunStore
from tierstore.errors import (
    AttemptDeletedError,
    CheckpointError,
    CheckpointNotFoundError,
    FormatError,
    NewerFormatError,
)
from tierstore.keys import Attempt
from tierstore.wrappers.delegate import Call
from tierstore.wrappers.faults import Fault

HOUR = 3600.0


class Killed(BaseException):
    """The process is gone."""


def killed(call: Call) -> None:
    raise Killed(call)


def no_sleep(seconds: float) -> None:
    pytest.fail(f"nothing to wait for, but it wants to sleep {seconds} seconds")


class CollectRules:
    """The fixture `backend` is for the heirs to give."""

    @pytest.fixture
    def store(self, backend: Backend) -> RunStore:
        return RunStore(backend, "run")

    # Deleting

    def test_delete(self, store: RunStore) -> None:
        kept = save(store, replace(A, step=50))
        save(store, A)
        delete(store, A, grace=0, sleep=no_sleep)
        assert commits(store) == {kept.attempt: True, A: False}
        assert line_of(store) == [kept.attempt]
        assert list(store.attempts()) == [(kept.attempt, NONCE)]
        assert len(store.open_manifest(store.read_commit(kept.attempt))) == 2
        with pytest.raises(AttemptDeletedError, match="tombstone"):
            store.read_commit(A)
        with pytest.raises(AttemptDeletedError):
            store.try_commit(A, NONCE)
        delete(store, A, grace=0, sleep=no_sleep)

    def test_readers_have_their_grace(self, store: RunStore) -> None:
        commit = save(store, A)
        slept = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            assert commits(store) == {A: False}
            assert len(store.open_manifest(commit)) == 2  # whoever has the commit still reads

        delete(store, A, grace=HOUR, sleep=sleep)
        assert len(slept) == 1
        assert HOUR - PATIENCE < slept[0] <= HOUR + 2  # whole seconds on some stores
        assert list(store.attempts()) == []

    def test_several_have_one_grace(self, store: RunStore) -> None:
        several = [save(store, replace(A, step=step)).attempt for step in (50, 60, 70)]
        bury(store.backend, store.keys.commit(several[0]))
        with pytest.raises(CheckpointNotFoundError):
            delete(store, *several, A, grace=0)
        assert commits(store) == dict(zip(several, (False, True, True), strict=True))
        slept: list[float] = []
        delete(store, *several, grace=HOUR, sleep=slept.append)
        assert len(slept) == 1
        assert commits(store) == dict.fromkeys(several, False)
        assert list(store.attempts()) == []
        delete(store, *several, grace=HOUR, sleep=no_sleep)  # nobody reads what has gone

    def test_delete_what_never_was(self, store: RunStore) -> None:
        write_rank(store, A, 0)
        with pytest.raises(CheckpointNotFoundError):
            delete(store, A, grace=0)
        with pytest.raises(CheckpointError, match="no tombstone"):
            sweep(store, A, grace=0)
        save(store, A)
        with pytest.raises(CheckpointError, match="no tombstone"):
            sweep(store, A, grace=0)
        assert store.open_manifest(store.read_commit(A))

    def test_a_late_committer_after_a_deletion_changes_nothing(self, store: RunStore) -> None:
        write_rank(store, A, 0)
        assert collect(store, A, NONCE, older_than=0, grace=0) == "collected"
        write_rank(store, A, 0)
        write_rank(store, A, 1)
        for ranks in (None, (0, 1)):
            with pytest.raises(AttemptDeletedError):
                store.try_commit(A, NONCE, ranks)
        assert commits(store) == {A: False}

    @pytest.mark.parametrize("operation", ["list", "read_into", "create"])
    def test_a_committer_overtaken_by_a_collector(self, store: RunStore, operation: str) -> None:
        """At whatever point: the tombstone stays, and the committer learns of it."""
        write_rank(store, A, 0)
        write_rank(store, A, 1)

        def overtake(_: Call) -> None:
            bury(store.backend, store.keys.commit(A), if_absent=True)

        late = wrapped(store, Fault(operation, action=overtake))
        with pytest.raises(AttemptDeletedError):
            late.try_commit(A, NONCE)
        assert commits(store) == {A: False}
        sweep(store, A, grace=0)
        assert list(store.attempts()) == []

    def test_a_collector_overtaken_by_a_committer(self, store: RunStore) -> None:
        write_rank(store, A, 0)

        def overtake(_: Call) -> None:
            write_rank(store, A, 1)
            assert store.try_commit(A, NONCE)

        late = wrapped(store, Fault("create", key="commits/", action=overtake))
        assert collect(late, A, NONCE, older_than=0, grace=0) == "alive"
        assert len(store.open_manifest(store.read_commit(A))) == 2

    # Collecting

    def test_a_complete_set_is_committed_before_it_is_judged(self, store: RunStore) -> None:
        write_rank(store, A, 0)
        write_rank(store, A, 1)
        assert collect(store, A, NONCE, older_than=0, grace=0) == "committed"
        assert collect(store, A, NONCE, older_than=0, grace=0) == "committed"
        assert line_of(store) == [A]

    def test_what_is_young_is_left_alone(self, store: RunStore) -> None:
        write_rank(store, A, 0)
        assert collect(store, A, NONCE, older_than=HOUR, grace=0) == "young"
        assert commits(store) == {}
        write_rank(store, A, 1)
        assert store.try_commit(A, NONCE)

    def test_what_can_never_be_committed_is_collected(self, store: RunStore) -> None:
        write_rank(store, A, 0)
        write_rank(store, A, 1)
        flip(store.backend, store.keys.attempt(A, NONCE).fragment(0), 99)
        assert collect(store, A, NONCE, older_than=0, grace=0) == "collected"
        assert commits(store) == {A: False}
        assert list(store.attempts()) == []

    def test_a_folder_whose_attempt_belongs_to_another(self, store: RunStore) -> None:
        save(store, A)
        write_rank(store, A, 0, launch=replace(launch_of(1), nonce="f" * 16))
        assert collect(store, A, "f" * 16, older_than=HOUR, grace=0) == "young"
        assert collect(store, A, "f" * 16, older_than=0, grace=0) == "collected"
        assert list(store.attempts()) == [(A, NONCE)]
        assert len(store.open_manifest(store.read_commit(A))) == 2

    def test_tombstones_go_when_nobody_can_meet_them(self, store: RunStore) -> None:
        claim(store, 1)
        own, with_data, living = A, replace(A, step=200), replace(A, step=300)
        for attempt in (own, with_data, living):
            save(store, attempt)
        delete(store, own, grace=0)
        bury(store.backend, store.keys.commit(with_data))
        assert prune(store, older_than=-1) == []  # its launch may still be at work
        claim(store, 2, parent=living)
        assert prune(store, older_than=HOUR) == []
        assert prune(store, older_than=-5) == [own]
        assert commits(store) == {with_data: False, living: True}

    # What cannot be judged

    def test_a_damaged_commit_counts_as_alive(self, store: RunStore) -> None:
        save(store, A)
        flip(store.backend, store.keys.commit(A), 20)
        with pytest.raises(FormatError, match=store.keys.commit(A)):
            store.read_commit(A)
        assert line_of(store) == [A]
        before = contents(store.backend, store.keys.data)
        outcome = collect(store, A, NONCE, older_than=0, grace=0)
        assert outcome == "alive"
        assert contents(store.backend, store.keys.data) == before
        assert commits(store) == {A: True}

    def test_a_newer_commit_counts_as_alive(self, store: RunStore) -> None:
        write_rank(store, A, 0)
        store.backend.create(store.keys.commit(A), b'{"format":9}')
        with pytest.raises(NewerFormatError):
            store.try_commit(A, NONCE)
        assert collect(store, A, NONCE, older_than=0, grace=0) == "alive"
        assert commits(store) == {A: True}

    # Killed anywhere

    def killed_everywhere(self, make: Callable[[int], Attempt], act: Callable[..., Any]) -> int:
        """Kill `act` at its first request, at its second, ... until it gets through."""
        number = 0
        while True:
            number += 1
            attempt = make(number)
            try:
                act(attempt, Fault("*", nth=number, action=killed))
            except Killed:
                self.check_sound(attempt)
                act(attempt)
                self.check_done(attempt)
            else:
                self.check_done(attempt)
                return number

    check_sound: Callable[[Attempt], None]
    check_done: Callable[[Attempt], None]

    def test_a_commit_killed_anywhere(self, store: RunStore) -> None:
        def make(number: int) -> Attempt:
            attempt = replace(A, step=number)
            for rank in range(2):
                write_rank(store, attempt, rank)
            return attempt

        def act(attempt: Attempt, *faults: Fault) -> None:
            wrapped(store, *faults).try_commit(attempt, NONCE)

        def check_sound(attempt: Attempt) -> None:
            if commits(store).get(attempt):
                check_done(attempt)

        def check_done(attempt: Attempt) -> None:
            assert len(store.open_manifest(store.read_commit(attempt))) == 2

        self.check_sound, self.check_done = check_sound, check_done
        assert self.killed_everywhere(make, act) > 8

    def test_a_deletion_killed_anywhere(self, store: RunStore) -> None:
        def make(number: int) -> Attempt:
            return save(store, replace(A, step=number)).attempt

        def act(attempt: Attempt, *faults: Fault) -> None:
            delete(wrapped(store, *faults), attempt, grace=0)

        self.check_sound, self.check_done = self.sound_and_gone(store)
        assert self.killed_everywhere(make, act) > 5

    def test_a_collection_killed_anywhere(self, store: RunStore) -> None:
        def make(number: int) -> Attempt:
            attempt = replace(A, step=number)
            write_rank(store, attempt, 0)
            return attempt

        def act(attempt: Attempt, *faults: Fault) -> None:
            other = wrapped(store, *faults)
            assert collect(other, attempt, NONCE, older_than=0, grace=0) == "collected"

        self.check_sound, self.check_done = self.sound_and_gone(store)
        assert self.killed_everywhere(make, act) > 7

    def sound_and_gone(self, store: RunStore) -> tuple[Callable[[Attempt], None], ...]:
        def check_sound(attempt: Attempt) -> None:
            if commits(store).get(attempt):  # alive: then it is whole
                assert len(store.open_manifest(store.read_commit(attempt))) == 2

        def check_done(attempt: Attempt) -> None:
            assert commits(store)[attempt] is False
            assert attempt not in [found for found, _ in store.attempts()]

        return check_sound, check_done
