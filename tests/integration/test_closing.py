"""Closing ends by its deadline, whatever a tier does at that moment."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loopback import serving, wait_gone
from tests.patience import PATIENCE
from tests.shards import assert_restores, folder, launch, stage, tier, until
from tierstore.backends.memory import MemoryBackend
from tierstore.config import Config, Policy, TierConfig
from tierstore.errors import CheckpointError, StorageError, ThrottledError
from tierstore.keys import Attempt
from tierstore.ladder.find import choose
from tierstore.ladder.handle import SaveHandle
from tierstore.ladder.save import Saver
from tierstore.ladder.tiers import OpenTier
from tierstore.wrappers import open_tier
from tierstore.wrappers.bandwidth import Throttled
from tierstore.wrappers.faults import Fault, Faulty
from tierstore.wrappers.limit import Limited
from tierstore.wrappers.retry import Retrying

FIRST = Attempt(1, 1, 1)
SECONDS = 0.5  # that closing is given; what a tier asks for is PATIENCE


@pytest.fixture
def gate(no_leaks: None) -> Iterator[threading.Event]:
    """What a tier hangs at; it is opened before anybody looks what was left behind."""
    event = threading.Event()
    yield event
    event.set()


def close_in_time(saver: Saver, save: SaveHandle) -> None:
    began = time.monotonic()
    saver.close(timeout=SECONDS)
    assert time.monotonic() - began < PATIENCE / 10
    assert save.done
    assert list(save.failed) == ["slow"]
    save.wait("fast")


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    with socket.socket() as sock:  # bound, and nobody listens
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


@contextlib.contextmanager
def silent() -> Iterator[str]:
    with serving(wait_gone) as url:
        yield url


@contextlib.contextmanager
def full() -> Iterator[str]:
    """What connects waits: nobody accepts, and the queue of those who knock is full."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for _ in range(4):
            knocking = stack.enter_context(socket.socket())
            knocking.setblocking(False)
            knocking.connect_ex(sock.getsockname())
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.parametrize("server", [refusing, silent, full])
def test_an_s3_that_does_not_answer_holds_nobody_up(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with server() as url:
        options = {"endpoint_url": url, "stall_timeout": PATIENCE, "connect_timeout": 5.0}
        policy = Policy(retry_seconds=PATIENCE)
        config = TierConfig("slow", "s3://bucket/t", options=options, policy=policy)
        with contextlib.closing(open_tier(config)) as backend:
            saver = Saver([folder("fast", tmp_path), OpenTier(config, backend)], "run")
            save = saver.submit(*stage(FIRST, launch()))
            save.wait("fast", timeout=PATIENCE)
            until(lambda: save.status()["slow"].state == "writing")
            close_in_time(saver, save)


@pytest.mark.parametrize("operation", ["upload", "write", "commit", "list", "abort"])
def test_a_tier_that_hangs_holds_nobody_up(
    operation: str, tmp_path: Path, gate: threading.Event
) -> None:
    memory = MemoryBackend(f"memory://{tmp_path.name}")
    hangs = Fault(operation, times=10**6, action=lambda _: (gate.wait(PATIENCE), None)[1])
    fails = Fault("write", times=10**6, error=StorageError("no"))
    slow = tier("slow", Faulty(memory, hangs, *[fails] * (operation == "abort")))
    saver = Saver([folder("fast", tmp_path), slow], "run")
    saves = [saver.submit(*stage(Attempt(step, 1, 1), launch())) for step in (1, 2)]
    for save in saves:
        save.wait("fast", timeout=PATIENCE)
    began = time.monotonic()
    saver.close(timeout=SECONDS)
    assert time.monotonic() - began < PATIENCE / 10
    for save in saves:
        with pytest.raises(CheckpointError, match="the saver was closed"):
            save.wait("slow", timeout=PATIENCE)


def test_pauses_turns_and_shares_of_bandwidth_end_with_the_saver(
    tmp_path: Path, no_leaks: None
) -> None:
    waits = {
        "retry": lambda inner: Retrying(
            Faulty(inner, Fault("upload", times=10**6, error=ThrottledError("", retry_after=500)))
        ),
        "bandwidth": lambda inner: Throttled(inner, read=None, write=1.0),
        "turns": lambda inner: Limited(Throttled(inner, read=None, write=1.0), 1),
    }
    for name, wrap in waits.items():
        memory = MemoryBackend(f"memory://{tmp_path.name}-{name}")
        saver = Saver([folder("fast", tmp_path / name), tier("slow", wrap(memory))], "run")
        save = saver.submit(*stage(FIRST, launch()))
        save.wait("fast", timeout=PATIENCE)
        close_in_time(saver, save)
        until(lambda space=memory._space: not space.uploads)  # what was begun is aborted


@pytest.fixture
def behind_a_stuck_one(tmp_path: Path, gate: threading.Event) -> list[OpenTier]:
    memory = MemoryBackend(f"memory://{tmp_path.name}")
    stuck = Faulty(memory, Fault("upload", action=lambda _: (gate.wait(PATIENCE), None)[1]))
    return [tier("slow", stuck), folder("last", tmp_path)]


def test_a_tier_waits_no_longer_for_its_turn(
    behind_a_stuck_one: list[OpenTier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierstore.ladder.save._TURN", PATIENCE)
    saver = Saver(behind_a_stuck_one, "run", overtake=PATIENCE)
    save = saver.submit(*stage(FIRST, launch()))
    until(lambda: save.status()["slow"].state == "writing")
    saver.close(timeout=SECONDS)
    assert save.failed.keys() == {"slow", "last"}


@pytest.mark.parametrize("told", ["by SIGTERM", "by close"])
def test_a_stuck_tier_is_overtaken_in_time_where_there_is_an_end(
    told: str,
    behind_a_stuck_one: list[OpenTier],
    gate: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tierstore.ladder.save._TURN", 1e-4)
    left: list[float] = []
    saver = Saver(
        behind_a_stuck_one, "run", overtake=PATIENCE, time_left=lambda: min(left, default=None)
    )
    save = saver.submit(*stage(FIRST, launch()))
    until(lambda: save.status()["slow"].state == "writing")
    closing = threading.Thread(target=saver.close, args=[PATIENCE])
    if told == "by close":
        closing.start()
    else:
        left.append(PATIENCE)
    save.wait("last", timeout=PATIENCE / 4)
    gate.set()
    save.wait(timeout=PATIENCE)
    if told == "by SIGTERM":
        closing.start()
    closing.join()


def test_an_interrupted_close_gives_up_what_is_not_done(
    behind_a_stuck_one: list[OpenTier], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> bool:
        raise KeyboardInterrupt

    saver = Saver(behind_a_stuck_one, "run", overtake=PATIENCE)
    save = saver.submit(*stage(FIRST, launch()))
    until(lambda: save.status()["slow"].state == "writing")
    monkeypatch.setattr(Saver, "_busy", interrupt)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        saver.close(timeout=PATIENCE)
    assert time.monotonic() - began < PATIENCE / 10
    assert save.failed.keys() == {"slow", "last"}
    saver.close()


def test_what_is_left_may_shrink_while_it_closes(tmp_path: Path, gate: threading.Event) -> None:
    left: list[float] = []
    memory = MemoryBackend(f"memory://{tmp_path.name}")
    stuck = Faulty(memory, Fault("upload", action=lambda _: (gate.wait(PATIENCE), None)[1]))
    ladder = [folder("fast", tmp_path), tier("slow", stuck)]
    saver = Saver(ladder, "run", time_left=lambda: min(left, default=None))
    save = saver.submit(*stage(FIRST, launch()))
    save.wait("fast", timeout=PATIENCE)
    threading.Timer(0.1, left.append, [0.0]).start()
    saver.close(timeout=PATIENCE)
    with pytest.raises(CheckpointError, match="the saver was closed"):
        save.wait("slow")


def test_closing_late_says_nothing_of_tiers_that_are_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, no_leaks: None
) -> None:
    saver = Saver([folder("fast", tmp_path)], "run", time_left=lambda: 0.0)
    saver.submit(*stage(FIRST, launch())).wait(timeout=PATIENCE)
    saver.close()
    assert not caplog.records


SCRIPT = """
    import sys, threading
    from pathlib import Path
    from tests.patience import PATIENCE
    from tests.shards import *
    from tierstore.backends.memory import MemoryBackend
    from tierstore.ladder.save import Saver
    from tierstore.wrappers.faults import Fault, Faulty

    hangs = Fault(sys.argv[2], times=10**6, action=lambda _: threading.Event().wait())
    slow = tier("slow", Faulty(MemoryBackend("memory://m"), hangs))
    for number in range(3):
        ladder = [folder("fast", Path(sys.argv[1], str(number))), slow]
        saver = Saver(ladder, "run", time_left=lambda: 0.0)
        save = saver.submit(*stage(Attempt(1, 1, 1), launch()))
        save.wait("fast", timeout=PATIENCE)
    print("ends")
"""


@pytest.mark.parametrize("operation", ["write", "list"])
def test_a_process_ends_although_a_tier_hangs(operation: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path), operation]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout == "ends\n"
    assert_restores(choose([folder("fast", tmp_path / "0")], "run"), FIRST)


@pytest.mark.torch
def test_sigterm_while_it_closes_leaves_no_more_than_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from tierstore_torch import Checkpointer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    ladder = (
        TierConfig("fast", tmp_path.as_uri()),
        TierConfig("slow", f"memory://{tmp_path.name}", policy=Policy(write_bandwidth=1)),
    )
    with Checkpointer(Config(ladder), run="run", sigterm_deadline=SECONDS) as checkpointer:
        save = checkpointer.save(1, {"w": torch.ones(1000)})
        save.wait("fast")
        kill = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM])
        kill.start()
    kill.join()
    with pytest.raises((CheckpointError, StorageError)):
        save.wait("slow")
