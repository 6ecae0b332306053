"""Work that several threads share, and whoever waits for it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE
from tierstore.backends.memory import MemoryBackend
from tierstore.errors import ThrottledError
from tierstore.transfer import threads as workers
from tierstore.wrappers.delegate import Call
from tierstore.wrappers.faults import Fault, Faulty
from tierstore.wrappers.retry import Retrying


def test_an_interrupted_caller_waits_for_no_store_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, waits = threading.Semaphore(0), []
    notes: list[str] = []

    def busy(_: Call) -> None:
        asked.release()
        raise ThrottledError("later", retry_after=10)

    def interrupted(futures: Any, real: Any = workers.wait) -> None:
        waits.append(futures)
        if len(waits) == 1:
            assert all(asked.acquire(timeout=PATIENCE) for _ in range(2))
            raise KeyboardInterrupt
        real(futures)

    memory = MemoryBackend(f"memory://{tmp_path.name}")
    backend = Retrying(Faulty(memory, Fault("create", times=10**6, action=busy)), seconds=30)

    def create(number: int) -> None:
        try:
            backend.create(str(number), b"x")
        except ThrottledError as error:
            notes.extend(error.__notes__)

    monkeypatch.setattr(workers, "wait", interrupted)
    with ThreadPoolExecutor(2) as pool, pytest.raises(KeyboardInterrupt):
        workers.run_all(range(9), create, pool=pool, width=2)
    assert notes == ["create was tried 1 times; it was given up"] * 2
