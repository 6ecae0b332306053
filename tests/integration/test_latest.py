"""Which checkpoint is the latest, when launches, nodes and tiers come and go."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from tests.attempts import contents, flip
from tests.command import tierstore
from tests.integration import latest_cases
from tests.patience import PATIENCE
from tests.ranks import Ranks
from tests.shards import folder
from tierstore.backends.local.backend import LocalBackend
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch
from tierstore.errors import BlockedError, StorageError, UnreachableError
from tierstore.ladder import claim as claiming
from tierstore.ladder import survey as surveying
from tierstore.ladder.tiers import OpenTier
from tierstore_torch import Checkpointer
from tierstore_torch.launch import claim_launch

pytestmark = pytest.mark.torch

Save = Callable[..., None]


def state(step: int = 0) -> dict[str, object]:
    return {"weight": torch.full((8,), float(step)), "step": step}


def life(*roots: Path, saves: tuple[int, ...] = (), **restore: object) -> int | None:
    """One life of a job: it restores the latest, saves and ends."""
    with Checkpointer(*(root.as_uri() for root in roots), run="run") as ckpt:
        here = state()
        found = ckpt.restore(here, **restore)  # type: ignore[arg-type]
        assert here["step"] == (found or 0)
        for step in saves:
            ckpt.save(step, state(step)).wait("local", timeout=PATIENCE)
        return found


def anew(root: Path, *saves: int) -> None:
    """A life that does not restore."""
    with Checkpointer(root.as_uri(), run="run") as ckpt:
        for step in saves:
            ckpt.save(step, state(step)).wait(timeout=PATIENCE)


class Away:
    """A tier that cannot be reached: something else lies where its folder was."""

    def __init__(self, root: Path) -> None:
        self.root, self._kept = root, root.with_name(f"{root.name}.kept")

    def __enter__(self) -> None:
        self.root.rename(self._kept)
        self.root.write_text("in the way")

    def __exit__(self, *_: object) -> None:
        self.root.unlink()
        self._kept.rename(self.root)


def lines(*roots: Path) -> list[tuple[int, int, str]]:
    ladder = [word for root in roots for word in ("-c", root.as_uri())]
    done = tierstore("ls", "run", "--all", "--json", *ladder)
    assert done.code == 0, done.err
    return [(row["step"], row["launch"], row["line"]) for row in json.loads(done.out)]


# Launches that save nothing, or go back


def test_a_launch_that_saved_nothing_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    life(tmp_path, saves=(10, 20, 30))
    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "write_fragment", cut_off)  # killed before its commit
        with pytest.raises(StorageError):
            anew(tmp_path, 1)
    assert "this launch begins anew without restoring one" in caplog.text
    assert life(tmp_path) == 30
    assert "launch 2 began anew and saved nothing; step 30 is still the latest" in caplog.text
    assert life(tmp_path, step=20) == 20


def test_going_back_and_saving_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    life(tmp_path, saves=(10, 20, 30))
    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "write_fragment", cut_off)
        with pytest.raises(StorageError):
            life(tmp_path, step=10, saves=(11,))
    assert life(tmp_path) == 30
    assert "launch 2 went back to step 10 and saved nothing" in caplog.text


def cut_off(*_: object) -> None:
    raise StorageError("killed here")


def test_going_back_without_a_restore_is_a_line_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="tierstore"):
        anew(tmp_path, 100, 200)
        assert not caplog.records
        anew(tmp_path, 300, 200, 5, 5, 6)
    warned = [r.getMessage() for r in caplog.records if "begins anew" in r.getMessage()]
    assert [text.split("up to step ")[1].split(",")[0] for text in warned] == ["200", "300", "200"]
    assert life(tmp_path) == 6
    assert lines(tmp_path) == [
        (6, 4, "latest"),
        (5, 4, "timeline"),
        (5, 4, "timeline"),
        (300, 2, "abandoned"),
        (200, 3, "abandoned"),
        (200, 1, "abandoned"),
        (100, 1, "abandoned"),
    ]


def test_a_launch_that_did_not_restore_is_undone_by_naming_a_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    life(tmp_path, saves=(10, 20, 30))
    anew(tmp_path, 1)
    assert life(tmp_path) == 1
    for command in ("show", "verify"):
        shown = tierstore(command, "run", "30", "-c", tmp_path.as_uri())
        assert (shown.code, shown.out[:11]) == (0, "run step 30"), shown.err
    assert life(tmp_path, step=30, saves=(40,)) == 30
    assert "step 30 of run run is of an abandoned line" in caplog.text
    assert life(tmp_path) == 40
    told = lines(tmp_path)
    assert [step for step, _, line in told if line != "abandoned"] == [40, 30, 20, 10]


# Nodes that do not see each other


def test_two_nodes_that_took_one_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b, shared = (tmp_path / name for name in ("a", "b", "shared"))
    ladder_a, ladder_b = (a / "local", shared), (b / "local", shared)

    def lived(*roots: Path, saves: tuple[int, ...] = (), older: bool = False) -> int | None:
        tiers = [{"name": "local", "url": roots[0].as_uri()}]
        tiers += [{"name": "shared", "url": roots[1].as_uri()}]
        path = tmp_path / "ladder.toml"
        path.write_text("".join(f"[[tier]]\nname={t['name']!r}\nurl={t['url']!r}\n" for t in tiers))
        with Checkpointer(path, run="run") as ckpt:
            found = ckpt.restore(state(), allow_older=older)
            for step in saves:
                ckpt.save(step, state(step)).wait("local", timeout=PATIENCE)
            return found

    assert lived(*ladder_a, saves=(10, 20)) is None
    with Away(shared):
        assert lived(*ladder_a, saves=(30,), older=True) == 20  # acknowledged on its own disk only
    assert lived(*ladder_b, saves=(40, 50, 60, 70)) == 20
    for ladder in (ladder_a, ladder_a[::-1]):
        caplog.clear()
        assert lived(*ladder) == 70
        assert "have one number, 2, because one could not see the other" in caplog.text
    shown = tierstore("ls", "run", "--all", *(w for r in ladder_a for w in ("-c", r.as_uri())))
    assert len({word for word in shown.out.split() if word.startswith("(")}) == 2  # two nonces
    assert (30, 2, "abandoned") in lines(*ladder_a)
    assert lived(*ladder_a, saves=(80,)) == 70
    assert lived(*ladder_b) == 80
    assert lived(*ladder_a) == 80


def test_a_node_that_restarted_alone_many_times(tmp_path: Path) -> None:
    """Its numbers are higher, and what was saved elsewhere afterwards is still the newer."""
    a, b, shared = (tmp_path / name for name in ("a", "b", "shared"))
    life_on = {node: (node, shared) for node in (a, b)}

    def lived(node: Path, *saves: int, older: bool = False) -> int | None:
        with Checkpointer(*(root.as_uri() for root in life_on[node]), run="run") as ckpt:
            found = ckpt.restore(state(), allow_older=older)
            for step in saves:
                save = ckpt.save(step, state(step))
                save.wait(next(iter(save.status())), timeout=PATIENCE)
            return found

    lived(a, 10)
    with Away(shared):
        for step in (20, 30, 40):
            assert lived(a, step, older=True) == step - 10
    assert lived(b, 15, 50) == 10
    assert lived(a) == 50
    assert lived(b) == 50


@pytest.mark.parametrize("first", [10, 50])
def test_a_clock_that_is_behind_while_the_tier_of_what_was_seen_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """What this process has seen, or was, is older, also where its next launch cannot look."""
    shared = tmp_path / "shared"
    with monkeypatch.context() as patch:
        patch.setattr(claiming.time, "time", lambda: 2e9)
        assert life(shared, saves=(10, 30)) is None
        assert life(shared, saves=(40,), step=10) == 10
    monkeypatch.setattr(claiming.time, "time", lambda: 1e9)
    with Checkpointer(shared.as_uri(), run="run") as ckpt:
        assert ckpt.restore(state(), step=10) == 10
        if first > 20:
            ckpt.save(first, state(first)).wait(timeout=PATIENCE)
        with Away(shared), pytest.raises(BlockedError):
            ckpt.save(20, state(20)).wait(timeout=PATIENCE)
        ckpt.save(25, state(25)).wait(timeout=PATIENCE)
    assert life(shared) == 25


def test_a_launch_is_newer_than_what_any_of_its_ranks_sees(tmp_path: Path) -> None:
    """Rank 1 has a disk of its own, and on it the launches of another life."""
    own = folder("own", tmp_path / "own", (1,))
    store = RunStore(own.backend, "run")
    for number in (1, 2, 3):
        store.claim_launch(Launch(number, f"{number:016x}", None, 1, 3e9 + number))
    offers: list[Any] = []

    def launch_as(rank: int, *tiers: OpenTier) -> Launch:
        def centrally(offer: Callable[[], Any], decide: Callable[[list[Any]], list[Launch]]) -> Any:
            offers.insert(0, offer())
            return decide(offers)[rank]

        return claim_launch(tiers, "run", Mock(rank=rank, size=2, centrally=centrally), None)

    launch_as(1, own)
    launch = launch_as(0, folder("shared", tmp_path / "shared", (0, 1)))
    assert launch.number == 4
    assert launch.started > 3e9 + 3


# Damage


@pytest.mark.parametrize("tier", ["first", "second"])
@pytest.mark.parametrize("number", [1, 2])
def test_one_flipped_bit_in_a_claim(tmp_path: Path, tier: str, number: int) -> None:
    roots = tmp_path / "first", tmp_path / "second"
    for saves in ((10, 20), (30,)):
        with Checkpointer(*(root.as_uri() for root in roots), run="run") as ckpt:
            ckpt.restore(state())
            for step in saves:
                ckpt.save(step, state(step)).wait(timeout=PATIENCE)
    with closing(LocalBackend(str(tmp_path / tier))) as backend:
        flip(backend, RunStore(backend, "run").keys.launch(number), 60)
    before = lines(*roots)
    assert [step for step, _, _ in before] == [30, 20, 10]
    ladder = [word for root in roots for word in ("-c", root.as_uri())]
    for words in (["show", "run"], ["verify", "run"]):
        assert tierstore(*words, *ladder).code == 0
    with Checkpointer(*(root.as_uri() for root in roots), run="run") as ckpt:
        assert ckpt.restore(state()) == 30
        ckpt.save(40, state(40)).wait(timeout=PATIENCE)
    assert lines(*roots)[0] == (40, 3, "latest")


def test_every_single_damaged_record(tmp_path: Path) -> None:
    """Cut, flipped or gone: where another tier or another object knows, nothing is lost."""
    roots = tmp_path / "first", tmp_path / "second"
    with Checkpointer(*(root.as_uri() for root in roots), run="run") as ckpt:
        for step in (10, 20):
            ckpt.save(step, state(step)).wait(timeout=PATIENCE)
    with closing(LocalBackend(str(roots[0]))) as backend:
        whole = contents(backend)
        for key, data in whole.items():
            for damage in (b"", data[:128], data[:-1] + bytes([data[-1] ^ 0x41]), None):
                if damage is None:
                    backend.delete([key])
                else:
                    backend.create(key, damage)
                assert life(*roots) == 20, (key, damage)
                for stored, good in whole.items():
                    backend.create(stored, good)


# Tiers that are bad at the first save


def blocked(root: Path) -> str:
    root.write_text("in the way")
    return root.as_uri()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up on a tier sooner than one does in earnest."""
    monkeypatch.setattr(surveying, "_RETRY_SECONDS", 0.2)
    monkeypatch.setattr(surveying, "_SILENCE_SECONDS", 0.5)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_something_in_a_tiers_place_is_no_empty_tier(tmp_path: Path) -> None:
    """It hid what the tier had: an older step of another one came back without a word."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    with Checkpointer(bad.as_uri(), good.as_uri(), run="run") as ckpt:
        ckpt.save(1, state(1)).wait(timeout=PATIENCE)
    anew(bad, 2)
    with Away(bad):
        with pytest.raises(BlockedError, match="allow_older=True goes on without it"):
            life(bad, good)
        assert life(bad, good, allow_older=True) == 1
    assert life(bad, good) == 2


@pytest.mark.parametrize("kind", [Path.touch, os.mkfifo])
def test_something_in_place_of_the_commits_is_no_tier_without_any(
    tmp_path: Path, kind: Callable[[Path], None]
) -> None:
    life(tmp_path, saves=(1,))
    commits = tmp_path / "runs" / "run" / "commits"
    commits.rename(tmp_path / "commits")
    kind(commits)
    with pytest.raises(BlockedError):
        life(tmp_path)


@pytest.mark.parametrize("first", [True, False])
def test_a_bad_tier_at_the_first_save_holds_nobody_up(tmp_path: Path, first: bool) -> None:
    good, bad = (tmp_path / "good").as_uri(), blocked(tmp_path / "bad")
    with Checkpointer(*([bad, good] if first else [good, bad]), run="run") as ckpt:
        save = ckpt.save(1, state(1))
        names = list(save.status())
        if not first:
            names.reverse()
        save.wait(names[1], timeout=PATIENCE)
        with pytest.raises(StorageError):
            save.wait(names[0], timeout=PATIENCE)
        (tmp_path / "bad").unlink()  # it comes back, and is claimed then
        ckpt.save(2, state(2)).wait(timeout=PATIENCE)
    with closing(LocalBackend(str(tmp_path / "bad"))) as backend:
        assert [*RunStore(backend, "run").claims()] == [1]
    assert life(tmp_path / "bad") == 2


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("how", ["refused", "silent"])
def test_a_dead_server_is_named_and_gone_without(
    tmp_path: Path, how: str, silent: str, caplog: pytest.LogCaptureFixture
) -> None:
    anew(tmp_path / "good", 1)
    server = silent if how == "silent" else "http://127.0.0.1:1"
    ladder = tmp_path / "ladder.toml"
    ladder.write_text(
        f"""
        [[tier]]
        name = "local"
        url = "{(tmp_path / "good").as_uri()}"
        [[tier]]
        name = "s3"
        url = "s3://bucket/root?endpoint_url={server}&stall_timeout=2"
        retry_seconds = 0.3
        """
    )
    with Checkpointer(ladder, run="run") as ckpt:
        with pytest.raises(UnreachableError, match="allow_older=True goes on without it") as error:
            ckpt.restore(state())
        assert "s3://bucket/root" in str(error.value)
        assert ckpt.restore(state(), allow_older=True) == 1
        assert "tier s3 cannot be listed and may hold a newer step" in caplog.text
        save = ckpt.save(2, state(2))
        save.wait("local", timeout=PATIENCE)
        with pytest.raises(StorageError, match=r"no answer|no byte"):
            save.wait("s3", timeout=PATIENCE)
        with pytest.raises(UnreachableError, match="may hold it: wait until it answers"):
            ckpt.restore(state(), step=3, allow_older=True)
    assert life(tmp_path / "good") == 2


def test_a_tier_that_is_away_is_asked_by_no_other_rank(ranks: Ranks, tmp_path: Path) -> None:
    first, second = ranks.run(2, latest_cases.one_tier_is_away, str(tmp_path))
    assert first == (1, [])
    assert second == (1, [["a"]])
