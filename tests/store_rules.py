"""What holds for a run on any tier. Each kind of tier inherits these tests with its backend."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tests.attempts import (
    claim,
    commits,
    contents,
    flip,
    fragment,
    launch_of,
    line_of,
    nonce_of,
    save,
    write_rank,
)
from tierstore.backend import Backend
from tierstore.checkpoint.commit import TOMBSTONE_SIZE, Commit
from tierstore.checkpoint.delete import bury
from tierstore.checkpoint.holdings import holdings
from tierstore.checkpoint.store import RunStore, list_runs
from tierstore.checkpoint.timeline import Launch
from tierstore.errors import (
    AlreadyExistsError,
    AttemptDeletedError,
    CheckpointNotFoundError,
    FormatError,
    IncompleteError,
    IntegrityError,
    TruncatedFileError,
    UnreachableError,
)
from tierstore.keys import Attempt
from tierstore.wrappers.faults import Fault, Faulty

A = Attempt(100, 1, 1)
NONCE = nonce_of(1)


def wrapped(store: RunStore, *faults: Fault) -> RunStore:
    """The same run as another process sees it, with faults."""
    return RunStore(Faulty(store.backend, *faults), "run")


class StoreRules:
    """The fixture `backend` is for the heirs to give."""

    @pytest.fixture
    def store(self, backend: Backend) -> RunStore:
        return RunStore(backend, "run")

    # Committing

    def test_the_last_writer_commits(self, store: RunStore) -> None:
        for rank in range(3):
            assert store.try_commit(A, NONCE) is None
            assert store.try_commit(A, NONCE, range(3)) is None
            write_rank(store, A, rank, 3)
        commit = store.try_commit(A, NONCE)
        assert commit is not None
        assert (commit.attempt, commit.ranks, commit.whole) == (A, (0, 1, 2), True)
        assert (commit.tensors, commit.chunks, commit.files) == (2, 4, 3)
        assert store.read_commit(A) == commit
        assert commits(store) == {A: True}
        assert list(store.attempts()) == [(A, NONCE)]
        manifest = store.open_manifest(commit)
        assert list(manifest.names()) == ["b", "w"]
        assert [value.name for value in manifest.values()] == ["rng.0", "rng.1", "rng.2"]

    def test_committing_again_changes_nothing(self, store: RunStore) -> None:
        commit = save(store, A)
        before = contents(store.backend)
        assert store.try_commit(A, NONCE) == commit
        assert contents(store.backend) == before

    def test_any_rank_may_be_the_missing_one(self, store: RunStore) -> None:
        for missing in range(3):
            attempt = replace(A, number=missing + 1)
            for rank in {0, 1, 2} - {missing}:
                write_rank(store, attempt, rank, 3)
            assert store.try_commit(attempt, NONCE) is None
            assert store.try_commit(attempt, NONCE, range(3)) is None
        assert commits(store) == {}

    def test_a_node_local_tier_commits_its_own_ranks(self, store: RunStore) -> None:
        for rank in (2, 3):
            write_rank(store, A, rank, 4, ranks=(2, 3), declared=4, chunks=whole(rank))
        commit = store.try_commit(A, NONCE, (2, 3))
        assert commit is not None
        assert (commit.ranks, commit.world_size, commit.whole) == ((2, 3), 4, False)

    def test_a_dead_last_writer_is_replaced_by_whoever_looks(self, store: RunStore) -> None:
        write_rank(store, A, 0)
        write_rank(store, A, 1)  # and dies here
        assert RunStore(store.backend, "run").try_commit(A, NONCE) is not None
        assert line_of(store) == [A]

    def test_many_committers_write_the_same(self, store: RunStore) -> None:
        for rank in range(2):
            write_rank(store, A, rank)
        barrier = threading.Barrier(4)

        def commit() -> Commit | None:
            barrier.wait()
            return RunStore(store.backend, "run").try_commit(A, NONCE)

        with ThreadPoolExecutor(4) as pool:
            commits = [future.result() for future in [pool.submit(commit) for _ in range(4)]]
        assert set(commits) == {store.read_commit(A)}
        manifests = [key for key in contents(store.backend) if "manifest-" in key]
        assert len(manifests) == 1

    def test_a_lost_answer_to_the_commit(self, store: RunStore) -> None:
        write_rank(store, A, 0)
        write_rank(store, A, 1)
        lost = UnreachableError("no answer")
        faulty = wrapped(store, Fault("create", key="commits/", error=lost, after=True))
        with pytest.raises(UnreachableError):
            faulty.try_commit(A, NONCE)
        assert faulty.try_commit(A, NONCE) == store.read_commit(A)

    def test_a_fragment_swept_while_it_is_read(self, store: RunStore) -> None:
        write_rank(store, A, 0)
        write_rank(store, A, 1)
        key = store.keys.attempt(A, NONCE).fragment(1)
        swept = Fault("read_into", key=key, action=lambda _: store.backend.delete([key]))
        assert wrapped(store, swept).try_commit(A, NONCE, (0, 1)) is None

    # What must never be committed

    def test_attempts_of_two_lives_are_never_combined(self, store: RunStore) -> None:
        second = replace(A, launch=2)
        write_rank(store, A, 0)  # launch 1 dies, launch 2 saves the same step
        write_rank(store, second, 1)
        for attempt in (A, second):
            assert store.try_commit(attempt, nonce_of(attempt.launch)) is None
        stray = fragment(second, 1).to_bytes()
        store.backend.create(store.keys.attempt(A, NONCE).fragment(1), stray)
        with pytest.raises(FormatError, match="not of one attempt"):
            store.try_commit(A, NONCE)
        assert commits(store) == {}

    def test_two_launches_of_one_number_never_share_an_attempt(self, store: RunStore) -> None:
        save(store, A)
        before = contents(store.backend, store.keys.commits)
        for rank in range(2):
            write_rank(store, A, rank, launch=replace(launch_of(1), nonce="f" * 16))
        with pytest.raises(AlreadyExistsError, match="two jobs"):
            store.try_commit(A, "f" * 16)
        assert contents(store.backend, store.keys.commits) == before

    def test_a_folder_of_fragments_of_another_attempt(self, store: RunStore) -> None:
        for rank in range(2):
            data = fragment(replace(A, step=5), rank).to_bytes()
            store.backend.create(store.keys.attempt(A, NONCE).fragment(rank), data)
        with pytest.raises(FormatError, match="fragments of 000000000005-"):
            store.try_commit(A, NONCE)

    @pytest.mark.parametrize("at", [0, 1000, -1])
    def test_a_flipped_byte_in_a_fragment(self, store: RunStore, at: int) -> None:
        write_rank(store, A, 0)
        write_rank(store, A, 1)
        key = store.keys.attempt(A, NONCE).fragment(1)
        flip(store.backend, key, at)
        with pytest.raises(IntegrityError, match=f"{key} is damaged"):
            store.try_commit(A, NONCE)
        assert commits(store) == {}

    def test_a_missing_segment(self, store: RunStore) -> None:
        write_rank(store, A, 0)
        write_rank(store, A, 1)
        key = store.keys.attempt(A, NONCE).segment("00001-000.safetensors")
        store.backend.delete([key])
        with pytest.raises(IncompleteError, match=f"{key} is missing"):
            store.try_commit(A, NONCE)
        assert commits(store) == {}

    def test_a_truncated_segment(self, store: RunStore) -> None:
        write_rank(store, A, 0)
        write_rank(store, A, 1)
        key = store.keys.attempt(A, NONCE).segment("00000-000.safetensors")
        store.backend.create(key, b"short")
        with pytest.raises(TruncatedFileError, match=f"{key} has 5 bytes instead of"):
            store.try_commit(A, NONCE)
        assert commits(store) == {}

    # Reading back

    def test_what_was_never_committed(self, store: RunStore) -> None:
        with pytest.raises(CheckpointNotFoundError, match="'run' has no commit"):
            store.read_commit(A)
        assert line_of(store) == []
        assert store.claims() == {}
        assert list(store.attempts()) == []

    @pytest.mark.parametrize("at", [0, 3000, -1])
    def test_a_flipped_byte_in_the_manifest(self, store: RunStore, at: int) -> None:
        commit = save(store, A)
        key = store.keys.attempt(A, NONCE).manifest(commit.manifest_crc32c)
        flip(store.backend, key, at)
        with pytest.raises(IntegrityError, match=f"{key} is damaged"):
            store.open_manifest(commit)

    def test_a_truncated_manifest(self, store: RunStore) -> None:
        commit = save(store, A)
        key = store.keys.attempt(A, NONCE).manifest(commit.manifest_crc32c)
        store.backend.create(key, contents(store.backend, key)[key][:-1])
        with pytest.raises(TruncatedFileError, match=key):
            store.open_manifest(commit)

    def test_a_missing_manifest(self, store: RunStore) -> None:
        commit = save(store, A)
        key = store.keys.attempt(A, NONCE).manifest(commit.manifest_crc32c)
        store.backend.delete([key])
        with pytest.raises(IntegrityError, match=f"{key} is missing"):
            store.open_manifest(commit)
        bury(store.backend, store.keys.commit(A))
        with pytest.raises(AttemptDeletedError):
            store.open_manifest(commit)

    def test_the_manifest_of_another_attempt(self, store: RunStore) -> None:
        commit, other = save(store, A), save(store, replace(A, step=200))
        theirs = store.keys.attempt(other.attempt, NONCE).manifest(other.manifest_crc32c)
        data = contents(store.backend, theirs)[theirs]
        ours = store.keys.attempt(A, NONCE)
        store.backend.create(ours.manifest(commit.manifest_crc32c), data)
        with pytest.raises(IntegrityError):
            store.open_manifest(commit)
        store.backend.create(ours.manifest(other.manifest_crc32c), data)
        with pytest.raises(FormatError, match="is the manifest of 000000000200-"):
            store.open_manifest(replace(other, attempt=A))

    def test_the_commit_of_another_attempt(self, store: RunStore) -> None:
        commit = save(store, A)
        store.backend.create(store.keys.commit(replace(A, step=300)), commit.to_bytes())
        with pytest.raises(FormatError, match="is the commit of"):
            store.read_commit(replace(A, step=300))

    def test_other_objects_are_left_out(self, store: RunStore) -> None:
        keys = store.keys
        for key in ("x", f"{keys.commits}x.json", f"{keys.launches}1.json", f"{keys.data}x/y"):
            store.backend.create(key, b"?")
        save(store, A)
        assert commits(store) == {A: True}
        assert store.claims() == {}
        assert list(store.attempts()) == [(A, NONCE)]

    # Launches and the timeline

    def test_a_launch_number_has_one_owner(self, store: RunStore) -> None:
        ours = claim(store, 1)
        store.claim_launch(ours)  # its answer was lost, so it is sent again
        with pytest.raises(AlreadyExistsError):
            store.claim_launch(Launch(1, "f" * 16, None, 2, 2.0))
        assert holdings(store).launches == {ours.id: ours}

    def test_one_commit_of_each_launch_is_read_and_no_claim(self, store: RunStore) -> None:
        claim(store, 1)
        claim(store, 2)
        for step in (50, 100, 200):
            save(store, Attempt(step, 1, 1))
        save(store, Attempt(60, 2, 1), parent=Attempt(50, 1, 1))
        faulty = wrapped(store)
        assert line_of(faulty) == [Attempt(60, 2, 1), Attempt(50, 1, 1)]
        assert isinstance(faulty.backend, Faulty)
        read = [call.key for call in faulty.backend.calls if call.operation == "read_into"]
        expected = [Attempt(200, 1, 1), Attempt(60, 2, 1)]
        assert sorted(read) == sorted(store.keys.commit(each) for each in expected)

    @pytest.mark.parametrize("damage", ["flipped", "cut", "another's", "gone"])
    @pytest.mark.parametrize("number", [1, 2])
    def test_a_damaged_claim_changes_nothing(
        self, store: RunStore, damage: str, number: int
    ) -> None:
        claim(store, 1)
        other = claim(store, 2, parent=Attempt(50, 1, 1)).to_bytes()
        save(store, Attempt(50, 1, 1))
        save(store, Attempt(60, 2, 1), parent=Attempt(50, 1, 1))
        key = store.keys.launch(number)
        if damage == "flipped":
            flip(store.backend, key, 12)
        elif damage == "gone":
            store.backend.delete([key])
        else:
            store.backend.create(key, b"" if damage == "cut" else other)
        assert line_of(store) == [Attempt(60, 2, 1), Attempt(50, 1, 1)]
        assert holdings(store).numbers >= {1, 2}

    def test_a_rollback_makes_the_new_line_the_latest(self, store: RunStore) -> None:
        claim(store, 1)
        for step in (50, 100, 200):
            save(store, Attempt(step, 1, 1))
        claim(store, 2, parent=Attempt(50, 1, 1))
        assert line_of(store)[0] == Attempt(200, 1, 1)  # it has saved nothing yet
        save(store, Attempt(60, 2, 1), parent=Attempt(50, 1, 1))
        assert line_of(store) == [Attempt(60, 2, 1), Attempt(50, 1, 1)]

    def test_a_zombie_rank_of_an_earlier_launch_changes_nothing(self, store: RunStore) -> None:
        save(store, Attempt(50, 1, 1))
        write_rank(store, Attempt(60, 1, 1), 0)
        second = launch_of(2, Attempt(50, 1, 1))
        for step in (55, 60):
            write_rank(store, Attempt(step, 2, 1), 0, launch=second)
        write_rank(store, Attempt(55, 2, 1), 1, launch=second)
        assert store.try_commit(Attempt(55, 2, 1), second.nonce)
        write_rank(store, Attempt(60, 1, 1), 1)  # rank 1 of launch 1 wakes up,
        assert store.try_commit(Attempt(60, 1, 1), NONCE)  # and commits what it was at
        assert line_of(store) == [Attempt(55, 2, 1), Attempt(50, 1, 1)]
        write_rank(store, Attempt(60, 2, 1), 1, launch=second)
        commit = store.try_commit(Attempt(60, 2, 1), nonce_of(2))
        assert line_of(store)[0] == Attempt(60, 2, 1)
        assert commit is not None
        assert store.open_manifest(commit).attempt == Attempt(60, 2, 1)

    # Damage to what says that a checkpoint exists

    @pytest.mark.parametrize("size", [0, 1, TOMBSTONE_SIZE, 200])
    def test_a_commit_that_was_cut_is_no_tombstone(self, store: RunStore, size: int) -> None:
        commit = save(store, A)
        save(store, replace(A, step=50))
        key = store.keys.commit(A)
        store.backend.create(key, commit.to_bytes()[:size])
        assert line_of(store) == [A, replace(A, step=50)]
        with pytest.raises(FormatError, match=f"{key} is damaged"):
            store.read_commit(A)
        recovered, manifest = store.recover(A)
        assert recovered == commit
        assert list(manifest.names()) == ["b", "w"]

    def test_a_listing_tells_a_tombstone(self, store: RunStore) -> None:
        commit = save(store, A)
        bury(store.backend, store.keys.commit(A))
        assert store.entries()[A].size == TOMBSTONE_SIZE < len(commit.to_bytes())
        assert commits(store) == {A: False}
        assert line_of(store) == []
        with pytest.raises(AttemptDeletedError):
            store.read_commit(A)

    def test_a_tombstone_of_format_1_has_no_data(self, store: RunStore) -> None:
        store.backend.create(store.keys.commit(A), b"")
        assert line_of(store) == []
        assert holdings(store).deleted == {A}
        with pytest.raises(AttemptDeletedError):
            store.read_commit(A)

    def test_runs(self, store: RunStore, backend: Backend) -> None:
        assert list_runs(backend) == []
        save(store, A)
        save(RunStore(backend, "another"), A)
        assert list_runs(backend) == ["another", "run"]
        assert commits(store) == {A: True}


def whole(rank: int) -> list[Any]:
    """One tensor of each rank's own."""
    part = fragment(A, 0, 1)
    return [replace(part.chunks[0], name=f"w{rank}")]
