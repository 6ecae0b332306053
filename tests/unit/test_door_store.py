"""Stores, runs and checkpoints of the door: listing, choosing, verifying, deleting."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tests.attempts import commits, contents, flip, nonce_of
from tests.shards import until
from tests.stored import plain, save_arrays
from tierstore.backends.local.backend import LocalBackend
from tierstore.checkpoint.commit import tombstone
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch
from tierstore.config import load_config
from tierstore.errors import (
    AttemptDeletedError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    InvalidKeyError,
    TierstoreError,
)
from tierstore.keys import Attempt, AttemptId
from tierstore.operations.delete import delete
from tierstore.testing.servers import free_port

pytestmark = pytest.mark.usefixtures("no_leaks")

DATA = np.arange(2_000_000, dtype=np.float32)
FIRST = Attempt(1, 1, 1)


def backend(path: Path) -> LocalBackend:
    return LocalBackend(str(path))


@pytest.fixture
def tiers(tmp_path: Path) -> list[Path]:
    """Two tiers: run "a" with step 7; run "b" went back from 3 to 1, and 2 is on the second."""
    paths = [tmp_path / "fast", tmp_path / "slow"]
    for path in paths:
        save_arrays(backend(path), "a", {"w": plain(DATA)}, attempt=Attempt(7, 1, 1))
        for step in (1, 2, 3):
            if step != 2 or path is paths[1]:
                save_arrays(backend(path), "b", {"w": plain(DATA)}, attempt=Attempt(step, 1, 1))
        again = Attempt(4, 2, 1)
        save_arrays(backend(path), "b", {"w": plain(DATA)}, attempt=again, parent=FIRST)
    return paths


@pytest.fixture
def store(tiers: list[Path]) -> Iterator[tierstore.Store]:
    with tierstore.open(*(path.as_uri() for path in tiers)) as opened:
        yield opened


def away() -> str:
    """A tier that nobody answers for."""
    return f"s3://b/t?endpoint_url=http://127.0.0.1:{free_port()}"


# Opening


def test_a_ladder_opens_as_every_configuration_does(
    tiers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tiers[0].as_uri()
    file = tmp_path / "tierstore.toml"
    file.write_text(f'[[tier]]\nname = "n"\nurl = "{url}"\n')
    monkeypatch.setenv("TIERSTORE_CONFIG", str(file))
    for sources in ([], [url], [file], [str(file)], [load_config(url)]):
        with tierstore.open(*sources) as store:
            assert store.runs() == ["a", "b"]
    with pytest.raises(ConfigError):
        tierstore.open(tmp_path / "absent.toml")


def test_a_closed_store_says_so(store: tierstore.Store) -> None:
    run = store["a"]
    checkpoint = run.latest()
    array = checkpoint["w"]
    store.close()
    store.close()
    for use in (store.runs, run.latest, run.steps, checkpoint.verify, lambda: checkpoint["w"]):
        with pytest.raises(CheckpointError, match="this store is closed"):
            use()
    with pytest.raises(CheckpointError, match="this store is closed"):
        array[0]


def test_reprs_tell_what_it_is(store: tierstore.Store, tiers: list[Path]) -> None:
    places = f"local {tiers[0].as_uri()}, local2 {tiers[1].as_uri()}"
    assert repr(store) == f"<tierstore.Store of {places}>"
    assert repr(store["a"]) == f"<tierstore.Run 'a' on {places}>"
    checkpoint = store["a"].latest()
    assert repr(checkpoint) == (
        "<tierstore.Checkpoint 'a', step 7: 1 tensors, 8,000,000 bytes on local, local2>"
    )
    assert repr(checkpoint["w"]) == "<tierstore.Array 'w': float32, shape (2000000,)>"
    for thing in (store, store["a"]):
        with pytest.raises(TypeError):
            iter(thing)  # type: ignore[call-overload]


# Runs and steps


def test_steps_are_rows(store: tierstore.Store) -> None:
    began = datetime.now(UTC).timestamp()
    rows = store["b"].steps()
    assert [(r.step, r.launch, r.number, r.line, r.tiers) for r in rows] == [
        (4, 2, 1, "latest", ("local", "local2")),
        (1, 1, 1, "timeline", ("local", "local2")),
    ]
    assert {row.nbytes for row in rows} == {DATA.nbytes}
    for row in rows:
        assert row.saved_at is not None
        assert row.saved_at.tzinfo is UTC
        assert abs(row.saved_at.timestamp() - began) < 600
    store["b"][4].delete(grace=0)
    everything = store["b"].steps(everything=True)
    assert [(r.step, r.line, r.tiers) for r in everything] == [
        (3, "latest", ("local", "local2")),
        (2, "timeline", ("local2",)),
        (1, "timeline", ("local", "local2")),
        (4, "deleted", ()),
    ]
    assert (everything[-1].nbytes, everything[-1].saved_at) == (None, None)
    assert store["none"].steps() == []


def test_a_step_whose_commit_is_damaged_has_no_size(
    store: tierstore.Store, tiers: list[Path]
) -> None:
    for path in tiers:
        flip(backend(path), RunStore(backend(path), "a").keys.commit(Attempt(7, 1, 1)), 20)
    (row,) = store["a"].steps()
    assert (row.step, row.nbytes) == (7, None)
    assert row.saved_at is not None


def test_a_tier_that_is_away_is_an_error_or_left_out(
    tiers: list[Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    with tierstore.open(tiers[0].as_uri(), f"{away()}&retry_seconds=0") as store:
        assert "very-secret" not in repr(store)
        for use in (store.runs, store["b"].steps):
            with pytest.raises(TierstoreError, match="tier s3: "):
                use()
            assert use(allow_unseen=True)
            assert "tier s3 cannot be listed" in caplog.text
            caplog.clear()
        with pytest.raises(TierstoreError, match="may hold a newer step"):
            store["b"].latest()
        assert store["b"].latest(allow_older=True).step == 4


def test_a_run_gives_its_latest_and_any_step(store: tierstore.Store) -> None:
    run = store["b"]
    latest = run.latest()
    assert (latest.run, latest.step, latest.launch, latest.number) == ("b", 4, 2, 1)
    assert (latest.world_size, latest.nbytes) == (1, DATA.nbytes)
    assert (run[1].step, run[2].tiers) == (1, ("local2",))
    assert run[3].launch == 1  # of an abandoned line
    for missing in (lambda: run[5], store["none"].latest):
        with pytest.raises(CheckpointNotFoundError):
            missing()
    with pytest.raises(InvalidKeyError):
        store["a/b"]


# Verifying


def test_verify_finds_all_damage(store: tierstore.Store, tiers: list[Path]) -> None:
    checkpoint = store["a"].latest()
    assert checkpoint.verify().good
    keys = RunStore(backend(tiers[1]), "a").keys.attempt(Attempt(7, 1, 1), nonce_of(1))
    file = keys.segment("00000-000.safetensors")
    flip(backend(tiers[1]), file, 5_000_000)
    told: list[str] = []

    def progress(what: str, nbytes: int) -> Any:
        told.append(what)
        assert nbytes > DATA.nbytes
        return lambda _: None

    found = checkpoint.verify(progress=progress)
    assert told == ["local", "local2"]
    assert (found.good, found.copies["local"].good) == (False, True)
    (damage,) = found.copies["local2"].damage
    assert (damage.tier, damage.file, damage.block) == ("local2", file, 1)
    assert checkpoint.verify(tier="local").good
    with pytest.raises(ConfigError, match="no tier 'x'"):
        checkpoint.verify(tier="x")


def test_verify_is_of_this_try_and_no_later_one(store: tierstore.Store, tiers: list[Path]) -> None:
    checkpoint = store["b"][4]
    save_arrays(backend(tiers[0]), "b", {"w": plain(DATA)}, attempt=Attempt(4, 2, 2), parent=FIRST)
    assert store["b"][4].number == 2
    assert checkpoint.verify().number == 1
    checkpoint.delete(grace=0)
    with pytest.raises(CheckpointNotFoundError):
        checkpoint.verify()
    assert store["b"][4].number == 2


# Deleting


def data(path: Path, run: str, attempt: Attempt) -> list[str]:
    return [*contents(backend(path), RunStore(backend(path), run).keys.rivals(attempt))]


def test_delete_leaves_a_tombstone_on_every_tier(store: tierstore.Store, tiers: list[Path]) -> None:
    step = Attempt(2, 1, 1)
    checkpoint = store["b"][2]
    assert checkpoint.tiers == ("local2",)
    began = time.monotonic()
    checkpoint.delete(grace=1)
    assert time.monotonic() - began >= 1
    for path in tiers:  # also where it was not, in case it is on its way there
        run = RunStore(backend(path), "b")
        assert commits(run)[step] is False
        assert not data(path, "b", step)
        with pytest.raises(AttemptDeletedError):
            run.try_commit(step, nonce_of(1))
    checkpoint.delete(grace=0)  # again
    with pytest.raises(CheckpointNotFoundError):
        store["b"][2]


def test_data_stays_until_every_tier_has_its_tombstone_and_the_grace_is_over(
    tiers: list[Path],
) -> None:
    urls = [path.as_uri() for path in tiers]
    step, waits = Attempt(7, 1, 1), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        for path in tiers:
            assert commits(RunStore(backend(path), "a"))[step] is False
            assert len(waits) > 1 or data(path, "a", step)

    delete(urls, "a", AttemptId(step, nonce_of(1)), grace=500, sleep=sleep)
    assert waits
    assert all(490 < wait <= 500 for wait in waits)
    assert not any(data(path, "a", step) for path in tiers)


@pytest.mark.parametrize("buried", [0, 1])
def test_delete_carries_on_where_it_was_cut_off(
    store: tierstore.Store, tiers: list[Path], buried: int
) -> None:
    step = Attempt(7, 1, 1)
    checkpoint = store["a"].latest()
    cut = RunStore(backend(tiers[buried]), "a")
    cut.backend.create(cut.keys.commit(step), tombstone(step))
    assert store["a"].latest().tiers == (("local", "local2")[1 - buried],)  # whole, on the other
    np.testing.assert_array_equal(store["a"].latest()["w"][...], DATA)
    checkpoint.delete(grace=0)
    assert not any(data(path, "a", step) for path in tiers)


DELETING = """
import sys, tierstore
with tierstore.open(*sys.argv[1:]) as store:
    store["a"].latest().delete(grace=600)
"""


def test_a_delete_that_is_killed_leaves_no_half_and_is_carried_on(tiers: list[Path]) -> None:
    urls, step = [path.as_uri() for path in tiers], Attempt(7, 1, 1)
    stores = [RunStore(backend(path), "a") for path in tiers]
    process = subprocess.Popen([sys.executable, "-c", DELETING, *urls])
    try:
        until(lambda: not any(commits(store)[step] for store in stores))
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert all(data(path, "a", step) for path in tiers)  # readers have their time
    with tierstore.open(*urls) as store:
        assert store["a"].steps() == []
        with pytest.raises(CheckpointNotFoundError):
            store["a"].latest()
    delete(urls, "a", AttemptId(step, nonce_of(1)), grace=0)
    assert not any(data(path, "a", step) for path in tiers)


def test_delete_names_the_tier_that_failed_and_does_the_others(
    tiers: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    config = [tiers[0].as_uri(), f"{away()}&retry_seconds=0"]
    with tierstore.open(*config) as store:
        checkpoint = store["a"].latest(allow_older=True)
        with pytest.raises(CheckpointError, match="not deleted on every tier: s3: ") as caught:
            checkpoint.delete(grace=0)
        assert "carries on" in caught.value.hint
    assert not data(tiers[0], "a", Attempt(7, 1, 1))


def test_another_launchs_checkpoint_of_the_same_number_stays(tmp_path: Path) -> None:
    """Two launches that did not see each other have one number: each tier has one's commit."""
    one, two = tmp_path / "one", tmp_path / "two"
    save_arrays(backend(one), "r", {"w": plain(DATA)})
    other = Launch(1, "f" * 16, None, 1, 0.5)
    save_arrays(backend(two), "r", {"w": plain(DATA)}, launch=other)
    with tierstore.open(one.as_uri(), two.as_uri()) as store:
        latest = store["r"].latest()
        assert latest.tiers == ("local",)
        latest.delete(grace=0)
        assert store["r"].latest().tiers == ("local2",)
    for damaged in (False, True):
        if damaged:
            flip(backend(two), RunStore(backend(two), "r").keys.commit(FIRST), 20)
        with pytest.raises(CheckpointNotFoundError):
            delete(two.as_uri(), "r", AttemptId(FIRST, nonce_of(1)), grace=0)
        assert data(two, "r", FIRST)
    delete(two.as_uri(), "r", AttemptId(FIRST, "f" * 16), grace=0)  # damaged, and its own
    assert not data(two, "r", FIRST)


def test_what_nobody_has_is_not_deleted(tiers: list[Path]) -> None:
    with closing(backend(tiers[0])) as held:
        before = contents(held)
        with pytest.raises(CheckpointNotFoundError, match="no attempt"):
            delete([path.as_uri() for path in tiers], "b", AttemptId(Attempt(9, 1, 1), ""), grace=0)
        assert contents(held) == before
