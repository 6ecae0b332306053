"""A command that waits says for whom and why, soon and seldom, on standard error."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import model_points
from tests.command import folders, save, start, tierstore
from tests.loopback import serving
from tests.patience import PATIENCE
from tierstore import waiting
from tierstore.cli import waits
from tierstore.testing.servers import free_port


@pytest.fixture(autouse=True)
def _impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    monkeypatch.setattr(waits, "FIRST", 0.05)
    monkeypatch.setattr(waits, "LOOK", 0.02)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.chdir(tmp_path)
    save(folders(tmp_path, "t"), 1)
    Path("t/file").write_bytes(b"x")


def silent(sock: socket.socket) -> None:
    """Take a request and answer nothing until the other end goes away."""
    with contextlib.suppress(OSError):
        while sock.recv(65_536):
            pass


@pytest.fixture(params=["refused", "silent"])
def dead(request: pytest.FixtureRequest) -> Iterator[str]:
    """Options of a bucket on a server that is not there, or says nothing."""
    if request.param == "refused":
        yield f"endpoint_url=http://127.0.0.1:{free_port()}&retry_seconds=1"
        return
    with serving(silent) as url:
        yield f"endpoint_url={url}&retry_seconds=0&stall_timeout=0.3"


COMMANDS = [
    *("ls -c DEAD", "show run -c DEAD", "verify run -c DEAD", "doctor -c DEAD"),
    *("migrate ./t DEAD", "migrate DEAD ./to", "migrate ./t DEAD --json", "sync ./t DEAD -n"),
    *("cp ./t/file DEAD", "cp DEAD ./to", "import DEAD run 9 --from hf -c file:///nowhere"),
    "bench -c DEAD --seconds 1",
]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_dead_server(dead: str, words: str) -> None:
    if words.startswith(("doctor", "bench")) and "retry_seconds=1" in dead:
        pytest.skip("doctor tries once, so is told at once; bench needs no second proof")
    given = [word.replace("DEAD", f"s3://bucket/d?{dead}") for word in words.split()]
    done = tierstore(*given)
    assert done.code == 1
    said = [line for line in done.err.splitlines() if line.startswith("waiting for ")]
    assert 1 <= len(said) <= 2, done.err
    assert any("s3://bucket" in line or "http://127.0.0.1" in line for line in said)
    if "--json" in words:
        assert all(json.loads(line) for line in done.out.splitlines())


def test_it_is_said_within_seconds(tmp_path: Path) -> None:
    url = f"s3://bucket/d?endpoint_url=http://127.0.0.1:{free_port()}"
    with start("cp", f"{tmp_path}/t/file", url, stderr=subprocess.PIPE) as process:
        assert process.stderr
        line = process.stderr.readline()
        begun = re.search(
            r"no answer from .*: Connection refused \((\d) s of 2.0 min at most\)$", line
        )
        assert begun
        assert int(begun[1]) <= 5
        process.kill()


def test_readers_of_what_was_deleted_are_waited_for(tmp_path: Path) -> None:
    words = ("migrate", "./t", "./to", "--run", "run", "--delete-source", "--grace", "0.5")
    done = tierstore(*words)
    assert done.code == 0
    assert "waiting for readers of what was deleted: grace (" in done.err
    assert not list(tmp_path.glob("t/runs/run/data/*"))


def test_a_limit_of_ones_own_is_said_to_be_one() -> None:
    Path("large").write_bytes(bytes(300_000))
    done = tierstore("cp", "large", "./to/", "--bandwidth", "150K")
    assert done.code == 0
    assert not done.err or "only so many bytes a second are allowed" in done.err


def test_an_estimate_that_takes_long_says_so(tmp_path: Path) -> None:
    path = model_points.write(tmp_path / "points.json")
    words = ("--params", "8e9", "--nodes", "10000", "--mtbf", "150", "-p", path)
    done = tierstore("predict", *words)
    assert done.code == 0
    assert "waiting for the simulation: 1.16 days, save by save (" in done.err


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [100.0]
    monkeypatch.setattr(waiting, "monotonic", lambda: now[0])
    monkeypatch.setattr(waiting, "_moved", {})
    return now


def test_who_moves_bytes_does_not_wait(clock: list[float]) -> None:
    with waiting.on("there", "get", "x"):
        clock[0] += 2
        waiting.moved()
        clock[0] += 2
        assert not waiting.overdue(3)
        clock[0] += 1
        (wait,) = waiting.overdue(3)
        assert (wait.place, wait.what, wait.begun) == ("there", ("get", "x"), 100.0)
    assert not waiting.overdue(0)


def test_what_is_sent_again_and_again_does_not_count(clock: list[float]) -> None:
    with waiting.on("there", "put x") as wait:
        wait.why = "it said no"
        clock[0] += 4
        waiting.moved()
        assert waiting.overdue(3) == [wait]
        waiting.moved(surely=True)
        assert not waiting.overdue(3)


def test_a_call_within_another_is_that_one(clock: list[float]) -> None:
    with waiting.on("tier", "list") as outer, waiting.on("server", "GET") as inner:
        assert inner is outer
        clock[0] += 4
        assert waiting.overdue(3) == [outer]


@contextlib.contextmanager
def slow_call() -> Iterator[None]:
    """Another thread waits for the same place all the while."""
    begun, go = threading.Event(), threading.Event()

    def slow() -> None:
        with waiting.on("there", "slow"):
            begun.set()
            go.wait(PATIENCE)

    thread = threading.Thread(target=slow)
    thread.start()
    begun.wait(PATIENCE)
    yield
    go.set()
    thread.join()


def test_one_slow_call_among_quick_ones_is_no_wait(clock: list[float]) -> None:
    with slow_call():
        clock[0] += 4
        with waiting.on("there", "quick"):
            pass
        clock[0] += 2
        assert not waiting.overdue(3)
        clock[0] += 2
        (wait,) = waiting.overdue(3)
        assert wait.what == ("slow",)


def test_a_call_that_failed_is_not_what_came(clock: list[float]) -> None:
    with slow_call():
        clock[0] += 4
        with contextlib.suppress(OSError), waiting.on("there", "broken"):
            raise OSError
        assert waiting.overdue(3)
