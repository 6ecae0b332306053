"""`migrate`, `sync` and `copy` as a notebook calls them: values in, results and errors out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.command import folders, save
from tests.files import contents
from tierstore.config import load_config
from tierstore.errors import ConfigError, NotFoundError, TierstoreError
from tierstore.operations import inspect, move
from tierstore.operations.move import Moved, MoveProgress, Outcome, Report, Totals
from tierstore.operations.terms import Terms, Workers
from tierstore.patterns import Selection


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"a")
    (folder / "b.bin").write_bytes(os.urandom(9_000_000))
    (folder / "sub" / "c.txt").write_bytes(b"see")
    return folder


def test_a_dry_run_returns_counts_and_does_nothing(
    src: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dst = tmp_path / "dst"
    found = move.migrate(src, dst, dry_run=True)
    assert (found.copied, found.same, found.failed, found.sent_bytes) == (3, 0, 0, 0)
    assert found.last.totals.bytes[Outcome.COPIED] == 9_000_004
    assert found.last.read_seconds is not None
    assert not dst.exists()
    assert not found.last.journal.exists()
    assert capfd.readouterr() == ("", "")


def test_a_function_hears_how_far_it_is(src: Path, tmp_path: Path) -> None:
    heard: list[int] = []

    def progress(totals: Totals) -> None:
        heard.append(totals.sent)

    done = move.migrate(src, tmp_path / "dst", progress=progress)
    done.check()
    assert contents(tmp_path / "dst") == contents(src)
    assert heard[-1] == done.sent_bytes == 9_000_004
    assert done.last.journal.is_relative_to(tmp_path / "state")
    again = move.migrate(src, tmp_path / "dst")
    assert (again.copied, again.same) == (0, 3)


class Ear(MoveProgress):
    """Stops at the first object, if it shall, and takes down what it hears."""

    def __init__(self, *, stops: bool = False) -> None:
        self.stops, self.stop = stops, lambda: None
        self.reports: list[Report] = []
        self.passes: list[Moved] = []
        self.gone: list[str] = []

    @contextmanager
    def running(self, stop: Callable[[], None]) -> Iterator[None]:
        self.stop = stop
        yield

    def report(self, report: Report) -> None:
        self.reports.append(report)
        if self.stops:
            self.stop()

    def over(self, done: Moved) -> None:
        self.passes.append(done)

    def removed(self, keys: Sequence[str]) -> None:
        self.gone += keys


def test_stopping_and_going_on(src: Path, tmp_path: Path) -> None:
    for number in range(500):
        (src / f"many-{number}").write_bytes(b"x")
    ear = Ear(stops=True)
    done = move.migrate(src, tmp_path / "dst", progress=ear)
    assert (done.good, done.last.stopped, done.last.complete) == (False, True, False)
    assert ear.passes == [done.last]
    with pytest.raises(TierstoreError, match="stopped"):
        done.check()
    ear.stops = False
    done = move.migrate(src, tmp_path / "dst", progress=ear)
    assert (done.good, done.copied + done.same) == (True, 503)
    assert contents(tmp_path / "dst") == contents(src)


def test_failures_are_in_the_result(src: Path, tmp_path: Path) -> None:
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst/a.txt").write_bytes(b"other")
    done = move.migrate(src, tmp_path / "dst")
    assert (done.good, done.failed, done.copied) == (False, 1, 2)
    (failure,) = done.last.failures
    assert (failure.key, failure.outcome) == ("a.txt", Outcome.FAILED)
    assert failure.reason
    with pytest.raises(TierstoreError, match=r"1 of 3 objects .* a\.txt: "):
        done.check()
    assert move.migrate(src, tmp_path / "dst", conflict="skip").good
    assert (tmp_path / "dst/a.txt").read_bytes() == b"other"


def test_runs_and_steps_and_tiers(tmp_path: Path) -> None:
    tiers = folders(tmp_path, "one")
    for step in (1, 2, 3):
        save(tiers, step, run="llama-8b")
    save(tiers, 1, run="other")
    source, target = (load_config((tmp_path / n).as_uri()).tiers[0] for n in ("one", "two"))
    done = move.migrate(source, target, runs=["llama-*"], steps=[1, "3:"])
    assert done.good
    rows = inspect.steps(target.url).steps
    assert [(row.run, row.step) for row in rows] == [("llama-8b", 3), ("llama-8b", 1)]
    move.migrate(source, target, runs="other", steps="latest", delete_source=True, grace=0)
    assert inspect.runs(source.url).names == ("llama-8b", "other")
    assert [r.line for r in inspect.steps(source.url, "other").steps] == ["deleted"]
    none = move.migrate(source, target, runs=["nobody"], dry_run=True)
    assert "no run nobody" in none.last.trouble
    with pytest.raises(TierstoreError, match=r"stopped before its end: .* no run nobody"):
        none.check()


def test_a_selection(src: Path, tmp_path: Path) -> None:
    wanted = Selection([("+", "*.txt"), ("-", "**")])
    assert move.migrate(src, tmp_path / "dst", select=wanted).copied == 2


def test_a_mirror(src: Path, tmp_path: Path) -> None:
    dst, ear = tmp_path / "dst", Ear()
    first = move.sync(src, dst, delete=True)
    assert (first.good, first.copied, first.deleted) == (True, 3, 0)
    (src / "a.txt").unlink()
    dry = move.sync(src, dst, delete=True, dry_run=True)
    assert dry.extra is not None
    assert (dry.extra.objects, dry.deleted) == (1, 0)
    done = move.sync(src, dst, delete=True, progress=ear)
    assert (done.deleted, ear.gone) == (1, ["a.txt"])
    assert contents(dst) == contents(src)
    (src / "b.bin").unlink()
    (src / "sub/c.txt").rename(src / "d.txt")
    with pytest.raises(TierstoreError, match=r"2 of 3 objects at .* would be deleted") as caught:
        move.sync(src, dst, delete=True)
    assert "--force" in caught.value.hint
    assert move.sync(src, dst, delete=True, force=True).deleted == 2
    assert contents(dst) == {"d.txt": b"see"}


def test_one_object(src: Path, tmp_path: Path) -> None:
    assert move.copy(src / "a.txt", f"{tmp_path}/dst/").copied == 1
    with pytest.raises(NotFoundError, match="no object"):
        move.copy(src / "nothing", tmp_path / "dst")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": [1]}, "steps are of a run"),
        ({"runs": ["a"], "select": Selection()}, "checkpoints, which are whole"),
        ({"runs": ["a"], "steps": ["soon"]}, "'soon' is no step"),
        ({"grace": float("nan")}, "not a number of seconds"),
        ({"grace": -1.0}, "not a number of seconds"),
        ({"bandwidth": 0}, "not at least 1"),
        ({"workers": Workers("raay")}, "nothing is known to run on 'raay'"),
    ],
)
def test_arguments_that_are_wrong(
    src: Path, tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        move.migrate(src, tmp_path / "dst", **wrong)
    assert not (tmp_path / "dst").exists()


def test_no_option_is_left_out_in_silence(src: Path, tmp_path: Path) -> None:
    for operation, option in (
        (move.migrate, {"delete": True}),
        (move.sync, {"delete_source": True}),
        (move.copy, {"follow_links": False}),
    ):
        with pytest.raises(TypeError, match=f"unexpected keyword argument {next(iter(option))!r}"):
            operation(src, tmp_path / "dst", **option)


def test_every_option_is_a_term_of_the_same_type() -> None:
    options = {n: t.__forward_arg__ for n, t in move.MigrateOptions.__annotations__.items()}
    terms = {field.name: field.type for field in fields(Terms)}
    assert {"delete_source": "bool", "grace": "float"} | options == terms


def test_a_result_shows_no_secret(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    done = move.migrate(src, tmp_path / "dst")
    assert "hunter2" not in repr(done)
    assert "hunter2" not in repr(Workers("ray", send_credentials=True))
    with pytest.raises(ConfigError) as caught:
        move.migrate(src, "s3://key:hunter2@bucket/t")
    assert "hunter2" not in f"{caught.value} {caught.value!r}"
