"""Claiming a launch where a tier does not take it: a save is waiting, and other tiers are well."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.shards import launch, tier
from tierstore.backends.memory import MemoryBackend
from tierstore.checkpoint.store import RunStore
from tierstore.errors import UnreachableError
from tierstore.ladder.claim import claim_where_answered
from tierstore.ladder.survey import survey
from tierstore.wrappers.delegate import Call
from tierstore.wrappers.faults import Fault, Faulty
from tierstore.wrappers.retry import Retrying


def never(seconds: float) -> bool:
    raise AssertionError(f"it pauses for {seconds} s")


def test_a_tier_that_lists_and_takes_nothing_holds_no_save_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tierstore.ladder.survey._RETRY_SECONDS", 0)
    good, safe = (MemoryBackend(f"memory://{tmp_path.name}-{n}") for n in range(2))
    RunStore(good, "run").claim_launch(launch())
    fault = Fault("create", times=10**6, error=UnreachableError("in safe mode"))
    refusing = Retrying(Faulty(safe, fault), seconds=PATIENCE, pause=never)
    claimed = claim_where_answered([tier("safe", refusing), tier("good", good)], "run", launch(1))
    assert claimed.number == 1  # its own claim, made twice
    assert [*RunStore(good, "run").claims()] == [1]
    assert "is not claimed on" in caplog.text
    assert "in safe mode" in caplog.text


def test_a_tier_that_is_silent_is_asked_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    monkeypatch.setattr("tierstore.ladder.survey._SILENCE_SECONDS", 0)
    gate = threading.Event()

    def hang(_: Call) -> None:
        gate.wait(PATIENCE)

    memory = MemoryBackend(f"memory://{tmp_path.name}")
    slow = Faulty(memory, Fault("list", action=hang))
    assert "no answer" in str(survey([tier("slow", slow)], "run").errors["slow"])
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "tierstore-slow-look":
            thread.join(PATIENCE)
    assert len(slow.calls) == 1
