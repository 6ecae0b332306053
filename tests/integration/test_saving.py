"""`Checkpointer.save` where something goes wrong behind it, in one process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.patience import PATIENCE
from tierstore import wrappers
from tierstore.errors import CheckpointError
from tierstore.wrappers.faults import Fault, Faulty
from tierstore_torch import Checkpointer

pytestmark = pytest.mark.torch


@pytest.fixture
def checkpointer(tmp_path: Path) -> Iterator[Checkpointer]:
    with Checkpointer(f"memory://{tmp_path.name}", run="run") as made:
        yield made


def test_its_tiers_are_closed_with_it(tmp_path: Path) -> None:
    with Checkpointer(tmp_path.as_uri(), run="run") as checkpointer:
        checkpointer.save(1, {"w": torch.ones(1)}).wait()
        assert (tmp_path / ".tierstore-tmp").exists()
    assert not (tmp_path / ".tierstore-tmp").exists()


def test_a_step_can_be_saved_more_than_a_hundred_times(checkpointer: Checkpointer) -> None:
    state = {"w": torch.zeros(1)}
    for number in range(1, 103):
        state["w"].fill_(number)
        save = checkpointer.save(5, state)
        save.wait()
        assert save.attempt.number == number
    state["w"].zero_()
    assert checkpointer.restore(state) == 5
    assert state["w"].item() == 102


def test_what_fails_before_it_is_handed_over_gives_its_memory_back(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer.save(1, {"w": torch.ones(1)}).wait()
    for name in ("Shard", "RunKeys"):
        with monkeypatch.context() as patch:
            patch.setattr(f"tierstore_torch.checkpointer.{name}", _no_memory)
            with pytest.raises(MemoryError):
                checkpointer.save(2, {"w": torch.ones(1)})
        checkpointer._pool.acquire(1, timeout=0).release()
    checkpointer.save(3, {"w": torch.ones(1)}).wait()


def test_what_fails_while_ranks_agree_gives_its_memory_back(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"w": torch.ones(1)}
    checkpointer.save(1, state).wait()
    with monkeypatch.context() as patch:
        patch.setattr(checkpointer._group, "all_max", _no_memory)
        with pytest.raises(MemoryError):
            checkpointer.save(2, state)
    checkpointer._pool.acquire(1, timeout=0).release()


def test_one_sigterm_stops_every_run_of_a_process(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    first, second = (
        Checkpointer(f"memory://{tmp_path.name}", run=run, sigterm_deadline=PATIENCE)
        for run in ("first", "second")
    )
    os.kill(os.getpid(), signal.SIGTERM)
    assert first.stop_requested()
    assert second.stop_requested()
    first.close()
    second.close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupted_close_frees_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = Checkpointer(f"memory://{tmp_path.name}", run="run")
    save = checkpointer.save(1, {"w": torch.ones(1)})
    save.wait()

    def interrupt(_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("tierstore.ladder.save.Saver._busy", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.close()
    assert not checkpointer._pool._slots
    checkpointer.close()
    with pytest.raises(CheckpointError, match="closed"):
        checkpointer.save(2, {"w": torch.ones(1)})


def test_a_restore_waits_for_whichever_tier_is_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    opened = wrappers.open_backend

    def stuck(url: str, options: Any) -> Any:
        hangs = Fault("upload", action=lambda _: (gate.wait(PATIENCE), None)[1])
        return Faulty(opened(url, options), *[hangs] * url.endswith("stuck"))

    monkeypatch.setattr("tierstore.wrappers.open_backend", stuck)
    monkeypatch.setattr("tierstore.ladder.save._TURN", 0.0)  # the second waits for no turn
    urls = [f"memory://{tmp_path.name}-{name}" for name in ("stuck", "well")]
    state = {"w": torch.ones(1)}
    with Checkpointer(*urls, run="run", sigterm_deadline=PATIENCE) as checkpointer:
        assert checkpointer._stop
        checkpointer._stop.note()
        save = checkpointer.save(1, state)
        assert checkpointer.restore(state) == 1
        assert not save.done
        gate.set()


def _no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError
