"""A migration by several workers, each with ends of its own, some of which are lost on the way."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.command import tierstore
from tests.files import contents
from tierstore.config import load_config
from tierstore.errors import ConfigError
from tierstore.migration.ends import Ends
from tierstore.migration.listing import objects
from tierstore.patterns import Selection
from tierstore.testing.servers.process import free_port
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.affinity import Affinity
from tierstore.transfer.engine.crew import CrewSite, Effort, open_crew, worker_of
from tierstore.transfer.engine.entries import SOURCE, Entry, Outcome
from tierstore.transfer.engine.feed import Listing
from tierstore.transfer.engine.journal import Journal
from tierstore.transfer.engine.machine import Machine
from tierstore.transfer.engine.records import TARGET, Version
from tierstore.transfer.engine.rules import ALONE, Destination, Orders
from tierstore.transfer.engine.run import Engine
from tierstore.transfer.engine.stores import Recipe

PART = 8 * 1024**2  # of a folder
LARGE = {f"large{number}": os.urandom(3 * PART + number) for number in range(3)}


@pytest.fixture(autouse=True)
def _clean(no_leaks: None) -> None:
    pass


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "src").mkdir()
    for key, data in {**LARGE, "empty": b"", "small": b"small"}.items():
        (tmp_path / "src" / key).write_bytes(data)
    tiers = [load_config(f"file://{tmp_path}/{name}").tiers[0] for name in ("src", "dst")]
    return Recipe({SOURCE: tiers[0], TARGET: tiers[1]})


class Several:
    """A thread a worker. One may be lost before its nth answer, with what it did being done."""

    def __init__(self, recipe: Recipe, lives: dict[str, int]) -> None:
        self._lives = lives
        self._stores = {worker: recipe.open() for worker in lives}
        self._tasks: dict[str, queue.SimpleQueue[m.Task | None]]
        self._tasks = {worker: queue.SimpleQueue() for worker in lives}
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"tierstore-{worker}")
            for worker in lives
        ]
        self.done: list[tuple[str, m.Task]] = []
        self.effort = Effort()

    def start(self, tell: Callable[[m.Event], None]) -> None:
        self._tell = tell
        for worker, thread in zip(self._lives, self._threads, strict=True):
            tell(m.Joined(worker, 2))
            thread.start()

    def submit(self, worker: str, task: m.Task) -> None:
        self._tasks[worker].put(task)

    def close(self, *, patience: float = 0.0) -> None:
        for worker, thread in zip(self._lives, self._threads, strict=True):
            self._tasks[worker].put(None)
            thread.join()
            self._stores[worker].close()

    def _work(self, worker: str) -> None:
        acting, left = worker_of(self._stores[worker], Affinity()), self._lives[worker]
        while (task := self._tasks[worker].get()) is not None:
            answer = acting.carry_out(task)
            self.done.append((worker, task))
            left -= 1
            if not left:
                self._tell(m.Left(worker))
                if all(len(self._of(each)) >= n > 0 for each, n in self._lives.items()):
                    self._tell(m.Broken("nobody is left"))
            if left > 0 or self._lives[worker] < 0:
                self._tell(answer)

    def _of(self, worker: str) -> list[m.Task]:
        return [task for who, task in self.done if who == worker]

    def sends(self) -> list[m.Send]:
        return [task for _, task in self.done if isinstance(task, m.Send)]


def migrate(recipe: Recipe, tmp_path: Path, crew: Several) -> tuple[Engine, list[m.Report]]:
    reports: list[m.Report] = []
    stores = recipe.open()
    with closing(Journal(tmp_path / "journal", "a", "b")) as journal:
        with closing(stores):
            found = Listing(objects(Ends(stores[SOURCE], stores[TARGET]), Selection()))
            migration = Engine(stores, journal, found, report=reports.append)
            migration.run(crew)
    return migration, reports


def lives() -> Iterator[dict[str, int]]:
    for nth in (1, 2, 3, 5, 7, 9, 11):
        yield {"a": nth, "b": -1}
    yield {"a": 3, "b": 4, "c": 5, "d": -1}


@pytest.mark.parametrize("lives", list(lives()), ids=str)
def test_workers_are_lost(recipe: Recipe, tmp_path: Path, lives: dict[str, int]) -> None:
    crew = Several(recipe, lives)
    migration, reports = migrate(recipe, tmp_path, crew)
    assert migration.complete
    assert contents(tmp_path / "dst") == contents(tmp_path / "src")
    assert {(r.outcome, r.reason) for r in reports} == {(Outcome.COPIED, "")}
    assert migration.totals.sent == migration.totals.moved == migration.totals.found_bytes
    # Each lost worker had two commands at most.
    again = len(crew.sends()) - sum(-(-len(data) // PART) for data in LARGE.values())
    assert 0 <= again <= 2 * (len(lives) - 1)


def test_all_workers_are_lost_and_others_go_on(recipe: Recipe, tmp_path: Path) -> None:
    first = Several(recipe, {"a": 6, "b": 6})
    migration, _ = migrate(recipe, tmp_path, first)
    assert migration.trouble == "nobody is left"
    second = Several(recipe, {"c": -1})
    migration, _ = migrate(recipe, tmp_path, second)
    assert migration.complete
    assert contents(tmp_path / "dst") == contents(tmp_path / "src")
    assert migration.totals.reused > 0


def test_an_object_that_loses_its_workers_is_reported() -> None:
    machine = Machine(Orders({TARGET: Destination(lambda _size: PART)}))
    machine.begin()
    entries = (Entry("bad", Version(3 * PART, 1.0)),)
    assert machine.handle(m.Fed(entries, last=True)) == []
    for number in range(4):
        *_, task = machine.handle(m.Joined(f"w{number}", 1))
        # What the first may have begun is freed before it is begun again.
        assert isinstance(task, m.Discard if number else m.Open)
        assert machine.handle(m.Left(f"w{number}")) == []
    machine.handle(m.Joined("last", 1))
    (report,) = machine.handle(m.Left("last"))
    assert report == m.Report("bad", Outcome.FAILED, 3 * PART, ALONE)
    assert machine.over


def test_a_worker_is_lost_that_had_read_everything_back_and_committed() -> None:
    """What is there may be somebody else's, however good the upload was: all of it is read."""
    machine = Machine(Orders({TARGET: Destination(lambda _size: PART)}))
    machine.begin()
    version = Version(2 * PART, 1.0)
    machine.handle(m.Fed((Entry("x", version),), last=True))
    machine.handle(m.Joined("a", 2))
    *_, first, second = machine.handle(m.Opened(1, "token"))
    machine.handle(m.Sent(1, 0, 10, checked=True))
    *_, task = machine.handle(m.Sent(1, 1, 11, checked=True))
    assert isinstance(first, m.Send)
    assert isinstance(second, m.Send)
    assert isinstance(task, m.Commit)
    machine.handle(m.Left("a"))
    (task,) = machine.handle(m.Joined("b", 2))
    assert isinstance(task, m.Open)
    (task,) = machine.handle(m.Gone(1))
    assert isinstance(task, m.Look)
    first, second = machine.handle(m.Looked(1, None, version, None))
    assert isinstance(first, m.Check)
    assert isinstance(second, m.Check)
    machine.handle(m.Checked(1, 0, 10))
    *_, report = machine.handle(m.Checked(1, 1, 11))
    assert report == m.Report("x", Outcome.COPIED, 2 * PART, "")
    assert machine.over


def test_workers_of_one_object_and_of_others() -> None:
    """One object's parts keep one worker busy, and leave room for others elsewhere."""
    machine = Machine(Orders({TARGET: Destination(lambda _size: PART)}))
    machine.begin()
    machine.handle(m.Joined("a", 2))
    machine.handle(m.Joined("b", 2))
    version = Version(9 * PART, 1.0)
    told = machine.handle(m.Fed(tuple(Entry(key, version) for key in "xyz"), last=True))
    tasks = [task for task in told if isinstance(task, m.Open)]
    assert [machine.worker(task.job) for task in tasks] == ["a", "b", "a"]
    tasks = [t for number in (1, 2, 3) for t in machine.handle(m.Opened(number, f"t{number}"))]
    sends = [(t.job, machine.worker(t.job)) for t in tasks if isinstance(t, m.Send)]
    assert sorted(sends) == [(1, "a"), (1, "a"), (2, "b"), (2, "b")]


def test_a_worker_that_is_lost_as_it_is_given_something(recipe: Recipe, tmp_path: Path) -> None:
    """What the machine said before it knew is for that worker, not for the next one as well."""
    given: list[tuple[str, m.Task]] = []
    stores = recipe.open()
    with closing(stores), closing(Journal(tmp_path / "journal", "a", "b")) as journal:
        engine = Engine(stores, journal, Listing([]))
        crew = Several(recipe, {})
        crew.submit = lambda worker, task: given.append((worker, task))  # type: ignore[method-assign]
        engine._crew = crew
        entries = (Entry("small", Version(5, 1.0)),)
        for event in (m.Joined("a", 1), m.Fed(entries, last=True), m.Left("a"), m.Joined("b", 1)):
            engine._events.put(event)
        engine._step()
        engine._affinity.leave()
    assert [(worker, type(task)) for worker, task in given] == [("a", m.Copy), ("b", m.Copy)]


def test_an_unknown_crew(recipe: Recipe) -> None:
    stores = recipe.open()
    with closing(stores):
        with pytest.raises(ConfigError, match="nothing is known to run on 'rey'"):
            open_crew("rey", recipe, stores, CrewSite())


def test_options_that_need_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    done = tierstore("migrate", f"{tmp_path}/src", f"{tmp_path}/dst", "--send-credentials")
    assert (done.code, done.err) == (
        2,
        "error: --send-credentials is for other machines\nnext: add --on ray\n",
    )


def test_credentials_are_not_shown() -> None:
    assert "secret" not in repr(CrewSite("", {"AWS_SECRET_ACCESS_KEY": "secret"}))


def test_without_ray(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("tierstore_ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    done = tierstore("migrate", f"{tmp_path}/src", f"{tmp_path}/dst", "--on", "ray")
    assert done.code == 2
    assert "ray, which is not installed" in done.err
    assert "pip install 'tierstore[ray]', here and on every node" in done.err


def test_without_a_cluster(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    words = ("migrate", f"{tmp_path}/src", f"{tmp_path}/dst", "--on", "ray")
    done = tierstore(*words, "--ray-address", f"127.0.0.1:{free_port()}")
    assert done.code == 2
    assert done.err.startswith("error: there is no Ray cluster at 127.0.0.1:")
    assert "next: start one with `ray start --head`, or name one with --ray-address" in done.err
    assert not [path for path in (tmp_path / "dst").rglob("*") if path.is_file()]


def test_a_node_that_does_not_see_the_folders(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from tierstore_ray.sight import DestinationProbe, sight_of

    def trouble(source: str, target: str) -> str:
        names = (source, target)
        tiers = [load_config(f"file://{tmp_path}/{name}").tiers[0] for name in names]
        there = Recipe(dict(zip((SOURCE, TARGET), tiers, strict=True))).open()
        with closing(there):
            return sight.trouble(there)

    stores = recipe.open()
    with closing(stores), closing(DestinationProbe(stores[TARGET])) as probe:
        sight = sight_of(stores, {TARGET: probe}, "")
        assert trouble("src", "dst") == ""
        assert f"{tmp_path}/other has no 'empty' there: mount it there" in trouble("other", "dst")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "empty").write_bytes(b"something else")
        assert f"{tmp_path}/other is another folder there" in trouble("other", "dst")
        # A folder of that name on the node itself has no such file.
        elsewhere = replace(sight, probes={TARGET: probe.path.replace("/dst/", "/dst2/")})
        sight = elsewhere
        assert f"{tmp_path}/dst is another folder there" in trouble("src", "dst")


def test_a_folder_that_the_probe_makes_is_for_whom_the_tier_says(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from tierstore_ray.sight import DestinationProbe

    target = load_config(f"file://{tmp_path}/dst?mode=0600").tiers[0]
    stores = Recipe({TARGET: target}).open()
    with closing(stores), closing(DestinationProbe(stores[TARGET], "0600")):
        assert (tmp_path / "dst").stat().st_mode & 0o777 == 0o700


def test_memory_is_in_one_process_only(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from tierstore_ray import open_crew as open_ray

    tiers = [load_config(url).tiers[0] for url in ("memory://crew", f"file://{tmp_path}/dst")]
    recipe = Recipe(dict(zip((SOURCE, TARGET), tiers, strict=True)))
    stores = recipe.open()
    with closing(stores):
        with pytest.raises(ConfigError, match="memory://crew is in this process only"):
            open_ray(recipe, stores, CrewSite())
